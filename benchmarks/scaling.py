"""Whether a call's time grows in proportion to images and to pixels: a table and a plot of docs/performance.md.

    make bench

In each round every size is timed once, a call and the limit (forward and gradient to the same taps with nothing else)
in turn. The exponent is the slope of a line through log(time) over log(size): 1 is proportional, less is a fixed part
of the cost. Printed are its median over the rounds and the range of its middle half, and the least and largest time per
image or megapixel; the plot shows medians.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from overview import limit, network, timed
from rich.console import Console
from rich.progress import track
from rich.table import Table

from integrative_cam import IntegrativeCAM, __version__
from integrative_cam.render import save
from integrative_cam.render._colours import INK, SERIES
from integrative_cam.render._sheet import open_frame, sheet

NETWORKS = ("efficientnet_b0", "mobilenet_v2", "resnet50", "vgg16")
BATCHES = (1, 2, 4, 8, 16)
SIDES = (96, 128, 192, 256, 384, 512)
"""Pixels; all multiples of 32, at which these networks halve their maps without a remainder."""
MEGA = 1e6
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "scaling.png"


@dataclass(frozen=True)
class Series:
    """A network's times over one size, seconds: one list per round, in the order of `sizes`."""

    network: str
    axis: str
    sizes: tuple[float, ...]
    call: list[list[float]]
    limit: list[list[float]]


def measured(name: str, axis: str, shapes: Sequence[tuple[int, int]], rounds: int) -> Series:
    """Time calls on images of each (batch, side)."""
    model = network(name)
    cam = IntegrativeCAM(model)
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = []
    for batch, side in shapes:
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
        pairs.append((partial(cam, images, target=7), limit(model, images, 7)))
        pairs[-1][0]()
    sizes = tuple(batch if axis == "images" else side**2 / MEGA for batch, side in shapes)
    found = Series(name, axis, sizes, [], [])
    for _ in range(rounds):
        times = [(timed(call), timed(bare)) for call, bare in pairs]
        found.call.append([call for call, _ in times])
        found.limit.append([bare for _, bare in times])
    return found


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Least squares slope of log(time) over log(size)."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, times)]).slope


def exponents(sizes: Sequence[float], rounds: Sequence[Sequence[float]]) -> str:
    """Median and middle half over the rounds."""
    low, median, high = statistics.quantiles([exponent(sizes, times) for times in rounds], n=4)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The median time at each size."""
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def row(series: Series) -> tuple[str, ...]:
    """The table's cells."""
    each = [time / size for time, size in zip(medians(series.call), series.sizes, strict=True)]
    unit = "image" if series.axis == "images" else "megapixel"
    return (
        series.network,
        series.axis,
        f"{series.sizes[0]:.3g} to {series.sizes[-1]:.3g}",
        exponents(series.sizes, series.call),
        exponents(series.sizes, series.limit),
        f"{min(each):.2f} to {max(each):.2f} s per {unit}",
    )


def plotted(found: Sequence[Series]) -> Figure:
    """Times over sizes, both logarithmic, with a line of slope 1 for each network."""
    ink = {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK}
    with mpl.rc_context(ink):
        figure = sheet(9, 3.6)
        labels = {"images": "images of 224 x 224 in a call", "pixels": "megapixels of one image"}
        for axes, (axis, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
            shown = [each for each in found if each.axis == axis]
            for colour, series in zip(SERIES, shown, strict=False):
                times = medians(series.call)
                axes.loglog(series.sizes, times, "o-", color=colour, markersize=4, linewidth=1.4, label=series.network)
                straight = [times[-1] * size / series.sizes[-1] for size in series.sizes]
                axes.loglog(series.sizes, straight, ":", color=colour, linewidth=1)
            axes.set_xlabel(label)
            axes.set_ylabel("seconds per call")
            axes.set_xticks(shown[0].sizes, [f"{size:.2g}" for size in shown[0].sizes])
            axes.minorticks_off()
            open_frame(axes)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings of every size")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="torchvision names")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the plot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = {"images": [(batch, 224) for batch in BATCHES], "pixels": [(1, side) for side in SIDES]}
    cases = [(name, axis) for axis in shapes for name in arguments.networks]
    found = [
        measured(name, axis, shapes[axis], arguments.rounds)
        for name, axis in track(cases, description="Networks", console=Console(stderr=True))
    ]
    table = Table(title="Time of a call ~ size^exponent, float32, one thread")
    for column in ("network", "size", "range", "exponent", "of the limit", "time"):
        table.add_column(column)
    for series in found:
        table.add_row(*row(series))
    console = Console(width=130)
    console.print(table)
    console.print(
        f"integrative-cam {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}; {arguments.rounds} rounds"
    )
    save(plotted(found), arguments.out)
    console.print(f"Plot: {arguments.out}")


if __name__ == "__main__":
    main()
