"""Where images come from: folders, lists, tars, Parquet files and Hugging Face data sets, local or remote."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, MissingExtraError, first_line
from ..models._image import SUFFIXES
from ._retry import RetryPolicy

Kind = Literal["images", "tar", "arrow", "parquet"]


@dataclass(frozen=True)
class Part:
    """What one worker does at a time: a few images, or an archive.

    `items` are pairs (key, place) for images, `place` the file and `name` what its keys begin with for an archive.
    """

    number: int
    kind: Kind
    items: tuple[tuple[str, str], ...] = ()
    place: str = ""
    name: str = ""


@dataclass(frozen=True)
class Source:
    """All parts of a source in a fixed order; `images` is None where only reading the archives tells."""

    place: str
    parts: tuple[Part, ...]
    images: int | None
    fingerprint: str


def open_source(place: str, shard: int, patience: RetryPolicy) -> Source:
    """List a source.

    A folder gives all images in it, or its *.tar files (WebDataset), its *.parquet files with images inside, or the
    data set that Hugging Face's `save_to_disk` wrote. A file is a CSV or Parquet list with a column `file` (paths
    relative to the list, or URLs), a tar, or a Parquet file with images inside. A pattern with * gives all that match.

    Args:
        place: a path or a URL that fsspec reads.
        shard: images per part, for sources that are lists of files.
        patience: with the source.

    Raises:
        InputError: no such source, none of these kinds, without images, or with two images of one name.
        SourceError: no answer.
    """
    files, root = filesystem(place)
    if "*" in posixpath.basename(root):
        found = patience(lambda: {name: info["size"] for name, info in files.glob(root, detail=True).items()}, place)
        return _of_files(place, files, found, posixpath.dirname(root), shard)
    if not patience(lambda: files.exists(root), place):
        raise InputError(f"{place}: no such folder or file.")
    if patience(lambda: files.isfile(root), place):
        if not root.endswith((".csv", ".tar", ".parquet")):
            raise InputError(f"{place}: must be a folder, a CSV or Parquet list, or a tar or Parquet file with images.")
        if root.endswith(".csv") or (root.endswith(".parquet") and _is_list(place, files, root, patience)):
            return _of_list(place, files, root, shard, patience)
        size = patience(lambda: files.size(root), place)
        return _of_files(place, files, {root: size}, posixpath.dirname(root), shard)
    found = patience(lambda: {name: info["size"] for name, info in files.find(root, detail=True).items()}, place)
    return _of_hugging_face(place, files, found, root, patience) or _of_files(place, files, found, root, shard)


def filesystem(place: str) -> tuple[Any, str]:
    """The file system that reads `place`, and the path in it.

    Raises:
        InputError: no file system of that name is known.
        MissingExtraError: fsspec, or what it needs for this kind of place, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem
    except ImportError as error:
        raise MissingExtraError.of("icam run", "run", error) from error
    if "\0" in place:
        raise InputError(f"{place!r}: no file can have this name.")
    if "://" not in place:
        # Never parsed: a file's name may hold anything.
        return LocalFileSystem(), str(Path(place).absolute())
    try:
        files, path = url_to_fs(place)
    except ImportError as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{place}: cannot be opened ({first_line(error)}).") from None
    return files, str(path).rstrip("/") or "/"


def _place(files: Any, path: str) -> str:
    """What `filesystem` takes for a path in it."""
    return path if is_local(files) else str(files.unstrip_protocol(path))


