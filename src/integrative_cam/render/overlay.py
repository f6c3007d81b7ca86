"""A map over the photograph that it explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError, MissingExtraError

try:
    import matplotlib as mpl
    import numpy as np
    from PIL import Image, ImageEnhance
except ImportError as error:
    raise MissingExtraError.of("Drawing", "render", error) from error

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

COLOURS = "inferno"
"""Perceptually uniform and readable with colour-blind eyes."""
OPACITY = 0.85
COLOUR_KEPT = 0.3
"""Of the photograph: a red cup in full colour would look like evidence."""


def overlay(saliency: Float[Tensor, "height width"], image: Image.Image) -> Image.Image:
    """Lay one map, [0, 1], over an image of any size that shows the same region; opacity follows the map."""
    if saliency.ndim != 2:
        raise InputError(
            f"overlay draws maps of two dimensions, but this one has shape {tuple(saliency.shape)}; "
            "index the axis to show, or plot a signal's map as a curve."
        )
    muted = ImageEnhance.Color(image.convert("RGB")).enhance(COLOUR_KEPT)
    photograph = np.asarray(muted, dtype=np.float32)
    grown = Image.fromarray(saliency.float().cpu().numpy()).resize(image.size, Image.Resampling.BICUBIC)
    values = np.asarray(grown).clip(0, 1)
    colours = mpl.colormaps[COLOURS](values)[..., :3].astype(np.float32) * 255
    opacity = OPACITY * values[..., None]
    return Image.fromarray((photograph * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def overlays(
    maps: Float[Tensor, "batch height width"], images: Tensor | Image.Image | Sequence[Image.Image]
) -> list[Image.Image]:
    """One overlay per map.

    Args:
        maps: (batch, height, width) in [0, 1].
        images: one image per map, each of any size; or a tensor (batch, channel, height, width), which is
            stretched to the full range of brightness for showing, since normalised inputs have no fixed one.

    Raises:
        InputError: not one image per map.
    """
    if isinstance(images, Tensor):
        pictures = [_picture(image) for image in images]
    else:
        pictures = [images] if isinstance(images, Image.Image) else list(images)
    if len(pictures) != len(maps):
        raise InputError(f"overlay needs one image per map: {len(maps)} maps, but got {len(pictures)} images.")
    return [overlay(saliency, picture) for saliency, picture in zip(maps, pictures, strict=True)]


def _picture(image: Float[Tensor, "channel height width"]) -> Image.Image:
    values = image.detach().float().cpu()
    values = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = values.min(), values.max()
    stretched = (values - low) / (high - low).clamp_min(1e-12) * 255
    return Image.fromarray(stretched.permute(1, 2, 0).round().numpy().astype(np.uint8))
