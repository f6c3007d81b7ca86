"""Methods measured over a data set: rows, means with intervals, plots and a report, resumable at any moment."""

from __future__ import annotations

import io
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._choices import DEFAULT_METHODS, DEFAULT_METRICS, DEFAULT_NETWORK, NOISE_CONTROLS
from .._version import __version__
from ..errors import CamError, ExplanationError, InputError, import_extra
from ..integrations._libraries import named
from ..recipe import one_of
from ..run import Progress
from ..run._pool import Lost, run_parts
from ..run._store import Store, read_object
from ._benchmark import ALL, GRID, LOCALISATION, MAX_BOX
from ._cells import CELL
from ._dataset import Sample, read_dataset, spread
from ._measure import Measured, Part, Settings, start_measuring
from ._report import write_report
from ._summary import MethodScore, mean_ranks, summarise, tidy

if TYPE_CHECKING:
    import polars as pl

TARGETS = ("top1", "label", "object")
REGIONS = ("boxes", "masks")
CANDIDATES = 16
"""How many photographs are tried for the mosaics of grid pointing."""
PARTS = "parts"
FILES = ("report.html", "results.parquet", "results.csv", "plots", "manifest.json")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_dataset` measured and wrote.

    Attributes:
        out: the folder (or URL) with `FILES`.
        settings: what was asked for, as in manifest.json.
        reference: the method that the others are compared with.
        rows: one row per network, photograph, object, method and metric, with the columns model, image, object,
            target, method, metric and value.
        scores: one `MethodScore` per network, metric and method, and over all networks if there are several.
        failures: photographs that could not be measured, with the reason; again for each network.
        left_out: reasons why objects in photographs were not measured, with their number.
        notes: what is to know about the networks, such as a preprocessing that was assumed.
        attempted: how many photographs, once per network, were to be measured.
    """

    out: str
    settings: Mapping[str, Any]
    reference: str
    rows: pl.DataFrame
    scores: tuple[MethodScore, ...]
    failures: tuple[tuple[Path, str], ...]
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    attempted: int

    def table(self) -> pl.DataFrame:
        """`scores` as a table: per network (None: all), metric and method the number of images and three intervals.

        `mean`; `difference`, the reference minus the method, image by image; and `win_rate`, the share of images on
        which the reference is better, ties counted half. Each comes with its 95 % bootstrap interval, `_low`, `_high`.
        """
        import polars

        intervals = ("mean", "difference", "win_rate")
        rows = []
        for score in self.scores:
            row = {"model": score.model, "metric": score.metric, "method": score.method, "images": score.mean.n}
            for name in intervals:
                interval = getattr(score, name)
                for suffix, end in (("", "mean"), ("_low", "low"), ("_high", "high")):
                    row[f"{name}{suffix}"] = getattr(interval, end, None)
            rows.append(row)
        return polars.DataFrame(rows, infer_schema_length=None)

    def mean_ranks(self, model: str | None = None) -> dict[str, float]:
        """Each method's rank by its mean, 1 for the best, averaged over the metrics that have a better side.

        `model` names a network; None stands for the only one, or for all networks together.
        """
        models = {score.model for score in self.scores}
        return mean_ranks(self.scores, next(iter(models)) if len(models) == 1 else model)


def evaluate_dataset(
    dataset: str | Path,
    models: Sequence[str] | Mapping[str, str | Path | None] = (DEFAULT_NETWORK,),
    methods: Sequence[str] = (*DEFAULT_METHODS, *NOISE_CONTROLS),
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    out: str | Path,
    target: str | None = None,
    regions: str | None = None,
    limit: int | None = None,
    steps: int = 16,
    seed: int = 0,
    cells: int = CELL,
    reference: str = "integrative",
    processes: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Evaluation:
    """Measure methods over many photographs: `icam evaluate` in Python.

    What is measured is written at once: after an interruption, even by kill -9, the same call continues.

    >>> evaluation = evaluate_dataset("photos", methods=["integrative", "gradcam"], out="evaluation")
    >>> evaluation.table()                   # means, paired differences, win rates, with their intervals
    >>> evaluation.rows                      # one value per photograph, method and metric

    Args:
        dataset: a folder of photographs; a CSV file with a column `file`, and `label` if there are labels; or a
            folder with JPEGImages/ beside Annotations/ or SegmentationClass*/, as in Pascal VOC.
        models: names of networks, as `models.load` takes them; or a mapping from names to files of weights.
        methods: names from `list_methods()`, or of other libraries, such as "grad-cam:HiResCAM@stages";
            with "-times-noise" behind it, the control whose map is multiplied by noise.
        metrics: names from `METRICS` and, where the data set has boxes or masks, `LOCALISATION`; for these the
            controls center, uniform and random are measured too.
        out: folder for the results, or a URL that fsspec writes to.
        target: what is explained: "top1", the network's top class; "label"; or "object", each class of objects that
            has boxes or masks. None stands for "object" where the data set has any, else for "top1".
        regions: "boxes" or "masks"; None for boxes where there are any.
        limit: measure at most this many photographs, taken at equal distances.
        steps: of insertion and deletion.
        seed: of ROAD's noise, random sets of cells, redrawn layers and the bootstrap.
        cells: pixels per side of a cell, for the metrics by cells.
        reference: the method that the others are compared with.
        processes: how many photographs are measured at once, each by a process of its own.
        progress: called with the number of photographs, counted once per network, that are done.

    Raises:
        InputError: an argument cannot be used, the data set lacks what the target or a metric needs, or `out` holds
            other results.
        RecipeError: an unknown method or metric.
        ExplanationError: what an earlier call wrote cannot be read.
        CamError: a network cannot be loaded, the processes die, or `out` cannot be written.
        MissingExtraError: the extra `evaluate` is not installed.
    """
    for module in ("jinja2", "polars", "scipy"):  # at once, not after hours of measuring
        import_extra(module, "icam evaluate", "evaluate")
    for name in methods:
        named(name)
    for metric in metrics:
        one_of("metric", metric, ALL)
    if reference not in methods:
        raise InputError(f"reference {reference} is not among the methods, {', '.join(methods)}.")
    if processes < 1:
        raise InputError(f"processes must be at least 1, but got {processes}.")
    weights = models if isinstance(models, Mapping) else dict.fromkeys(models)
    asked = Settings(
        str(dataset), {name: str(file or "") for name, file in weights.items()}, tuple(methods), tuple(metrics),
        target, regions, limit, steps, seed, cells, __version__, torch.__version__, platform.python_version(),
    )  # fmt: skip
    everything = read_dataset(Path(dataset))
    settings, samples = _resolved(asked, everything)
    store = Store(str(out))
    store.claim(asdict(settings), "evaluation")
    store.tidy()

    others = _others(everything) if GRID in metrics else {}
    parts = [
        Part(name, sample, f"{PARTS}/{number}/{index:06d}.json", others.get(sample.path, ()))
        for number, name in enumerate(settings.models)
        for index, sample in enumerate(samples)
    ]
    failures, notes = _measure_missing(settings, store, parts, processes, progress)
    rows, left_out = _stored_rows(store, len(settings.models))
    frame = tidy(rows)
    evaluation = Evaluation(
        store.place, asdict(settings), reference, frame, tuple(summarise(frame, reference, seed)), failures, left_out,
        notes, len(parts),
    )  # fmt: skip
    if rows:
        for name, write in (("results.parquet", frame.write_parquet), ("results.csv", frame.write_csv)):
            content = io.BytesIO()
            write(content)
            store.write(name, content.getvalue())
        write_report(evaluation, store, samples)
    return evaluation


def _resolved(settings: Settings, samples: Sequence[Sample]) -> tuple[Settings, list[Sample]]:
    """The settings with target and regions chosen by the data set where they are None; and the samples to measure."""
    having = {kind: [sample for sample in samples if getattr(sample, kind)] for kind in REGIONS}
    target = settings.target or ("object" if any(having.values()) else "top1")
    one_of("target", target, dict.fromkeys(TARGETS))
    where = [metric for metric in settings.metrics if metric in LOCALISATION]
    if target != "object":
        if where or settings.regions:
            raise InputError(
                f"{', '.join(where) or 'regions'} needs to know where the explained class is: give a data set with "
                "Annotations/ or SegmentationClass*/ beside JPEGImages/, and no target other than object."
            )
        if target == "label" and not any(sample.label for sample in samples):
            raise InputError(f"target label: {settings.dataset} has no labels; give a CSV file with a column `label`.")
        return replace(settings, target=target), spread(samples, settings.limit)
    regions = settings.regions or ("boxes" if having["boxes"] else "masks")
    one_of("regions", regions, dict.fromkeys(REGIONS))
    if not having[regions]:
        wanted = settings.regions or " or ".join(REGIONS)
        raise InputError(f"target object: {settings.dataset} has no {wanted}, as Pascal VOC keeps them.")
    if MAX_BOX in where and regions != "boxes":
        raise InputError(f"{MAX_BOX} compares with boxes, but the regions are {regions}.")
    return replace(settings, target=target, regions=regions), spread(having[regions], settings.limit)


def _others(samples: Sequence[Sample]) -> dict[Path, tuple[Sample, ...]]:
    """For each photograph those that follow it, as many as may be needed to find three for its mosaic."""
    ring = [*samples, *samples[:CANDIDATES]]
    count = min(CANDIDATES, len(samples) - 1)
    return {sample.path: tuple(ring[place : place + count]) for place, sample in enumerate(samples, 1)}


def _measure_missing(
    settings: Settings, store: Store, parts: Sequence[Part], processes: int, progress: Callable[[Progress], None]
) -> tuple[tuple[tuple[Path, str], ...], tuple[str, ...]]:
    """Measure the parts that are not stored yet; which of them failed and why, and the networks' notes."""
    stored = {
        f"{PARTS}/{number}/{name}"
        for number in range(len(settings.models))
        for name in store.sizes(f"{PARTS}/{number}")
    }
    missing = [part for part in parts if part.file not in stored]
    failures: list[tuple[Path, str]] = []
    notes: dict[str, None] = {}
    done = len(parts) - len(missing)
    progress(Progress(done, len(parts), 0))
    start = partial(start_measuring, settings, store.place)
    with closing(run_parts(start, missing, 0 if processes == 1 else processes)) as results:
        for result in results:
            if isinstance(result, Lost):
                if result.fatal:
                    raise CamError(result.reason if result.exit_code is None else _DIED)
                result = Measured(result.part, result.reason, ())
            if result.failure:
                failures.append((result.part.sample.path, result.failure))
            notes |= dict.fromkeys(result.notes)
            done += 1
            progress(Progress(done, len(parts), len(failures)))
    return tuple(failures), tuple(notes)


_DIED = (
    "A process that measured died, perhaps for want of memory. What was measured is kept: repeat the call to continue, "
    "with fewer processes if it dies again."
)


def _stored_rows(store: Store, models: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """All rows, and how often an object was left out for each reason."""
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    advice = "remove it, and run the command again"
    for number in range(models):
        folder = f"{PARTS}/{number}"
        for name, content in store.contents(folder).items():
            path = store.path(f"{folder}/{name}")
            part = read_object(content, path, advice)
            if not isinstance(part.get("rows"), list) or not isinstance(part.get("left_out"), list):
                raise ExplanationError(f"{path}: is not what this package wrote; {advice}.")
            rows += part["rows"]
            left_out.update(part["left_out"])
    return rows, left_out
