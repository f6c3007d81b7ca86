"""A map over the photograph that it explains, as colours or as a line around the evidence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import InputError, MissingExtraError

try:
    import matplotlib as mpl
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter
except ImportError as error:
    raise MissingExtraError.of("Drawing", "render", error) from error

from torch import Tensor

from .._deprecation import warn_user
from ..models._image import as_rgb
from ._colours import EVIDENCE, SIGNED

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

Region = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of a picture; the picture's own area reaches from 0 to its width and height."""

OPACITY = 0.85
COLOUR_KEPT = 0.3
"""Of the photograph's colour: a red cup in full colour would look like evidence."""
LONGEST = 4096
"""The largest side, in pixels, that `enlarged` makes."""
LIGHT_UNSEEN = 0.4
"""Of the photograph's brightness outside of what the network saw."""
PLACE_IT = "say which part of it the network saw by region=(left, top, right, bottom), such as view.region."
LINE, EDGE = (255, 194, 10), (0, 0, 0)
"""Of an outline: yellow beside black, one of which stands out on any photograph."""
LINE_WIDTH = 1 / 150
"""Of an outline, as a share of the picture's shorter side."""


def overlay(
    saliency: Float[Tensor, "height width"], image: Image.Image, region: Region | None = None, signed: bool = False
) -> Image.Image:
    """Lay one map over a photograph of any size; opacity follows the evidence.

    The photograph's own colour is muted, and what lies outside of `region` darkened.

    Args:
        saliency: in [0, 1]; with `signed` of any range.
        image: the photograph.
        region: where the map lies in it, such as `View.region`; None: all of it.
        signed: draw evidence for and against in diverging colours, white at zero; see `coloured`.

    Returns:
        RGB, of the photograph's size.

    Raises:
        InputError: not a map of two dimensions, or a region without area.
    """
    image = checked_photograph(image)
    muted = ImageEnhance.Color(image).enhance(COLOUR_KEPT)
    if region is not None:
        light = np.where(seen(image.size, region), 1, LIGHT_UNSEEN)[..., None]
        muted = Image.fromarray((np.asarray(muted) * light).round().astype(np.uint8))
    photograph = np.asarray(muted, dtype=np.float64)
    colours, opacity = _coloured(saliency, image.size, region, signed)
    return Image.fromarray((photograph * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def coloured(
    saliency: Float[Tensor, "height width"], size: tuple[int, int], region: Region | None = None, signed: bool = False
) -> Image.Image:
    """One map alone, as a transparent layer to put over a photograph of `size` (width, height).

    Args:
        saliency: in [0, 1]; with `signed` of any range, and divided by its largest magnitude.
        size: of the result.
        region: where the map lies in it; None: all of it.
        signed: diverging colours, white at zero; alpha follows the magnitude.

    Returns:
        RGBA; alpha is OPACITY times the evidence, 0 where there is none and outside of the region.

    Raises:
        InputError: not a map of two dimensions, or a region without area.
    """
    colours, opacity = _coloured(saliency, size, region, signed)
    return Image.fromarray(np.concatenate([colours, opacity * 255], 2).round().astype(np.uint8), "RGBA")


def _coloured(
    saliency: Tensor, size: tuple[int, int], region: Region | None, signed: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = values_at_pixels(saliency, size, region)
    if signed:
        values = values / (float(saliency.abs().max()) or 1.0)
        colours = mpl.colormaps[SIGNED]((values.clip(-1, 1) + 1) / 2)
    else:
        values = values.clip(0, 1)
        colours = mpl.colormaps[EVIDENCE](values)
    return colours[..., :3] * 255, OPACITY * np.abs(values).clip(0, 1)[..., None]


def values_at_pixels(
    saliency: Float[Tensor, "height width"], size: tuple[int, int], region: Region | None = None
) -> NDArray[np.float64]:
    """A map's values at the pixels of a picture of `size` (width, height), 0 outside of the region.

    Without a region, the map lies over all of the picture, with a warning where their shapes differ.

    Interpolated linearly between the centres of the map's pixels, as in the fusion: without overshoot, no false sign
    appears beside a peak. Where the picture is smaller than the map, its pixels are means.
    """
    check_two_dimensions(saliency)
    height, width = saliency.shape
    if region is None and not alike(size, (width, height)):
        warn_user(
            f"The picture has {size[0]} x {size[1]} pixels, the map another shape, {width} x {height}, and it is "
            f"stretched over all of the picture: {PLACE_IT}"
        )
    left, top, right, bottom = region or (0, 0, *size)
    if right <= left or bottom <= top:
        raise InputError(f"region must be (left, top, right, bottom) with an area, but got {region}.")
    values = Image.fromarray(saliency.detach().float().cpu().numpy())
    smaller = (min(values.width, math.ceil(right - left)), min(values.height, math.ceil(bottom - top)))
    values = values.resize(smaller, Image.Resampling.BILINEAR)
    across, down = values.width / (right - left), values.height / (bottom - top)
    # Pillow adds the half pixel to the centres itself; what falls outside of the map becomes 0.
    shift = (across, 0, -left * across, 0, down, -top * down)
    return np.asarray(values.transform(size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR), np.float64)


def alike(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) are of one shape, but for less than a pixel of the smaller one."""
    small, large = sorted((first, second), key=lambda size: size[0] * size[1])
    return min(abs(small[0] - large[0] * small[1] / large[1]), abs(small[1] - large[1] * small[0] / large[0])) <= 1


def check_two_dimensions(saliency: Tensor) -> None:
    """Raise InputError unless the map is (height, width)."""
    if saliency.ndim != 2:
        raise InputError(
            f"overlay draws maps of two dimensions, but this one has shape {tuple(saliency.shape)}; "
            "index the axis to show, or draw a signal's map with `curve` and a volume's with `slices`."
        )


def checked_photograph(image: object) -> Image.Image:
    """A Pillow image as 8-bit RGB, upright; InputError for anything else."""
    if not isinstance(image, Image.Image):
        raise InputError(
            f"image must be a Pillow image, such as integrative_cam.models.read_image(path) gives, but got "
            f"{type(image).__name__}."
        )
    return as_rgb(image)


def enlarged(
    image: Image.Image, saliency: Float[Tensor, "height width"], region: Region | None = None, least: int = 1
) -> tuple[Image.Image, Region | None]:
    """A small photograph as 8-bit RGB, each pixel enlarged to a square, and the region in the result.

    Drawn over fewer pixels than it has, a map would lose its maximum between them.

    Args:
        image: a photograph; not enlarged where the region has about the map's size, or more.
        saliency: the map.
        region: where the map lies in it, in pixels of `image`; None: all of it.
        least: about how many pixels the shorter side should have.
    """
    image = checked_photograph(image)
    left, top, right, bottom = region or (0, 0, *image.size)
    height, width = saliency.shape
    lost = max(width / max(right - left, 1e-6), height / max(bottom - top, 1e-6))
    times = min(round(max(lost, least / min(image.size))), LONGEST // max(image.size))
    if times < 2:
        return image, region
    larger = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return larger, region and (left * times, top * times, right * times, bottom * times)


def seen(size: tuple[int, int], region: Region | None) -> NDArray[np.bool_]:
    """Which pixels of a picture of `size` (width, height) have their centre in the region."""
    left, top, right, bottom = region or (0, 0, *size)
    columns, rows = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))


def picture(image: Float[Tensor, "channel height width"]) -> Image.Image:
    """A tensor as a picture, stretched to the full range of brightness, since normalised inputs have no fixed one.

    Raises:
        InputError: it is no such sample.
    """
    if image.ndim != 3:
        raise InputError(f"image must be one sample (channel, height, width), but got shape {tuple(image.shape)}.")
    values = shown_channels(image.detach().float().cpu()).expand(3, -1, -1)
    return Image.fromarray((stretched(values) * 255).permute(1, 2, 0).round().numpy().astype(np.uint8))


def shown_channels(image: Float[Tensor, "channel *space"]) -> Float[Tensor, "shown *space"]:
    """Three channels are colours and one is grey; of other numbers the mean is shown in grey, with a warning."""
    if len(image) in (1, 3):
        return image
    warn_user(
        f"The picture shows the mean of the input's {len(image)} channels in grey; to see some of them, give 1 or 3, "
        "such as images[:, :3]."
    )
    return image.mean(0, keepdim=True)


def stretched(values: Tensor) -> Tensor:
    """From 0 at the minimum to 1 at the maximum; a constant becomes 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(1e-12)


def outline(
    saliency: Float[Tensor, "height width"], image: Image.Image, top: float = 0.1, region: Region | None = None
) -> Image.Image:
    """Draw a line around the pixels with the highest values, a share `top` of all; equal values in reading order.

    The line lies on the enclosed pixels, with a thin dark edge outside. Pixels without evidence are never enclosed.

    Args:
        saliency: the map.
        image: the photograph.
        top: share, in (0, 1), of the pixels that the network saw.
        region: where the map lies in the photograph; None: all of it.

    Returns:
        RGB, of the photograph's size.
    """
    if not 0 < top < 1:
        raise InputError(f"top must be between 0 and 1, a share of the pixels, but got {top!r}.")
    image = checked_photograph(image)
    return _drawn(top_mask(saliency, image.size, top, region), image)


def contour(
    saliency: Float[Tensor, "height width"], image: Image.Image, level: float = 0.5, region: Region | None = None
) -> Image.Image:
    """Draw a line around all pixels that reach the share `level`, in (0, 1], of the map's maximum; see `outline`."""
    if not 0 < level <= 1:
        raise InputError(f"level must be above 0 and at most 1, a share of the maximum, but got {level!r}.")
    image = checked_photograph(image)
    values = values_at_pixels(saliency, image.size, region)
    return _drawn((values >= level * values.max()) & (values > 0), image)


def top_mask(saliency: Tensor, size: tuple[int, int], top: float, region: Region | None) -> NDArray[np.bool_]:
    """The share `top` of the seen pixels, rounded to whole ones, with the highest values above zero."""
    inside = seen(size, region)
    values = np.where(inside, values_at_pixels(saliency, size, region), -np.inf).ravel()
    count = round(top * int(inside.sum()))
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return (mask & (values > 0)).reshape(size[1], size[0])


def _drawn(mask: NDArray[np.bool_], image: Image.Image) -> Image.Image:
    width = max(1, round(LINE_WIDTH * min(image.size)))
    # One pixel around counts as outside, so that the line closes at the picture's border.
    padded = Image.fromarray(np.pad(mask, width).astype(np.uint8) * 255)
    inner = np.asarray(padded.filter(ImageFilter.MinFilter(2 * width + 1)))
    outer = np.asarray(padded.filter(ImageFilter.MaxFilter(2 * max(1, width // 2) + 1)))
    inside = (slice(width, -width), slice(width, -width))
    drawn = np.array(image)
    drawn[(outer[inside] > 0) & ~mask] = EDGE
    drawn[mask & (inner[inside] == 0)] = LINE
    return Image.fromarray(drawn)
