"""One map on axes, with what it explains where that is known: a curve, a picture, or a slice of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image
from torch import Tensor

from .._maps.fusion import by_magnitude
from ..errors import InputError
from ._colours import EVIDENCE, INK, SIGNED
from ._overlay import OPACITY, Region, check_photograph, coloured, enlarged, overlay, picture
from ._sheet import open_frame

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

Seen = Image.Image | Tensor | None
"""What a map explains: a picture, or one sample of the input (channel, *space)."""


def draw(
    axes: Axes,
    saliency: Float[Tensor, "*space"],
    image: Seen = None,
    region: Region | None = None,
    signed: bool = False,
) -> None:
    """A map of one to three dimensions; of a volume, the slice along the first axis that holds the most."""
    if saliency.ndim == 1:
        draw_curve(axes, saliency, image, signed)
        return
    if saliency.ndim == 3:
        at = int(saliency.abs().sum((1, 2)).argmax())
        scan = None if image is None else volume_of(image, saliency)[at]
        draw_slice(axes, by_magnitude(saliency[None])[0, at] if signed else saliency[at], scan, signed)
        axes.set_title(f"slice {at + 1} of {len(saliency)}", fontsize=9)
        return
    axes.set_axis_off()
    if image is None:
        draw_slice(axes, by_magnitude(saliency[None])[0] if signed else saliency, None, signed)
    else:
        photograph, place = enlarged(as_picture(image), saliency, region)
        axes.imshow(overlay(saliency, photograph, place, signed))


def draw_slice(
    axes: Axes, saliency: Float[Tensor, "height width"], scan: Tensor | None = None, signed: bool = False
) -> None:
    """A map, in [0, 1] or with `signed` in [-1, 1], at its own resolution, over a grey scan in [0, 1] if any."""
    axes.set_axis_off()
    if scan is None:
        axes.imshow(numbers(saliency), cmap=SIGNED if signed else EVIDENCE, vmin=-1 if signed else 0, vmax=1)
    else:
        axes.imshow(numbers(scan), cmap="gray", vmin=0, vmax=1)
        values = numbers(saliency)
        colours = mpl.colormaps[SIGNED]((values + 1) / 2) if signed else mpl.colormaps[EVIDENCE](values)
        colours[..., 3] = OPACITY * abs(values)
        axes.imshow(colours)


def draw_curve(axes: Axes, saliency: Float[Tensor, " length"], signal: Seen = None, signed: bool = False) -> None:
    """A signal's channels over the map's colours as a band; without the signal, the map as a filled curve."""
    if isinstance(signal, Image.Image):
        raise InputError("image must be a tensor (channel, length) beneath a signal's map, but got a picture.")
    values = numbers(saliency)
    open_frame(axes)
    axes.set(xlim=(-0.5, len(values) - 0.5), xlabel="step")
    if signal is None:
        places = np.arange(len(values))
        axes.fill_between(places, values, step="mid", color="#b35806", alpha=0.35, linewidth=0)
        axes.step(places, values, where="mid", color="#b35806", linewidth=1.2)
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


def one_of_batch(images: Tensor | Image.Image | Sequence[Image.Image] | None, count: int, sample: int) -> Seen:
    """The image of one sample, of as many images as there are maps."""
    if images is None:
        return None
    if isinstance(images, (str, Path)):
        check_photograph(images)
    each = [images] if isinstance(images, Image.Image) else images
    if len(each) != count:
        raise InputError(f"images must be one per map: {count} maps, but got {len(each)} images.")
    if not 0 <= sample < count:
        raise InputError(f"sample must be from 0 to {count - 1}, one of the images, but got {sample}.")
    return each[sample]


def as_picture(image: Image.Image | Tensor) -> Image.Image:
    """A picture; a tensor (channel, height, width) becomes one."""
    return picture(image) if isinstance(image, Tensor) else image


def volume_of(image: Image.Image | Tensor, saliency: Float[Tensor, "depth height width"]) -> Tensor:
    """One value in [0, 1] per position of a volume: the mean over channels, stretched to the full range."""
    if isinstance(image, Image.Image):
        raise InputError(
            "image must be a tensor (channel, depth, height, width) beneath a volume's map, not a picture."
        )
    found = image.mean(0) if image.ndim == 4 else image
    if found.shape != saliency.shape:
        raise InputError(f"the volume's axes {tuple(found.shape)} are not those of its map, {tuple(saliency.shape)}.")
    low, high = found.min(), found.max()
    return (found - low) / (high - low).clamp_min(1e-12)


def numbers(values: Tensor) -> NDArray[np.float32]:
    """For matplotlib."""
    return values.detach().float().cpu().numpy()
