"""Worker processes that take parts of the work as they become free; `icam run` and `icam evaluate` share them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from ..errors import first_line

LIVES = 3
"""How many workers may die on one part before it is given up."""
GRACE = 5
"""Seconds that a process with nothing left to do has to end by itself."""

Part = TypeVar("Part", bound=Hashable)
Result = TypeVar("Result")
Tell = Callable[[int], None]
"""Takes a number of images that are done; below 0 where a worker died and its work must be repeated."""

Start = Callable[[int, Tell], AbstractContextManager[Callable[[Part], Result]]]
"""Makes a worker: called in its process with the worker's place, from 0, and `tell`. Must be picklable."""


@dataclass(frozen=True)
class Lost(Generic[Part]):
    """A part without a result: its workers died, with `exit_code`, or raised an error. If `fatal`, the work ends."""

    part: Part
    reason: str
    fatal: bool
    exit_code: int | None = None


def run_parts(
    start: Start[Part, Result], parts: Sequence[Part], workers: int, tell: Tell = lambda _: None
) -> Generator[Result | Lost[Part]]:
    """The result of each part as it comes; the last one after a fatal `Lost`. Close the iterator to end early.

    `workers` processes share the processor's threads. One that dies is replaced, and its part tried again, LIVES times
    in all. With 0 workers this process does the work, and errors of `start` and of the worker are raised here.
    """
    if workers:
        yield from _Pool(start, parts, workers, tell).results()
        return
    with start(0, tell) as worker:
        for part in parts:
            yield worker(part)


@dataclass
class _Member(Generic[Part]):
    """A worker's process, the part it is at, and how many images of it are done."""

    process: Any
    connection: Connection
    part: Part
    done: int = 0


class _Pool(Generic[Part, Result]):
    """Processes, the parts that wait for them, and how many workers died on each part."""

    def __init__(self, start: Start[Part, Result], parts: Sequence[Part], workers: int, tell: Tell) -> None:
        self.start, self.tell = start, tell
        self.waiting = deque(parts)
        self.places = range(min(workers, len(parts)))
        self.threads = max(1, torch.get_num_threads() // max(1, len(self.places)))
        self.members: dict[int, _Member[Part]] = {}
        self.deaths: Counter[Part] = Counter()
        self.deaths_in_a_row = 0

    def results(self) -> Iterator[Result | Lost[Part]]:
        try:
            while self.waiting or self.members:
                for place in self.places:
                    if place not in self.members and self.waiting:
                        self.members[place] = self._started(place, self.waiting.popleft())
                ready = wait([member.connection for member in self.members.values()])
                for place, member in list(self.members.items()):
                    if member.connection in ready:
                        for result in self._received(place, member):
                            yield result
                            if isinstance(result, Lost) and result.fatal:
                                return
        finally:
            for member in self.members.values():
                member.connection.close()
            for member in self.members.values():
                _end(member.process)

    def _started(self, place: int, part: Part) -> _Member[Part]:
        ours, theirs = context().Pipe()
        process = context().Process(target=_serve, args=(theirs, self.start, place, self.threads))
        process.start()
        theirs.close()
        ours.send(part)
        return _Member(process, ours, part)

    def _received(self, place: int, member: _Member[Part]) -> Iterator[Result | Lost[Part]]:
        """What a worker sent: its result, progress (which yields nothing), or nothing more because it died."""
        try:
            message = member.connection.recv()
        except (EOFError, OSError):
            yield from self._replaced(place, member)
            return
        if isinstance(message, int):
            member.done += message
            self.tell(message)
            return
        self.deaths_in_a_row = 0
        if self.waiting:
            member.part, member.done = self.waiting.popleft(), 0
            with contextlib.suppress(OSError):  # it died; reading from the connection says so next
                member.connection.send(member.part)
        else:
            del self.members[place]
            with contextlib.suppress(OSError):
                member.connection.send(None)
            _end(member.process)
        yield message

    def _replaced(self, place: int, member: _Member[Part]) -> Iterator[Lost[Part]]:
        """Queue a dead worker's part again, or give it up."""
        member.process.join()
        del self.members[place]
        self.tell(-member.done)
        self.deaths[member.part] += 1
        self.deaths_in_a_row += 1
        code = member.process.exitcode
        died = f"a worker died on it (exit code {code})"
        if self.deaths_in_a_row >= LIVES * len(self.places):
            yield Lost(member.part, f"every worker dies; the last: {died}", True, code)
        elif self.deaths[member.part] >= LIVES:
            yield Lost(member.part, f"{died}, {LIVES} times", False, code)
        else:
            self.waiting.append(member.part)


def _end(process: Any) -> None:
    """Wait for a process, or kill it: what it is doing can wait for the next run."""
    process.join(GRACE)
    process.kill()
    process.join()


def _serve(connection: Connection, start: Start[Part, Result], place: int, threads: int) -> None:
    """The worker's process: receives parts, sends results and numbers of images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    end_with_parent()
    torch.set_num_threads(threads)
    part = connection.recv()
    try:
        with start(place, connection.send) as worker:
            while part is not None:
                connection.send(worker(part))
                part = connection.recv()
    except Exception as error:
        with contextlib.suppress(OSError):  # the parent has stopped listening
            connection.send(Lost(part, first_line(error), fatal=True))


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, so that kill -9 leaves none behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def context() -> Any:
    """How processes start: from a fresh one with the libraries loaded, never as a copy of one with threads or a GPU."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["integrative_cam.run._decode"])
    return forkserver
