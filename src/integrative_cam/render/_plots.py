"""Dot plots of means with their intervals; the same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl

from ._colours import INK, SERIES
from ._sheet import SALT, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osv^<>"


@dataclass(frozen=True)
class Dot:
    """The mean of a row in a series, with its interval; the series None stands for all others together."""

    row: str
    series: str | None
    mean: float
    low: float
    high: float


def dot_plot(dots: Sequence[Dot], label: str, zero: bool = False) -> Figure:
    """Draw means with their intervals, a row per method and a marker per series.

    Args:
        dots: rows, from top to bottom, and series in the order to show them.
        label: of the axis.
        zero: draw a line at zero, for differences.
    """
    rows = list(dict.fromkeys(dot.row for dot in dots))
    series = list(dict.fromkeys(dot.series for dot in dots))
    with mpl.rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure = sheet(5, 0.9 + len(rows) * (0.22 + 0.11 * len(series)) + 0.2 * len(series))
        axes = figure.subplots()
        for number, name in enumerate(series):
            chosen = [dot for dot in dots if dot.series == name]
            offset = (number - (len(series) - 1) / 2) * 0.7 / len(series)
            pooled = name is None
            axes.errorbar(
                [dot.mean for dot in chosen],
                [rows.index(dot.row) + offset for dot in chosen],
                xerr=[[max(0, dot.mean - dot.low) for dot in chosen], [max(0, dot.high - dot.mean) for dot in chosen]],
                fmt="D" if pooled else MARKERS[number % len(MARKERS)],
                color=INK if pooled else SERIES[number % len(SERIES)],
                markersize=4,
                linewidth=1.4,
                label=name or "all networks",
            )
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x", color=INK, alpha=0.15)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(INK)
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=min(len(series), 2), frameon=False, fontsize=8)
    return figure


def svg(figure: Figure, transparent: bool = False) -> str:
    """The figure as SVG, with text as text and not as outlines."""
    drawn = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": SALT}):
        figure.savefig(drawn, format="svg", transparent=transparent, metadata={"Date": None})
    return drawn.getvalue()