def is_local(files: Any) -> bool:
    """Whether paths of this file system are the machine's own."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def _of_files(place: str, files: Any, found: dict[str, int], root: str, shard: int) -> Source:
    """Of images if there are any, else of archives."""
    names = sorted(found)
    images = [name for name in names if posixpath.splitext(name)[1].lower() in SUFFIXES]
    if images:
        items = [(posixpath.relpath(name, root), _place(files, name)) for name in images]
        stated = [f"{key} {found[name]}" for (key, _), name in zip(items, images, strict=True)]
        return Source(place, _slices(items, shard), len(items), _fingerprint(stated))
    kinds: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet"}
    archives = [name for name in names if posixpath.splitext(name)[1] in kinds]
    if not archives:
        raise InputError(
            f"{place}: holds no image ({', '.join(sorted(SUFFIXES))}), no *.tar, no *.parquet and no data set of "
            "Hugging Face's save_to_disk."
        )
    chosen = posixpath.splitext(archives[0])[1]
    return _of_archives(
        place, files, {name: found[name] for name in archives if name.endswith(chosen)}, root, kinds[chosen]
    )


def _of_archives(place: str, files: Any, found: dict[str, int], root: str, kind: Kind) -> Source:
    parts = tuple(
        Part(number, kind, place=_place(files, name), name=posixpath.relpath(name, root))
        for number, name in enumerate(found)
    )
    stated = [f"{part.name} {size}" for part, size in zip(parts, found.values(), strict=True)]
    return Source(place, parts, None, _fingerprint(stated))


def _of_hugging_face(place: str, files: Any, found: dict[str, int], root: str, patience: RetryPolicy) -> Source | None:
    """One part per Arrow file; of a DatasetDict, those of all splits."""
    states = sorted(name for name in found if posixpath.basename(name) == "state.json")
    archives: list[str] = []
    for state in states:
        stored = patience(lambda state=state: files.cat_file(state), state)  # type: ignore[misc]
        try:
            content = json.loads(stored)
            if content.get("_indices_data_files") or content.get("_indices_files"):
                raise InputError(f"{place}: holds a selection of rows as indices; save it after flatten_indices().")
            folder = posixpath.dirname(state)
            archives += [posixpath.join(folder, each["filename"]) for each in content.get("_data_files", ())]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{state}: is not what save_to_disk of Hugging Face writes ({first_line(error)})."
            ) from None
    lost = [name for name in archives if name not in found]
    if lost:
        raise InputError(f"{place}: {', '.join(lost)} is missing; the data set was not saved completely.")
    return _of_archives(place, files, {name: found[name] for name in archives}, root, "arrow") if archives else None


def _is_list(place: str, files: Any, root: str, patience: RetryPolicy) -> bool:
    reader = parquet()
    import pyarrow as pa

    def columns() -> list[str]:
        with files.open(root) as file:
            try:
                return list(reader.read_schema(file).names)
            except pa.ArrowInvalid as error:
                raise InputError(f"{place}: is no Parquet file, or breaks off ({first_line(error)}).") from None

    return "file" in patience(columns, place)


def _of_list(place: str, files: Any, root: str, shard: int, patience: RetryPolicy) -> Source:
    content = patience(lambda: files.cat_file(root), place)
    try:
        keys = _csv_keys(content, place) if root.endswith(".csv") else _parquet_keys(content)
    except (csv.Error, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: no list that can be read ({first_line(error)}).") from None
    if not all(key is None or isinstance(key, str) for key in keys):
        raise InputError(f"{place}: its column `file` must hold text.")
    if not keys:
        raise InputError(f"{place}: lists no image.")
    if not all(keys):
        raise InputError(f"{place}: row {next(row for row, key in enumerate(keys, 1) if not key)} names no file.")
    folder = posixpath.dirname(_place(files, root))
    items = [(key, key if "://" in key else posixpath.join(folder, key)) for key in keys]
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(f"{place}: lists {twice} twice; each image must have one row, so that each has one result.")
    return Source(place, _slices(items, shard), len(items), _fingerprint([hashlib.sha256(content).hexdigest()]))


def _csv_keys(content: bytes, place: str) -> list[str]:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    if "file" not in (rows.fieldnames or ()):
        raise InputError(f"{place}: needs a column `file`, but has {', '.join(rows.fieldnames or ())}.")
    return [row["file"] for row in rows]


def _parquet_keys(content: bytes) -> list[str]:
    keys: list[str] = parquet().read_table(io.BytesIO(content), columns=["file"])["file"].to_pylist()
    return keys


def _slices(items: Sequence[tuple[str, str]], shard: int) -> tuple[Part, ...]:
    starts = range(0, len(items), shard)
    return tuple(Part(number, "images", tuple(items[at : at + shard])) for number, at in enumerate(starts))


def _fingerprint(stated: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in stated:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def parquet() -> Any:
    """Pyarrow's module for Parquet, or an error that names the extra."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError.of("Reading Parquet", "run", error) from error
    return pyarrow.parquet
