"""A line around where the evidence is; the photograph keeps its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from ..errors import InputError
from ._overlay import Region, adjust_for_resolution, seen

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

LINE, EDGE = (255, 194, 10), (0, 0, 0)
"""Yellow beside black: one of them stands out on any photograph."""
WIDTH = 1 / 150
"""Of the line, as a share of the picture's shorter side."""


def outline(
    saliency: Float[Tensor, "height width"], image: Image.Image, top: float = 0.1, region: Region | None = None
) -> Image.Image:
    """Draw a line around the share `top` of the pixels with the highest values; of equal values, the first ones.

    The line lies on the enclosed pixels, a thin dark edge outside of them. Pixels without evidence are never enclosed.

    Args:
        saliency: the map.
        image: the photograph.
        top: in (0, 1), of the pixels that the network saw.
        region: where the map lies in the photograph; None: all of it.

    Returns:
        RGB, of the photograph's size.
    """
    if not 0 < top < 1:
        raise InputError(f"top must be between 0 and 1, a share of the pixels, but got {top!r}.")
    return _drawn(top_mask(saliency, image.size, top, region), image)


def contour(
    saliency: Float[Tensor, "height width"], image: Image.Image, level: float = 0.5, region: Region | None = None
) -> Image.Image:
    """Draw a line around all pixels that reach the share `level`, in (0, 1], of the map's maximum; see `outline`."""
    if not 0 < level <= 1:
        raise InputError(f"level must be above 0 and at most 1, a share of the maximum, but got {level!r}.")
    values = adjust_for_resolution(saliency, image.size, region)
    return _drawn((values >= level * values.max()) & (values > 0), image)


def top_mask(saliency: Tensor, size: tuple[int, int], top: float, region: Region | None) -> NDArray[np.bool_]:
    """The share `top` of the seen pixels, rounded to whole ones, with the highest values above zero."""
    inside = seen(size, region)
    values = np.where(inside, adjust_for_resolution(saliency, size, region), -np.inf).ravel()
    count = round(top * int(inside.sum()))
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return (mask & (values > 0)).reshape(size[1], size[0])


def _drawn(mask: NDArray[np.bool_], image: Image.Image) -> Image.Image:
    width = max(1, round(WIDTH * min(image.size)))
    # One pixel around counts as outside, so that the line closes at the picture's border.
    padded = Image.fromarray(np.pad(mask, width).astype(np.uint8) * 255)
    inner = np.asarray(padded.filter(ImageFilter.MinFilter(2 * width + 1)))
    outer = np.asarray(padded.filter(ImageFilter.MaxFilter(2 * max(1, width // 2) + 1)))
    inside = (slice(width, -width), slice(width, -width))
    drawn = np.array(image.convert("RGB"))
    drawn[(outer[inside] > 0) & ~mask] = EDGE
    drawn[mask & (inner[inside] == 0)] = LINE
    return Image.fromarray(drawn)
