"""`icam evaluate`: methods over many photographs, in numbers with intervals; a killed run goes on where it stopped."""

from __future__ import annotations

import csv
import json
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import __version__
from ..errors import CamError, InputError, MissingExtraError, first_line
from ..evaluate import Interval, bootstrap_mean, paired_difference
from ..evaluate.benchmark import METRICS, evaluate
from ..methods import method
from ..models import Network, load, read_image
from ..recipe import one_of
from ..storage import written_whole
from .report import report_failures

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class Settings:
    """What makes two runs comparable; kept in the manifest. `weights` are MODEL=FILE pairs."""

    dataset: str
    models: tuple[str, ...]
    weights: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    limit: int | None
    steps: int
    seed: int
    integrative_cam: str = __version__
    torch: str = torch.__version__
    python: str = platform.python_version()


def run_evaluation(settings: Settings, out: Path, reference: str) -> int:
    """Measure what is missing, write the tables, print the summary; 0, or 1 if any image failed."""
    _need_polars()
    for name in settings.methods:
        method(name)
    for metric in settings.metrics:
        one_of("metric", metric, METRICS)
    if reference not in settings.methods:
        raise InputError(f"--reference {reference} is not among --methods {', '.join(settings.methods)}.")
    images = photographs(Path(settings.dataset), settings.limit)
    weights = dict(_model_and_file(pair) for pair in settings.weights)
    _claim(out, settings)
    failures = _measure(settings, images, weights, out)
    frame = _collect(out)
    frame.write_parquet(out / "results.parquet")
    frame.write_csv(out / "results.csv")
    print_summary(frame, settings, reference)
    print(f"Written:\n  {out / 'results.parquet'}\n  {out / 'results.csv'}\n  {out / 'manifest.json'}")
    return report_failures(failures, len(images) * len(settings.models))


def photographs(dataset: Path, limit: int | None) -> list[Path]:
    """The images of a folder, or of a CSV's column `file`; of more than `limit`, as many at even distances.

    Raises:
        InputError: no such dataset, or no image in it.
    """
    if dataset.is_dir():
        found = sorted(path for path in dataset.rglob("*") if path.suffix.lower() in SUFFIXES)
    elif dataset.is_file():
        with dataset.open(newline="") as file:
            rows = csv.DictReader(file)
            if "file" not in (rows.fieldnames or ()):
                raise InputError(f"{dataset}: needs a column `file`, but has {', '.join(rows.fieldnames or ())}.")
            found = [dataset.parent / row["file"] for row in rows]
    else:
        raise InputError(f"{dataset}: no such folder or CSV file.")
    if not found:
        raise InputError(f"{dataset}: holds no image ({', '.join(sorted(SUFFIXES))}).")
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def _claim(out: Path, settings: Settings) -> None:
    """Write the manifest, or check that the run begun in `out` had the same settings."""
    wanted = json.loads(json.dumps(asdict(settings)))
    manifest = out / "manifest.json"
    if manifest.is_file():
        begun = json.loads(manifest.read_text())
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


def _measure(
    settings: Settings, images: Sequence[Path], weights: Mapping[str, Path], out: Path
) -> list[tuple[Path, str]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failures: list[tuple[Path, str]] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in settings.models:
            task = progress.add_task(name, total=len(images))
            network: Network | None = None
            for number, path in enumerate(images):
                part = out / "parts" / _slug(name) / f"{number:06d}.json"
                if not part.is_file():
                    network = network or load(name, weights.get(name))
                    try:
                        rows = _rows(network, name, path, settings)
                        written_whole(part, json.dumps(rows))
                    except (CamError, RuntimeError) as error:
                        failures.append((path, first_line(error)))
                progress.advance(task)
    return failures


def _rows(network: Network, model: str, path: Path, settings: Settings) -> list[dict[str, Any]]:
    view = network.preprocessing(read_image(path))
    image = _relative(path, Path(settings.dataset))
    rows = []
    with warnings.catch_warnings():
        # A blank map is no accident here: its metrics show it.
        warnings.filterwarnings("ignore", message="The map of image")
        for name in settings.methods:
            found = evaluate(network.model, view.tensor, method(name), settings.metrics, settings.steps, settings.seed)
            rows += [
                {"model": model, "image": image, "method": name, "metric": metric, "value": value.item()}
                for metric, value in found.items()
            ]
    return rows


def _relative(path: Path, dataset: Path) -> str:
    folder = dataset if dataset.is_dir() else dataset.parent
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _need_polars() -> None:
    # Asked first: measuring takes hours.
    try:
        import polars  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("icam evaluate", "evaluate", error) from error


def _collect(out: Path) -> pl.DataFrame:
    import polars

    parts = sorted((out / "parts").rglob("*.json"))
    return polars.DataFrame(
        [row for part in parts for row in json.loads(part.read_text())],
        schema={"model": str, "image": str, "method": str, "metric": str, "value": float},
    )


def print_summary(frame: pl.DataFrame, settings: Settings, reference: str) -> None:
    """Per network and pooled: each metric's mean for each method, and the reference's paired advantage."""
    console = Console()
    for model in (*settings.models, None) if len(settings.models) > 1 else settings.models:
        ours = {metric: _values(frame, model, reference, metric) for metric in settings.metrics}
        count = len(next(iter(ours.values())))
        if not count:
            continue
        title = f"{model or 'all networks'}, n = {count}: mean [95 % bootstrap interval]"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("metric", "method", "mean", f"{reference} minus it"):
            table.add_column(column)
        for metric in settings.metrics:
            for name in settings.methods:
                values = _values(frame, model, name, metric)
                mean = _shown(bootstrap_mean(values, seed=settings.seed))
                ahead = ""
                if name != reference:
                    ahead = _shown(paired_difference(ours[metric], values, seed=settings.seed), "+")
                table.add_row(_titled(metric) if name == settings.methods[0] else "", name, mean, ahead)
            table.add_section()
        console.print(table)


def _titled(metric: str) -> str:
    return metric + {True: " ↑", False: " ↓", None: ""}[METRICS[metric].higher_is_better]


def _values(frame: pl.DataFrame, model: str | None, name: str, metric: str) -> torch.Tensor:
    import polars

    chosen = frame.filter((polars.col("method") == name) & (polars.col("metric") == metric))
    if model is not None:
        chosen = chosen.filter(polars.col("model") == model)
    return torch.tensor(chosen.sort("model", "image")["value"].to_list(), dtype=torch.float64)


def _shown(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _model_and_file(pair: str) -> tuple[str, Path]:
    name, found, file = pair.rpartition("=")
    if not found:
        raise InputError(f"--weights {pair}: must be MODEL=FILE.")
    return name, Path(file)
