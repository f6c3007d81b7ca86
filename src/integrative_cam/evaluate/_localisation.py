"""Does the map lie on the object? Maps (batch, height, width) against masks of the objects, True inside.

Each function returns one value per image, and raises InputError if shapes differ, maps are not finite, masks are not
boolean, or a mask is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._maps.blocks import at_least_float32
from ..errors import InputError, import_extra
from ..targets._detection import overlap
from ..targets._regions import inside_boxes
from ._perturbation import check_maps, order

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ._shapes import FlatMaps, Masks, PerImage

THRESHOLDS = 100
"""How many equally spaced thresholds `best_iou` and `box_hits` try."""
HIT = 0.5
"""The least intersection over union at which a box counts as found."""


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
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        raise InputError(f"boxes must have right > left and bottom > top, but got {boxes.tolist()}.")
    return inside_boxes(at_least_float32(boxes), size).any(0)


def pointing(maps: FlatMaps, masks: Masks) -> PerImage:
    """1 where the map's maximum lies inside of the mask, else 0 (the pointing game, arXiv:1608.00507).

    Of several equal maxima, the share inside: a blank map gets the mask's share of the image. Higher is better.

    >>> pointing(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[False, True]]]))
    tensor([1.])
    """
    _check(maps, masks)
    flat = maps.flatten(1)
    highest = flat == flat.amax(1, keepdim=True)
    inside = (highest & masks.flatten(1)).sum(1)
    return inside.to(at_least_float32(maps).dtype) / highest.sum(1)


def energy(maps: FlatMaps, masks: Masks) -> PerImage:
    """Share of the map's sum inside of the mask, 0 to 1; 0 for a blank map. Higher is better (arXiv:1910.01279).

    >>> energy(torch.tensor([[[0.5, 1.5]]]), torch.tensor([[[False, True]]]))
    tensor([0.7500])

    Raises:
        InputError: maps are negative, or as in all functions of localisation.
    """
    _check(maps, masks)
    if maps.min() < 0:
        raise InputError(f"maps must be at least 0 to have shares of a sum, but reach {maps.min():.4g}; cut them at 0.")
    flat = at_least_float32(maps).flatten(1)
    # By the maximum first: a sum of large values could leave the range.
    flat = flat / torch.where(flat.amax(1) > 0, flat.amax(1), 1)[:, None]
    total = flat.sum(1)
    return torch.where(total > 0, (flat * masks.flatten(1)).sum(1) / total, 0)


def top_share(maps: FlatMaps, masks: Masks, share: float = 0.1) -> PerImage:
    """Share of the top round(share n) of n pixels, at least one, that lies inside of the mask; higher is better.

    Equal values are taken in the order of `order`. Below 1 for any map if the mask is smaller. `share` is above 0 and
    at most 1.

    >>> top_share(torch.tensor([[[0.1, 0.8, 0.9, 0.2]]]), torch.tensor([[[False, False, True, True]]]), share=0.5)
    tensor([0.5000])
    """
    _check(maps, masks)
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, but got {share!r}.")
    count = max(1, round(share * maps[0].numel()))
    return masks.flatten(1).gather(1, order(maps)[:, :count]).to(at_least_float32(maps).dtype).mean(1)


def best_iou(maps: FlatMaps, masks: Masks) -> PerImage:
    """Largest intersection over union of the mask and {map / maximum > t}, t = 0, 1/100, ..., 99/100; 0 to 1.

    0 for a map without positive values. Higher is better.

    >>> best_iou(torch.tensor([[[0.0, 0.4, 1.0]]]), torch.tensor([[[False, False, True]]]))
    tensor([1.])
    """
    _check(maps, masks)
    scaled, mask = _by_maximum(maps).flatten(1), masks.flatten(1)
    best = torch.zeros_like(scaled[:, 0])
    for step in range(THRESHOLDS):
        region = scaled > step / THRESHOLDS
        best = torch.maximum(best, (region & mask).sum(1) / (region | mask).sum(1))
    return best


def box_hits(maps: FlatMaps, boxes: Sequence[Float[Tensor, "box 4"]]) -> Bool[Tensor, "batch threshold"]:
    """At each threshold t = 0, 1/100, ..., 99/100: does the map's box find one of the image's boxes?

    The map's box is the smallest around the largest connected part, diagonals included, of {map / maximum > t}; of
    equally large parts the one met first, row by row. It finds a box at an intersection over union of at least 1/2.
    A map without positive values finds none. Computed on the CPU, in linear time. `boxes` are, for each image, those of
    `mask_of_boxes`, at least one.

    Raises:
        InputError: shapes differ, maps are not finite, or an image has no box or one without width or height.
        MissingExtraError: scipy is not installed.
    """
    check_maps(maps)
    if maps.ndim != 3 or len(maps) != len(boxes):
        raise InputError(
            f"maps must have shape (batch, height, width), one map for each of {len(boxes)} images' boxes, "
            f"but got {tuple(maps.shape)}."
        )
    hits = torch.zeros(len(maps), THRESHOLDS, dtype=torch.bool)
    for number, (scaled, true) in enumerate(zip(_by_maximum(maps).cpu(), boxes, strict=True)):
        if true.ndim != 2 or true.shape[1] != 4 or not len(true) or not (true[:, 2:] > true[:, :2]).all():
            raise InputError(
                f"boxes of image {number} must be (box, 4): left, top, right, bottom, with right > left and "
                f"bottom > top, at least one; but got {true.tolist()}."
            )
        for step in range(THRESHOLDS):
            region = scaled > step / THRESHOLDS
            if region.any():
                hits[number, step] = bool((overlap(_largest_part(region), true.double().cpu()) >= HIT).any())
    return hits.to(maps.device)


def max_box_accuracy(hits: Bool[Tensor, "image threshold"]) -> tuple[float, int]:
    """MaxBoxAcc (arXiv:2007.04178): the share of images whose box is found, at the threshold where it is largest.

    One threshold for all images; returned with its number, the lowest of equals. `hits` are those of `box_hits` over
    the data set. The paper takes the largest part of min-max scaled maps; ours are divided by their maximum.

    >>> max_box_accuracy(torch.tensor([[True, True, False], [False, True, False]]))
    (1.0, 1)

    Raises:
        InputError: hits are not boolean, not (image, threshold), or empty.
    """
    if hits.dtype != torch.bool or hits.ndim != 2 or not hits.numel():
        raise InputError(
            "hits must be boolean of shape (image, threshold), at least one image, "
            f"but got {hits.dtype} of shape {tuple(hits.shape)}."
        )
    counts = hits.sum(0).tolist()
    return max(counts) / len(hits), counts.index(max(counts))


def _by_maximum(maps: FlatMaps) -> FlatMaps:
    """0 everywhere for a map without positive values."""
    highest = at_least_float32(maps).amax((1, 2), keepdim=True)
    return torch.where(highest > 0, at_least_float32(maps) / highest, 0)


def _largest_part(region: Bool[Tensor, "height width"]) -> Float[Tensor, "4"]:
    """The box around it."""
    import numpy as np

    ndimage = import_extra("scipy.ndimage", "MaxBoxAcc", "evaluate")
    parts, _ = ndimage.label(region.numpy(), structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    rows, columns = ndimage.find_objects(parts)[int(sizes[1:].argmax())]
    return torch.tensor([columns.start, rows.start, columns.stop, rows.stop], dtype=torch.float64)


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
