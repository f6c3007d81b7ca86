"""The images of a part: files, or what a tar, an Arrow stream or a Parquet file holds."""

from __future__ import annotations

import posixpath
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line
from ..models._image import SUFFIXES
from ._failures import RetryPolicy
from ._sources import Part, filesystem, is_local, parquet

BLOCK = 2**24
"""Bytes asked for at once when a remote archive is copied."""


@dataclass(frozen=True)
class Item:
    """One image: a key that is unique in its source, and where its bytes are.

    `place` is what fsspec opens, `start` and `stop` the range in it; or the bytes are in `data`.
    """

    key: str
    place: str = ""
    start: int = 0
    stop: int | None = None
    data: bytes | None = None


@contextmanager
def opened(part: Part, patience: RetryPolicy) -> Iterator[Iterator[Item]]:
    """The images of a part, in order; a remote archive is copied to a temporary file first.

    Where an archive breaks off, the images before the break are followed by an InputError.
    """
    if part.kind == "images":
        yield (Item(key, place) for key, place in part.items)
        return
    files, path = filesystem(part.place)
    if is_local(files):
        yield _read(part, Path(path))
        return
    with tempfile.TemporaryDirectory(prefix="icam-run-") as folder:
        copy = Path(folder) / "archive"
        size = patience(lambda: files.size(path), part.place)
        with copy.open("wb") as file:
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                file.write(patience(lambda start=start, stop=stop: files.cat_file(path, start, stop), part.place))  # type: ignore[misc]
        yield _read(part, copy)


def _read(part: Part, path: Path) -> Iterator[Item]:
    """The images of an archive; where its content is wrong, an InputError ends them."""
    import pyarrow as pa

    read, kind = _READERS[part.kind]
    try:
        yield from read(path, part.name)
    except InputError:
        raise
    except (tarfile.TarError, pa.ArrowException, EOFError, OverflowError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; pyarrow's own OSError, of wrong content, has no number
        raise InputError(f"{part.name}: is no {kind}, or breaks off ({first_line(error)}).") from None


def _tar(path: Path, name: str) -> Iterator[Item]:
    """Key: the tar's name and the member's, with its suffix: a sample may hold several images."""
    seen: set[str] = set()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isfile() or posixpath.splitext(member.name)[1].lower() not in SUFFIXES:
                continue
            if member.name in seen:
                raise InputError(f"{name}: holds {member.name} twice.")
            seen.add(member.name)
            start = member.offset_data
            yield Item(f"{name}/{member.name}", str(path), start, start + member.size)


def _arrow(path: Path, name: str) -> Iterator[Item]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from _rows(stream, name)


def _parquet(path: Path, name: str) -> Iterator[Item]:
    with parquet().ParquetFile(path) as file:
        column = _image_column(file.schema_arrow, name)
        yield from _rows(file.iter_batches(64, columns=[column]), name)


_READERS = {"tar": (_tar, "tar"), "arrow": (_arrow, "Arrow stream"), "parquet": (_parquet, "Parquet file")}


def _rows(batches: Iterable[Any], name: str) -> Iterator[Item]:
    """Key: the file's name and the row's number."""
    row = 0
    for batch in batches:
        for value in batch.column(_image_column(batch.schema, name)):
            image = value.as_py()
            content = image.get("bytes") if isinstance(image, dict) else image
            path = image.get("path") if isinstance(image, dict) else ""
            place = path if isinstance(path, str) else ""
            yield Item(f"{name}/{row:08d}", place, data=content if content or not place else None)
            row += 1


def _image_column(schema: Any, name: str) -> str:
    """The first column of encoded images: bytes, or bytes with a path, as Hugging Face keeps them."""
    import pyarrow as pa

    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    raise InputError(f"{name}: needs a column of encoded images, but has {', '.join(schema.names)}.")
