"""From bytes to what the network takes, in processes of their own; one that dies takes no image with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..errors import CamError, first_line
from ..models import Preprocessing
from ..models._image import decode_image, encode_image
from ._archives import Item
from ._failures import Failure, MissingError, RetryPolicy, SourceError
from ._pool import context, end_with_parent
from ._sources import filesystem

if TYPE_CHECKING:
    import numpy as np

TOGETHER = 8
"""Images that a process takes at once; they are read at the same time, so that a slow store delays them once."""

Element = TypeVar("Element")
_Started = tuple[ProcessPoolExecutor, "Future[list[Sample | Failure]]"]


@dataclass(frozen=True)
class Sample:
    """One decoded image: `values` (channel, height, width) as the network takes them, its own size, the region of it
    that the network sees, and a small picture of that.

    Arrays rather than tensors: those would be handed over in memory that dies with the process.
    """

    key: str
    values: np.ndarray[Any, Any]
    width: int
    height: int
    region: tuple[float, float, float, float]
    picture: bytes | None


@dataclass(frozen=True)
class Decoding:
    """What a process needs to know; `thumbnail` is the longer side of the small picture, 0 for none."""

    preprocessing: Preprocessing
    patience: RetryPolicy
    thumbnail: int


def decode(items: Sequence[Item], how: Decoding) -> list[Sample | Failure]:
    """Read and decode images; what fails is named in its place."""
    with ThreadPoolExecutor(len(items)) as readers:
        contents = list(readers.map(lambda item: _content(item, how.patience), items))
    return [
        content if isinstance(content, Failure) else _sample(item.key, content, how)
        for item, content in zip(items, contents, strict=True)
    ]


def _content(item: Item, patience: RetryPolicy) -> bytes | Failure:
    if item.data is not None:
        return item.data
    if not item.place:
        return Failure(item.key, "image", "has no content")
    part = {} if item.stop is None else {"start": item.start, "end": item.stop}
    try:
        files, path = filesystem(item.place)
        content = patience(lambda: bytes(files.cat_file(path, **part)), item.place)
    except CamError as error:
        is_answered = isinstance(error, MissingError) or not isinstance(error, SourceError)
        return Failure(item.key, "missing" if is_answered else "source", first_line(error))
    if item.stop is not None and len(content) < item.stop - item.start:
        return Failure(item.key, "image", f"breaks off after {len(content)} of {item.stop - item.start} bytes")
    return content


def _sample(key: str, content: bytes, how: Decoding) -> Sample | Failure:
    try:
        image = decode_image(content, key)
        view = how.preprocessing(image)
        return Sample(key, view.tensor[0].numpy(), *image.size, view.region, _picture(view.picture, how.thumbnail))
    except (CamError, OSError, ValueError, RuntimeError, MemoryError) as error:
        return Failure(key, "image", first_line(error).removeprefix(f"{key}: "))


def _picture(picture: Any, side: int) -> bytes | None:
    if not side:
        return None
    picture.thumbnail((side, side))
    return encode_image(picture, "PNG", compress_level=1)


class Decoders:
    """Processes that decode, or none: then it happens here. Use as a context.

    A process that dies, killed or by an image that breaks the decoder, is replaced and its images are tried again one
    by one; an image with which a process dies twice becomes a `Failure`.
    """

    def __init__(self, count: int, how: Decoding) -> None:
        self.count = count
        self.how = how
        self.deaths = 0
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._drop()

    def __call__(self, items: Iterable[Item]) -> Iterator[Sample | Failure]:
        """The decoded images, in order. Bounded look-ahead: two pieces of TOGETHER images per process."""
        if not self.count:
            for piece in pieces(items, TOGETHER):
                yield from decode(piece, self.how)
            return
        ahead: deque[tuple[list[Item], _Started]] = deque()
        for piece in pieces(items, TOGETHER):
            ahead.append((piece, self._start(piece)))
            if len(ahead) > 2 * self.count:
                yield from self._finish(*ahead.popleft())
        while ahead:
            yield from self._finish(*ahead.popleft())

    def _start(self, piece: list[Item]) -> _Started:
        if self._pool is not None:
            try:
                return self._pool, self._pool.submit(decode, piece, self.how)
            except BrokenProcessPool:
                self._bury(self._pool)
        self._pool = ProcessPoolExecutor(self.count, context(), _prepare)
        return self._pool, self._pool.submit(decode, piece, self.how)

    def _finish(self, piece: list[Item], started: _Started) -> Iterator[Sample | Failure]:
        pool, future = started
        try:
            yield from future.result()
        except BrokenProcessPool:
            self._bury(pool)
            for item in piece:
                yield self._alone(item)

    def _alone(self, item: Item) -> Sample | Failure:
        for _ in range(2):
            pool, future = self._start([item])
            try:
                return future.result()[0]
            except BrokenProcessPool:
                self._bury(pool)
        return Failure(item.key, "worker", "the process that decoded it died, twice")

    def _bury(self, pool: ProcessPoolExecutor) -> None:
        """Count a death once: all that a pool was at is broken with it."""
        if pool is self._pool:
            self.deaths += 1
            self._drop()

    def _drop(self) -> None:
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()  # one that waits for a source would keep this process from ending
            self._pool = None


def _prepare() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def pieces(elements: Iterable[Element], size: int) -> Iterator[list[Element]]:
    """Consecutive elements, `size` at a time."""
    iterator = iter(elements)
    while piece := list(islice(iterator, size)):
        yield piece
