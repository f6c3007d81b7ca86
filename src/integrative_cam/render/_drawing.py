"""Maps as figures: over a picture, a signal or slices of a volume."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._deprecation import warn_deprecated
from .._maps.fusion import by_magnitude, laid_on
from ..errors import InputError
from ._colours import EVIDENCE, INK, SIGNED, WEIGHT_MARKED
from ._overlay import OPACITY, Region, coloured, enlarged, overlay, shown_channels, stretched
from ._placement import Drawable, Seen, as_picture, placed
from ._sheet import bare, colour_bar, open_frame, set_title, sheet, wrapped

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from ..explanation import Explanation

COLUMNS = 4
"""Slices of a volume in a row."""


def presented_layer(explanation: Explanation, index: int) -> Float[Tensor, "batch *layer_space"]:
    """A layer's signed maps as they are shown: at its own resolution, or the input's where it does not cover that
    evenly.
    """
    layer = explanation.layers[index]
    layer_map = layer.map.detach()
    return layer_map if layer.placement is None else laid_on(layer_map, explanation.map.shape[1:], layer.placement)


def ignored(raw: bool | None) -> None:
    """Warn where `raw` of 0.1.0 is given."""
    if raw is not None:
        warn_deprecated("raw has no effect: pictures show explanation.map itself; it goes with the next release.")


def plot(
    explanation: Explanation,
    image: Seen = None,
    title: str = "",
    sample: int = 0,
    region: Region | None = None,
    raw: bool | None = None,
) -> Figure:
    """Draw the photograph, its overlay and the scale of colours; a signal as a curve, a volume as slices.

    Args:
        explanation: of one to three spatial axes.
        image: the photograph, the network's view of it, or this sample's input (channel, *space), stretched to the
            full range of brightness. None draws the bare map.
        title: shown above the map; default "Why" and the target's name.
        sample: which image of the explanation.
        region: where the map lies in the image; None: where the network looked, by the view or `Explanation.views`.
        raw: without effect, and deprecated.
    """
    ignored(raw)
    check_sample(explanation, sample)
    title = title or f"Why {explanation.target_names[sample]}"
    saliency = explanation.map[sample].detach()
    if saliency.ndim == 1:
        return curve(saliency, image, title)
    if saliency.ndim == 3:
        return slices(saliency, image, title=title)
    below = None if image is None else placed(explanation, sample, image, region)
    width = 5.2 if below is None else 9.4
    height, across = saliency.shape if below is None else below[0].size[::-1]
    # So that pictures fill the figure's width, whatever their shape; 1.2 inches are for the colour bar.
    shown = (width - 1.2) / (1 if below is None else 2) * height / across
    figure = sheet(width, min(max(shown, 2.2), 7) + 0.5)
    draw_beside(figure, saliency, below, title, "input" if isinstance(image, Tensor) else "photograph")
    return figure


def curve(saliency: Float[Tensor, " length"], signal: Seen = None, title: str = "") -> Figure:
    """Draw a signal with the map's colours beneath it, opacity following the evidence.

    Args:
        saliency: (length,) in [0, 1].
        signal: (length,) or (channel, length); None draws the map itself as a curve.
        title: shown above.
    """
    if saliency.ndim != 1:
        raise InputError(f"curve draws maps of one dimension, but this one has shape {tuple(saliency.shape)}.")
    figure = sheet(9, 2.8)
    axes = figure.subplots()
    _draw_curve(axes, saliency, signal)
    set_title(axes, wrapped(title, 8))
    if isinstance(signal, Tensor):
        colour_bar(figure, [axes])
        if signal.ndim == 2 and len(signal) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False, fontsize=8, ncols=4)
    return figure


def slices(
    saliency: Float[Tensor, "depth height width"],
    volume: Seen = None,
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
    depth = saliency.shape[axis]
    chosen = torch.linspace(0, depth - 1, min(count, depth)).round().long().tolist()
    rows, columns = ceil(len(chosen) / COLUMNS), min(COLUMNS, len(chosen))
    figure = sheet(2.3 * columns + 1, 2.5 * rows + (0.4 if title else 0.1))
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    bare(*cells)
    brightness = None if volume is None else _brightness(volume, saliency)
    for axes, place in zip(cells, chosen, strict=False):
        below = None if brightness is None else brightness.select(axis, place)
        _draw_slice(axes, saliency.select(axis, place), below)
        set_title(axes, f"slice {place + 1} of {depth}", fontsize=9)
    figure.suptitle(wrapped(title, 0.9 * figure.get_figwidth()))
    colour_bar(figure, cells)
    return figure


def draw_beside(
    part: Figure | SubFigure, saliency: Tensor, below: tuple[Image.Image, Region] | None, title: str, of: str
) -> None:
    """What is below the map, named `of`, overlay and colour bar; the bare map if there is nothing below it."""
    cells = list(part.subplots(1, 1 if below is None else 2, squeeze=False).flat)
    bare(*cells)
    if below is not None:
        cells[0].imshow(below[0])
        set_title(cells[0], of)
    draw(cells[-1], saliency, *(below or ()))
    # The scale takes its share of the width.
    set_title(cells[-1], wrapped(title, 0.85 * part.bbox.width / part.dpi / len(cells)))
    colour_bar(part, cells)


def draw(
    axes: Axes,
    saliency: Float[Tensor, "*space"],
    image: Seen = None,
    region: Region | None = None,
    signed: bool = False,
) -> None:
    """Draw a map of one to three dimensions; of a volume, the slice along the first axis with the most evidence."""
    if saliency.ndim == 1:
        _draw_curve(axes, saliency, image, signed)
        return
    scaled = by_magnitude(saliency[None])[0] if signed else saliency
    if saliency.ndim == 3:
        place = int(saliency.abs().sum((1, 2)).argmax())
        _draw_slice(axes, scaled[place], None if image is None else _brightness(image, saliency)[place], signed)
        set_title(axes, f"slice {place + 1} of {len(saliency)}", fontsize=9)
    elif image is None:
        _draw_slice(axes, scaled, None, signed)
    else:
        axes.set_axis_off()
        photograph, place_of_map = enlarged(as_picture(image), saliency, region)
        axes.imshow(overlay(saliency, photograph, place_of_map, signed))


def _draw_slice(
    axes: Axes, saliency: Float[Tensor, "height width"], below: Tensor | None, signed: bool = False
) -> None:
    """A map in [0, 1], or [-1, 1] if signed, at its own resolution, over grey or colours in [0, 1] if there are any."""
    axes.set_axis_off()
    values = numbers(saliency)
    if below is None:
        axes.imshow(values, cmap=SIGNED if signed else EVIDENCE, vmin=-1 if signed else 0, vmax=1)
    else:
        axes.imshow(numbers(below), cmap="gray", vmin=0, vmax=1)
        colours = mpl.colormaps[SIGNED]((values + 1) / 2) if signed else mpl.colormaps[EVIDENCE](values)
        colours[..., 3] = OPACITY * abs(values)
        axes.imshow(colours)


def _draw_curve(axes: Axes, saliency: Float[Tensor, " length"], signal: Seen, signed: bool = False) -> None:
    """A signal's channels over the map's colours as a band; without the signal, the map as a filled curve."""
    if not isinstance(signal, Tensor | None):
        raise InputError("image must be a tensor (channel, length) beneath a signal's map, but got a picture.")
    values = numbers(saliency)
    open_frame(axes)
    axes.set(xlim=(-0.5, len(values) - 0.5), xlabel="step")
    if signal is None:
        places = np.arange(len(values))
        axes.fill_between(places, values, step="mid", color=WEIGHT_MARKED, alpha=0.35, linewidth=0)
        axes.step(places, values, where="mid", color=WEIGHT_MARKED, linewidth=1.2)
        axes.set_ylabel("evidence")
        axes.set_ylim(None if signed else 0, None)
        return
    lines = numbers(signal if signal.ndim == 2 else signal[None])
    low, high = float(lines.min()), float(lines.max())
    edge = 0.08 * ((high - low) or 1.0)
    limits = (low - edge, high + edge)
    band = coloured(saliency.reshape(1, -1), (len(values), 1), signed=signed)
    axes.imshow(band, extent=(-0.5, len(values) - 0.5, *limits), aspect="auto", interpolation="nearest", zorder=0)
    between = np.linspace(-0.5, len(values) - 0.5, lines.shape[1] * 2 + 1)[1::2]
    for number, line in enumerate(lines):
        axes.plot(between, line, color="white", linewidth=3.2, alpha=0.8)
        style = ("-", "--", ":", "-.")[number % 4]
        axes.plot(between, line, color=INK, linewidth=1.3, linestyle=style, label=f"channel {number + 1}")
    axes.set(ylim=limits, ylabel="signal")


def check_sample(explanation: Explanation, sample: int) -> None:
    """Raise InputError unless the explanation has that image."""
    if not 0 <= sample < len(explanation):
        raise InputError(f"sample must be from 0 to {len(explanation) - 1}, one of the images, but got {sample}.")


def _brightness(volume: Drawable, saliency: Float[Tensor, "depth height width"]) -> Tensor:
    """A volume (depth, height, width), or (..., 3) in colours, in [0, 1], stretched to the full range."""
    if not isinstance(volume, Tensor):
        raise InputError(
            "image must be a tensor (channel, depth, height, width) beneath a volume's map, not a picture."
        )
    channels = volume[None] if volume.ndim == 3 else volume
    if channels.shape[1:] != saliency.shape:
        raise InputError(
            f"the volume's axes {tuple(channels.shape[1:])} are not those of its map, {tuple(saliency.shape)}."
        )
    values = stretched(shown_channels(channels))
    return values.movedim(0, -1) if len(values) == 3 else values[0]


def numbers(values: Tensor) -> NDArray[np.float32]:
    """The values as an array for matplotlib."""
    return values.detach().float().cpu().numpy()
