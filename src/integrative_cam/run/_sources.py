"""Where images come from: folders, lists, tars, Parquet files and Hugging Face data sets, local or remote."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, first_line, import_extra
from ..models._image import SUFFIXES
from ._failures import RetryPolicy

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
    """List a source; sources that are lists of files have parts of `shard` images.

    A folder gives all images in it, or its *.tar files (WebDataset), its *.parquet files with images inside, or the
    data set that Hugging Face's `save_to_disk` wrote. A file is a CSV or Parquet list with a column `file` (paths
    relative to the list, or URLs), a tar, or a Parquet file with images inside. A pattern with * gives all that match.

    Raises:
        InputError: no such source, none of these kinds, without images, or with two images of one name.
        SourceError: no answer.
    """
    files, root = filesystem(place)

    def sizes(list_files: Callable[..., dict[str, Any]]) -> dict[str, int]:
        return {name: info["size"] for name, info in patience(lambda: list_files(root, detail=True), place).items()}

    if "*" in posixpath.basename(root):
        return _of_files(place, files, sizes(files.glob), posixpath.dirname(root), shard)
    if not patience(lambda: files.exists(root), place):
        raise InputError(f"{place}: no such folder or file.")
    if patience(lambda: files.isfile(root), place):
        if not root.endswith((".csv", ".tar", ".parquet")):
            raise InputError(f"{place}: must be a folder, a CSV or Parquet list, or a tar or Parquet file with images.")
        if root.endswith(".csv") or (root.endswith(".parquet") and _is_list(place, files, root, patience)):
            return _of_list(place, files, root, shard, patience)
        size = patience(lambda: files.size(root), place)
        return _of_files(place, files, {root: size}, posixpath.dirname(root), shard)
    listed = sizes(files.find)
    if archives := _saved_by_hugging_face(place, files, listed, patience):
        return _of_archives(place, files, archives, root, "arrow")
    return _of_files(place, files, listed, root, shard)


def filesystem(place: str) -> tuple[Any, str]:
    """The file system that reads `place`, and the path in it; InputError where none is known."""
    url_to_fs = import_extra("fsspec.core", "icam run", "run").url_to_fs
    from fsspec.implementations.local import LocalFileSystem

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


def _of_files(place: str, files: Any, sizes: Mapping[str, int], root: str, shard: int) -> Source:
    """Of images if there are any, else of archives."""
    images = sorted(name for name in sizes if posixpath.splitext(name)[1].lower() in SUFFIXES)
    if images:
        items = [(posixpath.relpath(name, root), _place(files, name)) for name in images]
        stated = [f"{key} {sizes[name]}" for (key, _), name in zip(items, images, strict=True)]
        return Source(place, _slices(items, shard), len(items), _fingerprint(stated))
    kinds: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet"}
    archives = sorted(name for name in sizes if posixpath.splitext(name)[1] in kinds)
    if not archives:
        raise InputError(
            f"{place}: holds no image ({', '.join(sorted(SUFFIXES))}), no *.tar, no *.parquet and no data set of "
            "Hugging Face's save_to_disk."
        )
    suffix = posixpath.splitext(archives[0])[1]
    chosen = {name: sizes[name] for name in archives if name.endswith(suffix)}
    return _of_archives(place, files, chosen, root, kinds[suffix])


def _of_archives(place: str, files: Any, sizes: Mapping[str, int], root: str, kind: Kind) -> Source:
    parts = tuple(
        Part(number, kind, place=_place(files, name), name=posixpath.relpath(name, root))
        for number, name in enumerate(sizes)
    )
    stated = [f"{part.name} {size}" for part, size in zip(parts, sizes.values(), strict=True)]
    return Source(place, parts, None, _fingerprint(stated))


def _saved_by_hugging_face(place: str, files: Any, sizes: Mapping[str, int], patience: RetryPolicy) -> dict[str, int]:
    """The Arrow files with their sizes, of a DatasetDict those of all splits; none if `save_to_disk` did not write."""
    archives: list[str] = []
    for state in sorted(name for name in sizes if posixpath.basename(name) == "state.json"):
        content = patience(lambda state=state: files.cat_file(state), state)  # type: ignore[misc]
        try:
            stored = json.loads(content)
            if stored.get("_indices_data_files") or stored.get("_indices_files"):
                raise InputError(f"{place}: holds a selection of rows as indices; save it after flatten_indices().")
            folder = posixpath.dirname(state)
            archives += [posixpath.join(folder, file["filename"]) for file in stored.get("_data_files", ())]
        except InputError:
            raise
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{state}: is not what save_to_disk of Hugging Face writes ({first_line(error)})."
            ) from None
    lost = [name for name in archives if name not in sizes]
    if lost:
        raise InputError(f"{place}: {', '.join(lost)} is missing; the data set was not saved completely.")
    return {name: sizes[name] for name in archives}


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
    if root.endswith(".csv"):
        keys = [row["file"] for row in read_list(content, place)]
    else:
        try:
            keys = parquet().read_table(io.BytesIO(content), columns=["file"])["file"].to_pylist()
        except (ValueError, OSError) as error:
            raise InputError(f"{place}: no list that can be read ({first_line(error)}).") from None
        if not all(key is None or isinstance(key, str) for key in keys):
            raise InputError(f"{place}: its column `file` must hold text.")
        _check_names(keys, place)
    if not keys:
        raise InputError(f"{place}: lists no image.")
    folder = posixpath.dirname(_place(files, root))
    items = [(key, key if "://" in key else posixpath.join(folder, key)) for key in keys]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise InputError(f"{place}: lists {twice[0]} twice; each image must have one row, so that it has one result.")
    return Source(place, _slices(items, shard), len(items), _fingerprint([hashlib.sha256(content).hexdigest()]))


def read_list(content: bytes, place: object) -> list[dict[str, str]]:
    """The rows of a CSV list of images, which needs a column `file`; `place` names it in errors."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        columns, rows = reader.fieldnames or (), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{place}: no CSV file in UTF-8 that can be read ({error}).") from None
    if "file" not in columns:
        raise InputError(f"{place}: needs a column `file`, but has {', '.join(columns)}.")
    _check_names([row["file"] for row in rows], place)
    return rows


def _check_names(names: Sequence[str | None], place: object) -> None:
    """Raise InputError if a row of a list names no file."""
    if not all(names):
        raise InputError(f"{place}: row {next(row for row, name in enumerate(names, 1) if not name)} names no file.")


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
    return import_extra("pyarrow.parquet", "Reading Parquet", "run")
