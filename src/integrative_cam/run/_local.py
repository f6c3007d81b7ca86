"""The engine for one machine: worker processes that take parts as they become free."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..errors import first_line
from ._decode import context, end_with_parent
from ._job import Job
from ._record import Record
from ._sources import Part
from ._worker import Worker

LIVES = 3
"""Workers that may die on one part before it is given up."""
GRACE = 5
"""Seconds to a process that has nothing more to do."""


@dataclass
class _Member:
    """A worker's process, what it does, and how many images of it are dealt with."""

    process: Any
    connection: Connection
    part: Part
    told: int = 0


def run_local(
    job: Job, fingerprint: str, parts: Sequence[Part], workers: int, tell: Callable[[int], None]
) -> Iterator[Record]:
    """The record of each part as it comes; after a fatal one, none.

    Args:
        job: what to do.
        fingerprint: of the network.
        parts: what is left of the source.
        workers: processes with a network each, that take CUDA devices in turn and share the processor's threads; with 0
            this process is the worker.
        tell: called with the number of images that are dealt with; less than 0 where a worker took its work with it.
    """
    if not workers:
        with Worker(job, fingerprint, tell) as worker:
            for part in parts:
                record = worker(part)
                yield record
                if record.fatal:
                    return
        return
    yield from _Crew(job, fingerprint, parts, workers, tell).records()


class _Crew:
    """Processes, the parts that wait for them, and how often each part cost a worker its life."""

    def __init__(
        self, job: Job, fingerprint: str, parts: Sequence[Part], workers: int, tell: Callable[[int], None]
    ) -> None:
        self.job, self.fingerprint, self.tell = job, fingerprint, tell
        self.waiting = deque(parts)
        self.places = list(range(min(workers, len(parts))))
        self.threads = max(1, torch.get_num_threads() // max(1, len(self.places)))
        self.members: dict[int, _Member] = {}
        self.deaths: Counter[int] = Counter()
        self.deaths_in_a_row = 0

    def records(self) -> Iterator[Record]:
        try:
            while self.waiting or self.members:
                for place in self.places:
                    if place not in self.members and self.waiting:
                        self.members[place] = self._start(place, self.waiting.popleft())
                ready = wait([member.connection for member in self.members.values()])
                for place, member in list(self.members.items()):
                    if member.connection in ready:
                        for record in self._hear(place, member):
                            yield record
                            if record.fatal:
                                return
        finally:
            for member in self.members.values():
                member.connection.close()
            for member in self.members.values():
                _end(member.process)

    def _start(self, place: int, part: Part) -> _Member:
        ours, theirs = context().Pipe()
        job = replace(self.job, device=_device(self.job.device, place))
        process = context().Process(target=_serve, args=(theirs, job, self.fingerprint, self.threads))
        process.start()
        theirs.close()
        ours.send(part)
        return _Member(process, ours, part)

    def _hear(self, place: int, member: _Member) -> Iterator[Record]:
        """What a worker has to say, or that it is dead."""
        try:
            message = member.connection.recv()
        except (EOFError, OSError):
            yield from self._bury(place, member)
            return
        if isinstance(message, int):
            member.told += message
            self.tell(message)
            return
        self.deaths_in_a_row = 0
        if self.waiting:
            member.part, member.told = self.waiting.popleft(), 0
            with contextlib.suppress(OSError):  # dead; its connection says so next
                member.connection.send(member.part)
        else:
            del self.members[place]
            with contextlib.suppress(OSError):
                member.connection.send(None)
            _end(member.process)
        yield message

    def _bury(self, place: int, member: _Member) -> Iterator[Record]:
        member.process.join()
        del self.members[place]
        self.tell(-member.told)
        self.deaths[member.part.number] += 1
        self.deaths_in_a_row += 1
        died = f"a worker died on it (exit code {member.process.exitcode})"
        if self.deaths_in_a_row >= LIVES * len(self.places):
            yield Record(member.part.number, unfinished=f"every worker dies; the last: {died}", fatal=True)
        elif self.deaths[member.part.number] >= LIVES:
            yield Record(member.part.number, unfinished=f"{died}, {LIVES} times")
        else:
            self.waiting.append(member.part)


def _end(process: Any) -> None:
    """Let it end, or make it: what it is at can wait for the next run."""
    process.join(GRACE)
    process.kill()
    process.join()


def _device(wanted: str, place: int) -> str:
    """The worker's own of several CUDA devices."""
    devices = torch.cuda.device_count() if wanted in ("auto", "cuda") else 0
    return f"cuda:{place % devices}" if devices else wanted


def _serve(connection: Connection, job: Job, fingerprint: str, threads: int) -> None:
    """A worker's process: parts come, records and numbers of images go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    end_with_parent()
    torch.set_num_threads(threads)
    part = connection.recv()
    try:
        worker = Worker(job, fingerprint, connection.send)
    except Exception as error:
        connection.send(Record(part.number, unfinished=first_line(error), fatal=True))
        return
    with worker, contextlib.suppress(EOFError, OSError):  # a parent that wants no more
        while part is not None:
            connection.send(worker(part))
            part = connection.recv()
