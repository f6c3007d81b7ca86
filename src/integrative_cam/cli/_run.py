"""`icam run`: a whole data set, resumable, on this machine or on a Ray cluster."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ..models import DEFAULT
from ..run import Job, Outcome, Progress, RetryPolicy
from ..run import run as conduct
from . import _options as options

SHOWN = 20
"""Failures that are named on standard error; all are in the file."""
THUMBNAIL = 128


def run(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of images, a CSV or Parquet list with a column named file, WebDataset tars (a file, a "
            "folder or a pattern with *), Parquet files with images inside, or a data set that Hugging Face's "
            "save_to_disk wrote; a path, or a URL that fsspec reads (s3://, gs://, https://, ...)."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the results.")],
    model: options.Model = DEFAULT,
    weights: options.Weights = None,
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", help="top1, top3, ... (the network's favourites, a row each), or a class index or name."
        ),
    ] = "top1",
    threshold: Annotated[
        float, typer.Option(help="Share of the map's maximum above which its area and box count.")
    ] = 0.5,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help=f"Keep a small overlay, {THUMBNAIL} pixels, with each map.")
    ] = False,
    method: options.Method = "integrative",
    engine: Annotated[str, typer.Option(help="local (this machine) or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: of the cluster, or auto. Without it, Ray starts here.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes with a network each; by default one per GPU, or one; with ray, as many as have room.",
            min=0,
        ),
    ] = None,
    decoders: Annotated[int, typer.Option(help="Processes per worker that read and decode.", min=0)] = 1,
    batch: Annotated[int, typer.Option(help="Images that a network takes at once; halved where memory ends.")] = 16,
    shard: Annotated[int, typer.Option(help="Images that are written at once, and lost at most by a kill.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Of the network's arithmetic: float32, bfloat16 or float16 (autocast)."),
    ] = "float32",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer of the source.")] = 30.0,
    attempts: Annotated[int, typer.Option(help="How often to ask the source, with growing pauses.")] = 4,
    taps: options.TapChoice = None,
    readout: options.Readout = None,
    aggregation: options.AggregationChoice = None,
    negative_share: options.NegativeShare = None,
    bias: options.BiasChoice = None,
    bias_share: options.BiasShare = None,
    weighting: options.WeightingChoice = None,
    weight_exponent: options.WeightExponent = None,
    path_exponent: options.PathExponent = None,
    stride_exponent: options.StrideExponent = None,
    stage_share: options.StageShare = None,
    signed: options.Signed = None,
    fusion: options.FusionChoice = None,
    gamma: options.Gamma = None,
    debug: options.Debug = False,
) -> None:
    """Explain a whole data set: a table with a row per image and target, and all maps.

    Run the same command again after an interruption, whatever it was, and it goes on where it stopped.

    icam run photos/ --out results

    In Python, integrative_cam.run.Results("results") reads tables and maps back. For overlays and a report to look
    through, see icam explain and icam report.

    Exit code 0: every image has its results; 1: all was tried, but some images failed, as failures.csv says; 2: the
    command could not be carried out; 3: not at its end, run it again.
    """
    job = Job(
        source=source,
        dest=out,
        model=model,
        method=options.chosen_method(context),
        weights=weights.resolve() if weights else None,
        target=target,
        threshold=threshold,
        shard=shard,
        thumbnail=THUMBNAIL if thumbnails else 0,
        batch=batch,
        decoders=decoders,
        device=device,
        precision=precision,
        patience=RetryPolicy(timeout, attempts),
    )
    with _progress() as report:
        outcome = conduct(job, engine, workers, address, report)  # type: ignore[arg-type]
    raise typer.Exit(_told(outcome, job))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "- images/s")


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bars = Bars(*columns, console=Console(stderr=True))
    begun = False

    def report(progress: Progress) -> None:
        nonlocal begun
        if not begun:
            # Not earlier: an error before the first image is told alone; and what an earlier run has done must not
            # count as speed.
            bars.start()
            bars.add_task("Explaining", completed=progress.done, total=progress.total)
            begun = True
        failed = f", {progress.failed} failed" if progress.failed else ""
        (bar,) = bars.task_ids
        bars.update(bar, completed=progress.done, total=progress.total, description=f"Explaining{failed}")

    try:
        yield report
    finally:
        if begun:
            bars.stop()


def _told(outcome: Outcome, job: Job) -> int:
    """Print what became of the run; its exit code."""
    before = f", {outcome.found} of them by an earlier run" if outcome.found else ""
    print(f"{outcome.images} images explained{before}: {outcome.rows} rows in {job.dest}")
    if outcome.batch_reductions:
        print(f"Batches halved because memory ran out: {outcome.batch_reductions}. A smaller --batch avoids that.")
    if outcome.decoder_deaths:
        print(f"Decoding processes that died and were replaced: {outcome.decoder_deaths}")
    for failure in outcome.failures[:SHOWN]:
        print(f"icam: {failure.key}: {failure.reason}", file=sys.stderr)
    if len(outcome.failures) > SHOWN:
        print(f"icam: ... and {len(outcome.failures) - SHOWN} more", file=sys.stderr)
    if outcome.failures:
        kinds = Counter(failure.kind for failure in outcome.failures)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        again = any(failure.passing for failure in outcome.failures)
        hint = " The same command tries again those that may be had another time." if again else ""
        print(f"icam: {len(outcome.failures)} failed ({counts}); see {job.dest}/failures.csv.{hint}", file=sys.stderr)
    if outcome.unfinished:
        for reason in dict.fromkeys(reason for reason in outcome.unfinished.values() if reason != "not reached"):
            print(f"icam: {reason}", file=sys.stderr)
        print(
            f"icam: {len(outcome.unfinished)} of {outcome.parts} parts are not finished; run the same command again "
            "to continue.",
            file=sys.stderr,
        )
    return outcome.code
