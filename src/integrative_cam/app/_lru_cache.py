"""What the server keeps for its visitors: bounded in bytes, forgotten when idle, told apart by secret keys."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

from ..explanation import tensors_in

Value = TypeVar("Value")


@dataclass
class LruCache(Generic[Value]):
    """Values of sessions, at most `limit` bytes: the least recently used, and those unused for `idle` seconds, go.

    Safe to use from many threads.
    """

    limit: int
    idle: float
    clock: Callable[[], float] = time.monotonic
    # By session key and name: the value, its size in bytes, and when it was used last; in order of use.
    _kept: OrderedDict[tuple[str, Hashable], tuple[Value, int, float]] = field(default_factory=OrderedDict, init=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    def get(self, key: str, name: Hashable = None) -> Value | None:
        """The session's value of that name; None if there is none or it was forgotten."""
        with self._lock:
            self._forget_idle()
            if (key, name) not in self._kept:
                return None
            value, size, _ = self._kept.pop((key, name))
            self._kept[key, name] = value, size, self.clock()
            return value

    def put(self, key: str, value: Value, size: int, name: Hashable = None) -> None:
        """Keep a value of `size` bytes; older ones go until all fit. One that does not fit alone is not kept."""
        with self._lock:
            self._forget_idle()
            self._kept.pop((key, name), None)
            if size > self.limit:
                return
            self._kept[key, name] = value, size, self.clock()
            while self._bytes() > self.limit:
                self._kept.popitem(last=False)

    def forget(self, key: str) -> None:
        """Forget everything of a session."""
        with self._lock:
            for place in [place for place in self._kept if place[0] == key]:
                del self._kept[place]

    def sweep(self) -> None:
        """Forget what was idle for too long."""
        with self._lock:
            self._forget_idle()

    @property
    def bytes(self) -> int:
        """The size of all values that are kept now."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(size for _, size, _ in self._kept.values())

    def _forget_idle(self) -> None:
        oldest = self.clock() - self.idle
        while self._kept and next(iter(self._kept.values()))[2] < oldest:
            self._kept.popitem(last=False)


def bytes_of(value: object) -> int:
    """Memory of all tensors in a dataclass; storage that several share counts once."""
    storages = [tensor.untyped_storage() for _, tensor in tensors_in(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
