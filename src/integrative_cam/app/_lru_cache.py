"""What the server remembers for its visitors: bounded in bytes, forgotten when idle, told apart by secret keys."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


@dataclass
class _Kept(Generic[Value]):
    value: Value
    bytes: int
    used: float


@dataclass
class LruCache(Generic[Value]):
    """Values of visitors, the least recently used ones forgotten first; safe to use from many threads.

    Args:
        limit: bytes in all.
        idle: seconds after which a value that nobody asks for is forgotten.
        clock: seconds, never going back.
    """

    limit: int
    idle: float
    clock: Callable[[], float] = time.monotonic
    _kept: OrderedDict[tuple[str, Hashable], _Kept[Value]] = field(default_factory=OrderedDict, init=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    def get(self, visitor: str, name: Hashable = None) -> Value | None:
        """The visitor's value of that name; None where there is none or it was forgotten."""
        with self._lock:
            self._forget_idle()
            found = self._kept.get((visitor, name))
            if found is None:
                return None
            found.used = self.clock()
            self._kept.move_to_end((visitor, name))
            return found.value

    def put(self, visitor: str, value: Value, size: int, name: Hashable = None) -> None:
        """Keep a value of `size` bytes; older ones go until all fit. One that alone does not fit is not kept."""
        with self._lock:
            self._forget_idle()
            self._kept.pop((visitor, name), None)
            if size > self.limit:
                return
            self._kept[visitor, name] = _Kept(value, size, self.clock())
            while self._bytes() > self.limit:
                self._kept.popitem(last=False)

    def forget(self, visitor: str) -> None:
        """Forget all that was kept for a visitor."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == visitor]:
                del self._kept[key]

    def sweep(self) -> None:
        """Forget what was idle for too long."""
        with self._lock:
            self._forget_idle()

    @property
    def bytes(self) -> int:
        """Kept now."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(each.bytes for each in self._kept.values())

    def _forget_idle(self) -> None:
        # In order of use: the first ones have waited longest.
        oldest = self.clock() - self.idle
        while self._kept and next(iter(self._kept.values())).used < oldest:
            self._kept.popitem(last=False)


def bytes_of(value: object) -> int:
    """Memory behind all tensors of a dataclass, storage that several share counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in _tensors(value)}
    return sum(storages.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))
