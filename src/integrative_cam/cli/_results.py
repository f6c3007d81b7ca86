"""What `icam evaluate` shows: tables on the terminal, plots as files, the report with a few examples."""

from __future__ import annotations

import base64
import io
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image
from rich import box
from rich.console import Console
from rich.table import Table

from ..evaluate import Interval
from ..evaluate._benchmark import ALL
from ..evaluate._dataset import Sample
from ..evaluate._summary import Line, mean_ranks
from ..integrations._libraries import named
from ..models import load, read_image
from ..render import overlay
from ..render._colours import INK
from ..render._plots import Dot, dot_plot, svg
from ..reports import Example, Plot, Report, evaluation_html
from ..storage import written_whole
from ._measure import CONTROLS

if TYPE_CHECKING:
    import polars as pl

    from ._evaluate import Settings

EXAMPLES = 3
"""At either end of the differences; each is explained twice more."""
SIDE = 240
"""Of an example's pictures, in pixels."""


def print_summary(lines: Sequence[Line], reference: str) -> None:
    """Per network and pooled: each metric's mean for each method, the reference's advantage, how often it wins."""
    # Narrower tables would break intervals in two.
    console = Console(width=max(100, Console().width), markup=False)
    for model in dict.fromkeys(line.model for line in lines):
        chosen = [line for line in lines if line.model == model]
        title = f"{model or 'all networks'}, n = {chosen[0].mean.n}: mean [95 % bootstrap interval]"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("metric", "method", "mean", f"{reference} minus it", "wins"):
            table.add_column(column)
        for metric in dict.fromkeys(line.metric for line in chosen):
            rows = [line for line in chosen if line.metric == metric]
            for line in rows:
                table.add_row(
                    titled(metric) if line is rows[0] else "",
                    line.method,
                    _shown(line.mean),
                    _shown(line.ahead, "+") if line.ahead else "",
                    f"{line.wins.mean:.0%}" if line.wins else "",
                )
            table.add_section()
        console.print(table)
        ranks = sorted(mean_ranks(lines, model).items(), key=lambda pair: pair[1])
        if len(ranks) > 1:
            shown = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks)
            console.print(f"Mean rank: {shown}\n", highlight=False, soft_wrap=True)


def titled(metric: str) -> str:
    """With an arrow to the better side."""
    return metric + {True: " ↑", False: " ↓", None: ""}[ALL[metric].higher_is_better]


def _shown(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def write_report(
    out: Path,
    settings: Settings,
    reference: str,
    lines: Sequence[Line],
    frame: pl.DataFrame,
    samples: Sequence[Sample],
    weights: Mapping[str, Path],
    failures: Sequence[tuple[Path, str]],
    left_out: Mapping[str, int],
) -> None:
    """Write plots/ and report.html."""
    title, examples = _examples(settings, reference, lines, frame, samples, weights)
    report = Report(
        reference=reference,
        settings=asdict(settings),
        lines=lines,
        plots=_plots(out / "plots", lines, reference),
        examples=examples,
        examples_title=title,
        failures=[reason if str(path) in reason else f"{path}: {reason}" for path, reason in failures],
        left_out=left_out,
    )
    written_whole(out / "report.html", evaluation_html(report))


def _plots(folder: Path, lines: Sequence[Line], reference: str) -> list[Plot]:
    """Per metric the means and the differences, as PNG and SVG in `folder`; what was there before goes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    plots = []
    for metric in dict.fromkeys(line.metric for line in lines):
        chosen = [line for line in lines if line.metric == metric]
        means = [(line, line.mean) for line in chosen]
        differences = [(line, line.ahead) for line in chosen if line.ahead]
        for kind, label, pairs in (
            ("mean", titled(metric), means),
            ("difference", f"{titled(metric)}: {reference} minus the method", differences),
        ):
            if pairs:
                dots = [Dot(line.method, line.model, each.mean, each.low, each.high) for line, each in pairs]
                figure = dot_plot(dots, label, zero=kind == "difference")
                figure.savefig(folder / f"{metric}-{kind}.png", dpi=150, metadata={"Software": None})
                (folder / f"{metric}-{kind}.svg").write_text(svg(figure), "utf-8")
                plots.append(Plot(label, svg(figure, transparent=True), INK))
    return plots


def _examples(
    settings: Settings,
    reference: str,
    lines: Sequence[Line],
    frame: pl.DataFrame,
    samples: Sequence[Sample],
    weights: Mapping[str, Path],
) -> tuple[str, list[Example]]:
    """Where the reference is furthest ahead of and behind its strongest rival, by the first metric and network.

    They are explained again, so that a run of thousands keeps no pictures.
    """
    import polars

    model = settings.models[0]
    metric = next((name for name in settings.metrics if ALL[name].higher_is_better is not None), None)
    rivals = [
        line
        for line in lines
        if (line.model, line.metric) == (model, metric) and line.method not in (reference, *CONTROLS)
    ]
    if metric is None or not rivals:
        return "", []
    sign = 1 if ALL[metric].higher_is_better else -1
    rival = max(rivals, key=lambda line: sign * line.mean.mean).method
    chosen = frame.filter((polars.col("model") == model) & (polars.col("metric") == metric))
    key = ["image", "object", "target"]
    ours, theirs = (
        chosen.filter(polars.col("method") == name).select(*key, polars.col("value").alias(alias))
        for name, alias in ((reference, "ours"), (rival, "theirs"))
    )
    both = ours.join(theirs, on=key, nulls_equal=True, maintain_order="left")
    ranked = both.sort(sign * (polars.col("theirs") - polars.col("ours")), maintain_order=True)
    rows = ranked.rows(named=True)
    picked = rows[:EXAMPLES] + rows[max(EXAMPLES, len(rows) - EXAMPLES) :]
    network = load(model, weights.get(model))
    known = {sample.name: sample for sample in samples}
    examples = []
    for row in picked:
        sample = known[row["image"]]
        view = network.preprocessing(read_image(sample.path))
        pictures = {"photograph": view.picture}
        for name in (reference, rival):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The map of image")
                explanation = named(name)(network.model, view.tensor, row["target"])
            value = row["ours"] if name == reference else row["theirs"]
            pictures[f"{name} {value:.3f}"] = overlay(explanation.map[0], view.picture)
        assert explanation.target is not None
        what = f"{row['object']}, as " if row["object"] else ""
        caption = f"{row['image']}: {what}{network.label(int(explanation.target[0]))}"
        examples.append(Example(caption, {title: _uri(picture) for title, picture in pictures.items()}))
    title = (
        f"{titled(metric)} under {model}: where {reference} is furthest ahead of {rival}, the strongest other method, "
        "then where it is furthest behind."
    )
    return title, examples


def _uri(picture: Image) -> str:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}"
