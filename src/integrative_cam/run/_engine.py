"""A whole run: list the source, claim the destination, let an engine do what is missing, say what became of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from .._choices import PROBABILITY_TASKS
from ..errors import InputError, import_extra
from ..recipe import Recipe, one_of
from ._failures import DestinationError, Failure
from ._job import Job, fingerprint_of
from ._on_ray import run_ray
from ._pool import Lost, run_parts
from ._record import Record, read_records
from ._sources import Part, Source, open_source
from ._store import Store
from ._worker import Worker, device_of

Engine = Literal["local", "ray"]
ENGINES = ("local", "ray")
FAILURES = "failures.csv"


@dataclass(frozen=True)
class Progress:
    """How far a run is, in images; `total` is an estimate while archives are unread, None while there is none."""

    done: int
    total: int | None
    failed: int


@dataclass(frozen=True)
class Outcome:
    """What a run has done, earlier runs of the same command included.

    Attributes:
        images: with results.
        rows: one per image and target.
        found: of the images, those that were done by an earlier run.
        failures: images without results.
        unfinished: parts without a record, with the reason why.
        parts: of the source.
        batch_reductions: how often a batch was halved because memory did not last.
        decoder_deaths: how often a process that decodes died.
    """

    images: int
    rows: int
    found: int
    failures: tuple[Failure, ...]
    unfinished: dict[int, str]
    parts: int
    batch_reductions: int
    decoder_deaths: int

    @property
    def code(self) -> int:
        """0: every image has its results; 1: some never will, as `failures` says; 3: the run is not at its end."""
        return 3 if self.unfinished else 1 if self.failures else 0


def run(
    job: Job,
    engine: Engine = "local",
    workers: int | None = None,
    address: str | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Explain every image of a source once; what an earlier run of the same job has done is kept.

    Args:
        job: what to do.
        engine: "local" (this machine) or "ray".
        workers: processes or actors with a network each; None for one per CUDA device, or one, and with "ray" for as
            many as Ray finds room for. With "local", 0 works in this process, as it must for memory://.
        address: of a Ray cluster, for engine="ray"; None starts Ray on this machine.
        report: called as the run goes on.

    Raises:
        InputError: no such source, or the destination holds something else.
        CamError: the network or the source cannot be had, or the destination cannot be written.
    """
    for module in ("fsspec", "pyarrow"):
        import_extra(module, "icam run", "run")
    one_of("engine", engine, ENGINES)
    if engine == "local" and address is not None:
        raise InputError("address is of a Ray cluster; give engine='ray' with it.")
    if isinstance(job.method.way, Recipe):
        job.method.way.validate()
    _check_workers(job, workers, engine)
    source = open_source(job.source, job.shard, job.patience)
    network = job.network()
    if network.task not in PROBABILITY_TASKS:
        tasks = ", ".join(PROBABILITY_TASKS)
        raise InputError(f"model {job.model!r}: its task is {network.task}; a run explains classes ({tasks}).")
    job.targets(network)
    fingerprint = fingerprint_of(network)
    store = Store(job.dest)
    store.claim(job.identity(network, source))
    store.tidy()
    del network

    known, _ = read_records(store)  # a part whose record is broken is done again
    records = {number: record for number, record in known.items() if record.final}
    missing = [part for part in source.parts if part.number not in records]
    before = sum(record.images for record in records.values())
    count = _Count(source, list(records.values()), report)
    results: Generator[Record | Lost[Part]]
    if not missing:
        return _outcome(source, records, before, store)
    if engine == "ray":
        results = run_ray(job, fingerprint, missing, workers, address)
    else:
        processes = max(1, torch.cuda.device_count() if job.device in ("auto", "cuda") else 0)
        processes = processes if workers is None else workers
        results = run_parts(partial(Worker, job, fingerprint), missing, processes, count.tell)
    with closing(results):
        for result in results:
            if isinstance(result, Lost):
                result = Record(result.part.number, unfinished=result.reason, fatal=result.fatal)
            records[result.part] = result
            count.finish(result, told=engine == "local")
            if result.fatal:
                break
    return _outcome(source, records, before, store)


def _check_workers(job: Job, wanted: int | None, engine: Engine) -> None:
    least = 0 if engine == "local" else 1
    if wanted is not None and wanted < least:
        raise InputError(f"workers must be at least {least} with engine={engine!r}, but got {wanted}.")
    device_of(job.device if engine == "local" else "cpu")
    in_memory = engine == "local" and any(place.startswith("memory:") for place in (job.source, job.dest))
    if in_memory and (wanted != 0 or job.decoders):
        raise InputError(
            "memory:// is in the memory of this process: give workers=0 and decoders=0, so that no other one needs it."
        )


def _outcome(source: Source, records: dict[int, Record], before: int, store: Store) -> Outcome:
    ordered = [records[number] for number in sorted(records)]
    unreached = {part.number: "not reached" for part in source.parts if part.number not in records}
    failures = tuple(failure for record in ordered for failure in record.all_failures)
    outcome = Outcome(
        images=sum(record.images for record in ordered),
        rows=sum(shard.rows for record in ordered for shard in record.shards),
        found=before,
        failures=failures,
        unfinished={record.part: record.unfinished for record in ordered if record.unfinished} | unreached,
        parts=len(source.parts),
        batch_reductions=sum(shard.batch_reductions for record in ordered for shard in record.shards),
        decoder_deaths=sum(record.decoder_deaths for record in ordered),
    )
    lines = io.StringIO()
    rows = [(failure.key, failure.kind, failure.reason) for failure in failures]
    csv.writer(lines).writerows([("image", "kind", "reason"), *rows])
    try:
        store.write(FAILURES, lines.getvalue().encode())
    except DestinationError:
        if not outcome.unfinished:  # which would say so already
            raise
    return outcome


class _Count:
    """Counts images for `report`, and estimates how many there are from the parts that are done."""

    def __init__(self, source: Source, done: Sequence[Record], report: Callable[[Progress], None]) -> None:
        self.source, self.report = source, report
        self.parts = self.images = self.failed = 0
        for record in done:
            self._add(record)
        self.done = self.images
        self.tell(0)

    def tell(self, images: int) -> None:
        """So many images more are done."""
        self.done += images
        total = self.source.images
        if total is None and self.parts:
            total = max(self.done, round(self.images / self.parts * len(self.source.parts)))
        self.report(Progress(self.done, total, self.failed))

    def finish(self, record: Record, told: bool) -> None:
        """A part is done; its images were `told` before, or not."""
        if not record.unfinished:
            images = self._add(record)
            self.tell(0 if told else images)

    def _add(self, record: Record) -> int:
        images = sum(shard.images + len(shard.failures) for shard in record.shards)
        self.parts += 1
        self.images += images
        self.failed += len(record.all_failures)
        return images
