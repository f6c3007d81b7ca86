"""Which picture a map is drawn on, and where it lies there: where the network looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from .._deprecation import warn_user
from ..errors import InputError
from ..explanation import SeenRegion, mapped_input
from ..models import View
from ._overlay import PLACE_IT, Region, alike, check_two_dimensions, checked_photograph, overlay, picture

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation import Explanation

Drawable = Image.Image | View | Tensor
"""What a map is drawn on: a photograph, the network's view of one, or one sample of the input (channel, *space)."""
Seen = Drawable | None
"""None draws the bare map."""


def overlays(
    maps: Float[Tensor, "batch height width"], images: Tensor | Image.Image | View | Sequence[Image.Image | View]
) -> list[Image.Image]:
    """One overlay per map.

    Args:
        maps: (batch, height, width) in [0, 1].
        images: one image per map, over all of which it is drawn, or the view of one; or a tensor (batch, channel,
            height, width), see `picture`.

    Raises:
        InputError: not one image per map.
    """
    listed = images_of(images, len(maps))
    return [
        overlay(saliency, as_picture(image), image.region if isinstance(image, View) else None)
        for saliency, image in zip(maps, listed, strict=True)
    ]


def images_of(
    images: Tensor | Image.Image | View | Sequence[Image.Image | View], count: int
) -> Sequence[Image.Image | View | Float[Tensor, "channel *space"]]:
    """`count` images from one, several, or a tensor (batch, channel, *space).

    Raises:
        InputError: another number of images.
    """
    listed = [images] if isinstance(images, (Image.Image, View, str, Path)) else list(images)
    for image in listed:
        if not isinstance(image, (Tensor, View, Image.Image)):
            checked_photograph(image)
    if len(listed) != count:
        raise InputError(f"images must be one image per map: {count} maps, but got {len(listed)} images.")
    return listed


def as_picture(image: Drawable) -> Image.Image:
    """What is drawn below a map, 8-bit RGB: the photograph, or a tensor (channel, height, width) as a picture."""
    if isinstance(image, Tensor):
        return picture(image)
    if isinstance(image, View):
        return image.photograph
    return checked_photograph(image)


def placed(
    explanation: Explanation, sample: int, image: Drawable, region: Region | None = None, stream: int | None = None
) -> tuple[Image.Image, Region]:
    """The picture to draw an explanation's map on, and where the map lies in it.

    Args:
        explanation: of images with two spatial axes; its `views` say where the network looked.
        sample: which image of the explanation.
        image: the photograph in any size, what the network saw of it, the network's view, or this sample's input.
        region: where the map lies in the picture; None asks the view or the explanation.
        stream: which input's map; None: that of `Explanation.map`.

    Raises:
        InputError: the map has other axes, or the image another shape than the photograph and what was seen of it.
    """
    main = mapped_input(explanation)
    stream_map = None if stream is None or explanation.streams is None else explanation.streams.maps[stream]
    saliency = (explanation.map if stream_map is None else stream_map)[sample]
    check_two_dimensions(saliency)
    drawn = as_picture(image)
    if region is not None:
        return drawn, region
    if isinstance(image, View):
        return drawn, image.region
    height, width = saliency.shape
    view = explanation.views[sample] if explanation.views and stream in (None, main) else None
    return drawn, _region(drawn.size, (width, height), view)


def _region(size: tuple[int, int], map_size: tuple[int, int], view: SeenRegion | None) -> Region:
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    if view is None:
        if size != map_size:
            warn_user(
                f"The image has {size[0]} x {size[1]} pixels, the map {map_size[0]} x {map_size[1]}, and it is drawn "
                "over all of the image, since the explanation does not know which part the network saw: draw on the "
                f"view, explanation.plot(network.preprocessing(photograph)), or {PLACE_IT}"
            )
        return whole
    left, top, right, bottom = view.box
    crop = (round(right) - round(left), round(bottom) - round(top))
    if size == view.size:
        return view.box
    if size in (crop, map_size):
        return whole
    if alike(size, view.size):
        if alike(size, crop) and crop != view.size:
            warn_user(
                f"The image of {size[0]} x {size[1]} pixels may be the whole photograph, or the part of it that the "
                "network saw, in another size; it is taken for the photograph. Draw on the photograph itself."
            )
        return view.scaled_to(size).box
    if alike(size, crop):
        return whole
    raise InputError(
        f"image must be the photograph of {view.size[0]} x {view.size[1]} pixels, or the {crop[0]} x {crop[1]} of them "
        f"that the network saw, or have the shape of one of them, but got {size[0]} x {size[1]}."
    )
