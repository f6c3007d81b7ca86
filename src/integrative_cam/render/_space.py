"""Maps of signals and of volumes."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ._drawing import Seen, draw_curve, draw_slice, volume_of
from ._sheet import bare, colour_bar, sheet, wrapped

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 4


def curve(saliency: Float[Tensor, " length"], signal: Tensor | None = None, title: str = "") -> Figure:
    """Draw a signal with the map's colours beneath it, opacity following the evidence.

    Args:
        saliency: (length,) in [0, 1].
        signal: (length,) or (channel, length); None draws the map itself as a curve.
        title: shown above.
    """
    if saliency.ndim != 1:
        raise InputError(f"curve draws maps of one dimension, but this one has shape {tuple(saliency.shape)}.")
    figure = sheet(9, 2.8)
    draw_signal(figure, saliency, signal, title)
    return figure


def slices(
    saliency: Float[Tensor, "depth height width"],
    volume: Tensor | None = None,
    axis: int = 0,
    count: int = 8,
    title: str = "",
) -> Figure:
    """Draw a montage of a volume's slices with their maps, evenly spaced from the first to the last.

    All slices share one scale of evidence and one of brightness.

    Args:
        saliency: (depth, height, width) in [0, 1].
        volume: of the same axes, or with channels first; None draws the maps alone.
        axis: along which it is cut, 0 to 2.
        count: slices at most.
        title: shown above.
    """
    if saliency.ndim != 3:
        raise InputError(f"slices draws maps of three dimensions, but this one has shape {tuple(saliency.shape)}.")
    if axis not in (0, 1, 2) or count < 1:
        raise InputError(f"axis must be 0, 1 or 2 and count at least 1, but got axis={axis}, count={count}.")
    shown = min(count, saliency.shape[axis])
    across, down = min(COLUMNS, shown), ceil(shown / COLUMNS)
    figure = sheet(2.3 * across + 1, 2.5 * down + (0.4 if title else 0.1))
    draw_montage(figure, saliency, volume, axis, count, title)
    return figure


def draw_signal(part: Figure | SubFigure, saliency: Tensor, signal: Seen, title: str) -> None:
    """What `curve` shows."""
    axes = part.subplots()
    draw_curve(axes, saliency, signal)
    axes.set_title(wrapped(title, 8))
    if isinstance(signal, Tensor):
        colour_bar(part, [axes])
        if signal.ndim == 2 and len(signal) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False, fontsize=8, ncols=4)


def draw_montage(part: Figure | SubFigure, saliency: Tensor, volume: Seen, axis: int, count: int, title: str) -> None:
    """What `slices` shows."""
    depth = saliency.shape[axis]
    chosen = torch.linspace(0, depth - 1, min(count, depth)).round().long().tolist()
    rows, columns = ceil(len(chosen) / COLUMNS), min(COLUMNS, len(chosen))
    cells = list(part.subplots(rows, columns, squeeze=False).flat)
    scanned = None if volume is None else volume_of(volume, saliency)
    bare(*cells)
    for axes, at in zip(cells, chosen, strict=False):
        under = None if scanned is None else scanned.select(axis, at)
        draw_slice(axes, saliency.select(axis, at), under)
        axes.set_title(f"slice {at + 1} of {depth}", fontsize=9)
    part.suptitle(wrapped(title, 0.9 * part.bbox.width / part.dpi))
    colour_bar(part, cells)
