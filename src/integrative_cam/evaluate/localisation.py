"""Does the map lie on the object? Maps against masks, and two maps that know nothing to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..trace import wide
from .perturbation import check_maps, order

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

THRESHOLDS = 100
"""How many equally spaced thresholds `best_iou` tries."""


def mask_of_boxes(boxes: Float[Tensor, "box 4"], size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """True where the centre of a pixel lies in any of the boxes of one image.

    Args:
        boxes: (left, top, right, bottom) in pixels of the map, whose area reaches from 0 to width and to height.
        size: (height, width) of the map.

    Raises:
        InputError: boxes have another shape, or one has no positive width and height.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(
            f"boxes must have shape (box, 4): left, top, right, bottom, but got {tuple(boxes.shape)}; "
            "call it once per image."
        )
    left, top, right, bottom = wide(boxes).T[:, :, None]
    if not ((right > left) & (bottom > top)).all():
        raise InputError(f"boxes must have right > left and bottom > top, but got {boxes.tolist()}.")
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x = torch.arange(size[1], device=boxes.device) + 0.5
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    inside: Tensor = rows[:, :, None] & columns[:, None, :]
    return inside.any(0)


def pointing(
    maps: Float[Tensor, "batch height width"], masks: Bool[Tensor, "batch height width"]
) -> Float[Tensor, "batch"]:
    """1 where the map's maximum lies inside of the mask, else 0 (the pointing game, arXiv:1608.00507).

    Of several equal maxima, the share inside: a blank map gets the mask's share of the image. Higher is better.

    Raises:
        InputError: shapes differ, maps are not finite, masks are not boolean or one is empty.
    """
    _check(maps, masks)
    flat = maps.flatten(1)
    highest = flat == flat.amax(1, keepdim=True)
    inside = (highest & masks.flatten(1)).sum(1)
    return inside.to(wide(maps).dtype) / highest.sum(1)


def energy(
    maps: Float[Tensor, "batch height width"], masks: Bool[Tensor, "batch height width"]
) -> Float[Tensor, "batch"]:
    """Share of the map's sum inside of the mask, 0 to 1; 0 for a blank map. Higher is better (arXiv:1910.01279).

    Raises:
        InputError: shapes differ, maps are negative or not finite, masks are not boolean or one is empty.
    """
    _check(maps, masks)
    if maps.min() < 0:
        raise InputError(f"maps must be at least 0 to have shares of a sum, but reach {maps.min():.4g}; cut them at 0.")
    flat = wide(maps).flatten(1)
    # By the maximum first: a sum of large values could leave the range.
    flat = flat / torch.where(flat.amax(1) > 0, flat.amax(1), 1)[:, None]
    total = flat.sum(1)
    return torch.where(total > 0, (flat * masks.flatten(1)).sum(1) / total, 0)


def top_share(
    maps: Float[Tensor, "batch height width"], masks: Bool[Tensor, "batch height width"], share: float = 0.1
) -> Float[Tensor, "batch"]:
    """Share of the top round(share n) of n pixels, at least one, that lies inside of the mask; higher is better.

    Equal values are taken in the order of `perturbation.order`. Below 1 for any map if the mask is smaller.

    Raises:
        InputError: as for `pointing`, or share is not above 0 and at most 1.
    """
    _check(maps, masks)
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, but got {share!r}.")
    count = max(1, round(share * maps[0].numel()))
    return masks.flatten(1).gather(1, order(maps)[:, :count]).to(wide(maps).dtype).mean(1)


def best_iou(
    maps: Float[Tensor, "batch height width"], masks: Bool[Tensor, "batch height width"]
) -> Float[Tensor, "batch"]:
    """Largest intersection over union of the mask and {map / maximum > t}, t = 0, 1/100, ..., 99/100; 0 to 1.

    0 for a map without positive values. Higher is better.

    Raises:
        InputError: shapes differ, maps are not finite, masks are not boolean or one is empty.
    """
    _check(maps, masks)
    flat, mask = wide(maps).flatten(1), masks.flatten(1)
    highest = flat.amax(1, keepdim=True)
    scaled = torch.where(highest > 0, flat / highest, 0)
    best = torch.zeros_like(scaled[:, 0])
    for step in range(THRESHOLDS):
        region = scaled > step / THRESHOLDS
        best = torch.maximum(best, (region & mask).sum(1) / (region | mask).sum(1))
    return best


def centre_map(size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """A Gaussian around the centre with a sigma of a quarter of each side, maximum 1: what photographers do."""
    height, width = (torch.arange(length) - (length - 1) / 2 for length in size)
    found = (-0.5 * ((height / (size[0] / 4))[:, None] ** 2 + (width / (size[1] / 4)) ** 2)).exp()
    return found / found.max()


def random_maps(n: int, size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "n height width"]:
    """Uniform noise in [0, 1), on the generator's device."""
    return torch.rand(n, *size, generator=generator, device=generator.device)


def _check(maps: Tensor, masks: Tensor) -> None:
    check_maps(maps)
    if maps.ndim != 3:
        raise InputError(f"maps must have shape (batch, height, width), but got {tuple(maps.shape)}.")
    if masks.dtype != torch.bool or masks.shape != maps.shape:
        raise InputError(
            f"masks must be boolean and of the maps' shape {tuple(maps.shape)}, "
            f"but got {masks.dtype} of shape {tuple(masks.shape)}."
        )
    empty = ~masks.flatten(1).any(1)
    if empty.any():
        raise InputError(f"masks hold no object in image {empty.nonzero()[0].item()}; leave such images out.")
