"""The page of an evaluation: tables, plots, examples, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..evaluate._benchmark import ALL
from ..evaluate._summary import Line, mean_ranks
from ..render._templates import environment


@dataclass(frozen=True)
class Plot:
    """A metric's plot as SVG in which `ink` is the colour of the text."""

    title: str
    svg: str
    ink: str


@dataclass(frozen=True)
class Example:
    """One photograph: a caption, and pictures by title as data URIs."""

    caption: str
    pictures: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    reference: str
    settings: Mapping[str, Any]
    lines: Sequence[Line]
    plots: Sequence[Plot]
    examples: Sequence[Example]
    examples_title: str
    failures: Sequence[str]
    left_out: Mapping[str, int]


def evaluation_html(report: Report) -> str:
    """The evaluation as one HTML page that loads nothing: styles, script, plots and pictures are inside.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    pages = environment("integrative_cam.reports")
    pages.filters["interval"] = lambda interval: f"[{interval.low:.3f}, {interval.high:.3f}]"
    plots = [(plot.title, _inlined(plot)) for plot in report.plots]
    return pages.get_template("evaluation.html.jinja").render(
        report=report,
        name=PurePath(str(report.settings["dataset"])).name,
        unit="object" if report.settings["target"] == "object" else "photograph",
        networks=_networks(report),
        meanings={name: ALL[name].meaning for name in dict.fromkeys(line.metric for line in report.lines)},
        plots=plots,
    )


def _networks(report: Report) -> list[dict[str, Any]]:
    """Per network, all of them first: the metrics, and a row of cells per method."""
    models = list(dict.fromkeys(line.model for line in report.lines))
    found = []
    for model in sorted(models, key=lambda name: name is not None):
        lines = [line for line in report.lines if line.model == model]
        metrics = list(dict.fromkeys(line.metric for line in lines))
        cells = {(line.method, line.metric): line for line in lines}
        ranks = mean_ranks(report.lines, model)
        rows = [
            {"method": method, "rank": ranks.get(method), "cells": [cells.get((method, metric)) for metric in metrics]}
            for method in dict.fromkeys(line.method for line in lines)
        ]
        found.append(
            {
                "name": model or "all networks",
                "count": lines[0].mean.n,
                "metrics": [
                    (metric, {True: "↑", False: "↓", None: ""}[ALL[metric].higher_is_better]) for metric in metrics
                ],
                "rows": sorted(rows, key=lambda row: (row["rank"] is None, row["rank"])),
                "verdicts": {(line.method, line.metric): verdict(line) for line in lines},
            }
        )
    return found


def verdict(line: Line) -> str:
    """Is the reference "ahead" of the method or "behind" it, with an interval that leaves 0 out? Else ""."""
    higher = ALL[line.metric].higher_is_better
    if line.ahead is None or higher is None or line.ahead.low <= 0 <= line.ahead.high:
        return ""
    return "ahead" if (line.ahead.low > 0) is higher else "behind"


def _inlined(plot: Plot) -> Any:
    from markupsafe import Markup

    # The reader's own text colour, light or dark; the declaration before <svg is for files only.
    return Markup(plot.svg[plot.svg.index("<svg") :].replace(plot.ink, "currentColor"))
