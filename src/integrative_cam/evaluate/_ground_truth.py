"""Does the map lie where the evidence must be? Images and networks built so that the place is known.

Both divide the image into quadrants, so that maps that know nothing, such as `uniform`, have a quarter of their sum in
the right one. Images are (batch, channel, height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..methods._registry import Explainer
from ._localisation import energy
from ._perturbation import check_images
from ._probabilities import TargetIndex, class_indices

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ._shapes import PerImage, Pictures

SURE = 0.5
"""The least probability of a photograph's class for it to be part of a mosaic in `icam evaluate`."""


def grid_pointing(
    model: nn.Module,
    images: Pictures,
    companions: Float[Tensor, "batch 3 channel height width"],
    method: Explainer,
    target_index: TargetIndex,
) -> PerImage:
    """Share of the map's sum in the image's quadrant of a mosaic of four (grid pointing game, arXiv:2205.10435).

    The mosaic has the size of one image, so that any network takes it: each part is averaged to half the height and
    width. The image's class is explained, at each of the four places in turn, and the shares averaged: 0 to 1, higher
    is better; a random map has 1/4, a blank one 0. `companions` are three images per image, of classes that differ from
    its own and from each other, of which the network is sure; otherwise there is evidence for the class in several
    quadrants, or in none. Other arguments and errors: see `integrative_cam.evaluate`.
    """
    check_images(images, dims=2)
    wanted = (len(images), 3, *images.shape[1:])
    if tuple(companions.shape) != wanted:
        raise InputError(
            f"companions must be three images per image, of shape {wanted}, but got {tuple(companions.shape)}."
        )
    index = class_indices(target_index, len(images)).to(images.device)
    parts = torch.cat([images[:, None], companions], 1)
    mosaics = torch.cat([_mosaic(parts.roll(place, 1)) for place in range(4)])
    maps = method(model, mosaics, index.repeat(4)).map
    masks = _quadrants(maps).repeat_interleave(len(images), 0)
    return energy(maps.relu(), masks).reshape(4, -1).mean(0)


def planted_patch(
    model: nn.Module,
    images: Pictures,
    method: Explainer,
    measure: Callable[[Tensor, Tensor], Tensor] = energy,
) -> PerImage:
    """Does the map of a network that sees one quadrant of the image alone lie there? 0 to 1; higher is better.

    The network is `OnePatch`: whatever lies outside of the quadrant is multiplied by 0 before the first layer, so that
    no evidence can come from there. Its top class is explained, for each of the four quadrants, and the values are
    averaged; a random map has 1/4. `measure` is `energy`, `pointing` or any such function of maps and the masks of
    where the network looks. Other arguments and errors: see `integrative_cam.evaluate`.
    """
    maps, masks = planted_maps(model, images, method)
    return measure(maps.flatten(0, 1), masks.flatten(0, 1)).reshape(4, -1).mean(0)


class OnePatch(nn.Module):
    """A network that sees the image where the mask (height, width) is True, and 0 elsewhere."""

    def __init__(self, model: nn.Module, mask: Bool[Tensor, "height width"]) -> None:
        super().__init__()
        self.model = model
        self.mask: Tensor
        self.register_buffer("mask", mask)

    def forward(self, images: Tensor) -> Any:
        return self.model(images * self.mask)


def planted_maps(
    model: nn.Module, images: Pictures, method: Explainer
) -> tuple[Float[Tensor, "quadrant batch height width"], Bool[Tensor, "quadrant batch height width"]]:
    """The maps of the networks of `planted_patch`, cut at 0, and where each of them looks."""
    check_images(images, dims=2)
    masks = _quadrants(images[:, 0])
    maps = [method(OnePatch(model, mask).train(model.training), images, None).map.relu() for mask in masks]
    return torch.stack(maps), masks[:, None].expand(-1, len(images), -1, -1)


def _mosaic(parts: Float[Tensor, "batch 4 channel height width"]) -> Float[Tensor, "batch channel height width"]:
    heights, widths = ((length // 2, length - length // 2) for length in parts.shape[3:])
    rows = [
        torch.cat(
            [F.adaptive_avg_pool2d(parts[:, 2 * row + column], (heights[row], widths[column])) for column in (0, 1)], 3
        )
        for row in (0, 1)
    ]
    return torch.cat(rows, 2)


def _quadrants(maps: Float[Tensor, "batch height width"]) -> Bool[Tensor, "4 height width"]:
    """Row by row: the upper left, the upper right, the lower left, the lower right."""
    height, width = maps.shape[1:]
    lower = torch.arange(height, device=maps.device)[:, None] >= height // 2
    right = torch.arange(width, device=maps.device) >= width // 2
    return torch.stack([~lower & ~right, ~lower & right, lower & ~right, lower & right])
