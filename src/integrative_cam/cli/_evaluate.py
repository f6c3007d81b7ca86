"""`icam evaluate`: methods over many photographs, in numbers with intervals; a killed run goes on where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__
from ..errors import CamError, InputError, MissingExtraError, first_line
from ..evaluate._benchmark import ALL, LOCALISATION, MAX_BOX
from ..evaluate._dataset import Sample, read_dataset, spread
from ..evaluate._summary import summarise, tidy
from ..integrations._libraries import named
from ..models import Network
from ..recipe import one_of
from ..run._pool import end_with_parent
from ..storage import written_whole
from ._explain import network_of, weights_by_model
from ._measure import measured
from ._printed import report_failures
from ._results import print_summary, write_report

TARGETS = ("top1", "label", "object")
REGIONS = ("boxes", "masks")


@dataclass(frozen=True)
class Settings:
    """What makes two runs comparable; kept in the manifest.

    `weights` are MODEL=FILE pairs, or a file for the only model. `target` None stands for "object" where the data set
    has boxes or masks, else for "top1"; `regions` None for the boxes, where there are any. `resolved` decides.
    """

    dataset: str
    models: tuple[str, ...]
    weights: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    target: str | None
    regions: str | None
    limit: int | None
    steps: int
    seed: int
    integrative_cam: str = __version__
    torch: str = torch.__version__
    python: str = platform.python_version()


def run_evaluation(settings: Settings, out: Path, reference: str, processes: int) -> int:
    """Measure what is missing, write tables, plots and report, print the summary; 0, or 1 if any image failed."""
    _need_extra()
    for name in settings.methods:
        named(name)
    for metric in settings.metrics:
        one_of("metric", metric, ALL)
    if reference not in settings.methods:
        raise InputError(f"--reference {reference} is not among --methods {', '.join(settings.methods)}.")
    settings, samples = resolved(settings, read_dataset(Path(settings.dataset)))
    weights = weights_by_model(settings.weights, settings.models)
    _claim(out, settings)
    failures = _measure(settings, samples, weights, out, processes)
    rows, left_out = _collect(out)
    for reason, count in left_out.items():
        print(f"Left out: {count} x {reason}")
    if rows:
        frame = tidy(rows)
        frame.write_parquet(out / "results.parquet")
        frame.write_csv(out / "results.csv")
        lines = summarise(frame, reference, settings.seed)
        print_summary(lines, reference)
        write_report(out, settings, reference, lines, frame, samples, weights, failures, left_out)
        print("Written:")
        for name in ("report.html", "results.parquet", "results.csv", "plots", "manifest.json"):
            print(f"  {out / name}")
    else:
        print("Nothing could be measured.")
    return report_failures(failures, len(samples) * len(settings.models))


def resolved(settings: Settings, samples: Sequence[Sample]) -> tuple[Settings, list[Sample]]:
    """What is explained and where it is, decided by the data set where it was left open; and the samples to measure.

    Raises:
        InputError: the data set does not have what the target or a metric needs.
    """
    has = {kind: [sample for sample in samples if getattr(sample, kind)] for kind in REGIONS}
    target = settings.target or ("object" if any(has.values()) else "top1")
    one_of("--target", target, dict.fromkeys(TARGETS))
    where = [metric for metric in settings.metrics if metric in LOCALISATION]
    if target != "object":
        if where or settings.regions:
            raise InputError(
                f"{', '.join(where) or '--regions'} needs to know where the explained class is: give a data set with "
                "Annotations/ or SegmentationClass*/ beside JPEGImages/, and no other --target than object."
            )
        if target == "label" and not any(sample.label for sample in samples):
            raise InputError(
                f"--target label: {settings.dataset} has no labels; give a CSV file with a column `label`."
            )
        return replace(settings, target=target), spread(samples, settings.limit)
    regions = settings.regions or ("boxes" if has["boxes"] else "masks")
    one_of("--regions", regions, dict.fromkeys(REGIONS))
    if not has[regions]:
        wanted = settings.regions or " or ".join(REGIONS)
        raise InputError(f"--target object: {settings.dataset} has no {wanted}, as Pascal VOC keeps them.")
    if MAX_BOX in where and regions != "boxes":
        raise InputError(f"{MAX_BOX} compares with boxes, but the regions are {regions}.")
    return replace(settings, target=target, regions=regions), spread(has[regions], settings.limit)


def _claim(out: Path, settings: Settings) -> None:
    """Write the manifest, or check that the run begun in `out` had the same settings."""
    wanted = json.loads(json.dumps(asdict(settings)))
    manifest = out / "manifest.json"
    if manifest.is_file():
        begun = _stored(manifest)
        different = [name for name in wanted if begun.get(name) != wanted[name]]
        if different:
            raise InputError(
                f"{out} holds a run with another {', '.join(different)}; continue it as it began, or choose "
                "another --out."
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} exists and holds no evaluation; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    written_whole(manifest, json.dumps(wanted, indent=2) + "\n")


@dataclass(frozen=True)
class Job:
    """One photograph under one network, and the file that keeps what was found."""

    model: str
    weights: Path | None
    sample: Sample
    settings: Settings
    part: Path


Done = tuple[Job, str | None]
"""A job, and why it failed if it did."""


def _measure(
    settings: Settings, samples: Sequence[Sample], weights: Mapping[str, Path], out: Path, processes: int
) -> list[tuple[Path, str]]:
    jobs = [
        Job(name, weights.get(name), sample, settings, out / "parts" / _slug(name) / f"{number:06d}.json")
        for name in settings.models
        for number, sample in enumerate(samples)
    ]
    missing = [job for job in jobs if not job.part.is_file()]
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failures: list[tuple[Path, str]] = []
    with Progress(*columns, console=Console(stderr=True)) as progress, _workers(processes) as run:
        bars = {name: progress.add_task(name, total=len(samples)) for name in settings.models}
        for job in jobs:
            progress.advance(bars[job.model], job.part.is_file())
        for job, failure in run(_write_part, missing):
            if failure:
                failures.append((job.sample.path, failure))
            progress.advance(bars[job.model])
    return failures


@contextmanager
def _workers(processes: int) -> Iterator[Callable[[Callable[[Job], Done], Sequence[Job]], Iterable[Done]]]:
    """How to do jobs: one after the other, or in processes that share the processor's threads."""
    _network.cache_clear()
    if processes == 1:
        yield map
    else:
        threads = max(1, torch.get_num_threads() // processes)
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _prepare, (threads,))
        try:
            yield pool.map
        except BrokenProcessPool:
            raise CamError(
                "A process that measured died, perhaps for want of memory. What was measured is kept: run the same "
                "command again to continue, with fewer --processes if it dies again."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)


def _write_part(job: Job) -> Done:
    network = _network(job.model, job.weights)
    try:
        found = measured(network, job.model, job.sample, job.settings)
    except (CamError, RuntimeError) as error:
        return job, first_line(error)
    written_whole(job.part, json.dumps(found))
    return job, None


@lru_cache(maxsize=1)
def _network(name: str, weights: Path | None) -> Network:
    return network_of(name, weights, None)


def _need_extra() -> None:
    # Asked first: measuring takes hours.
    try:
        import jinja2  # noqa: F401
        import polars  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("icam evaluate", "evaluate", error) from error


def _collect(out: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    """All rows, and how often each reason left an object out."""
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for file in sorted((out / "parts").rglob("*.json")):
        part = _stored(file)
        if not isinstance(part.get("rows"), list) or not isinstance(part.get("left_out"), list):
            raise InputError(f"{file}: is not what this command wrote; remove it, and run the command again.")
        rows += part["rows"]
        left_out.update(part["left_out"])
    return rows, left_out


def _stored(file: Path) -> dict[str, Any]:
    """The JSON object that an earlier run wrote."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: cannot be read ({first_line(error)}); remove it, and run the command again."
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: is not what this command wrote; remove it, and run the command again.")
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
