"""How much a layer's gradient is worth at a place: averaged over regions, and less the finer the layer.

Gradients of fine layers are noise around a mean: strides alias them, and they decorrelate with depth
(arXiv:1702.08591). What they say of a region is steadier than of a position; the detail comes from the activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""Linear interpolation in torch's words, by the number of axes."""
_POOLS: Mapping[int, Callable[[Tensor, Any], Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


def averaged_over_regions(
    gradient: Float[Tensor, "batch channel *space"], along: int
) -> Float[Tensor, "batch channel *space"]:
    """The gradient averaged over a grid of so many regions along each axis, and interpolated linearly between them.

    One region is Grad-CAM's weight of a channel; as many as positions leave the gradient as it is, as LayerCAM and
    HiResCAM take it. Axes of no more positions than regions stay as they are, and so do maps of four axes or more.
    """
    space = gradient.shape[2:]
    grid = [min(size, along) for size in space]
    if list(space) == grid or len(space) not in _POOLS:
        return gradient
    pooled = _POOLS[len(space)](gradient, grid)
    return F.interpolate(pooled, size=space, mode=MODES[len(space)], align_corners=False)


def calmed(evidence: Float[Tensor, "batch *space"], regions: int | None) -> Float[Tensor, "batch *space"]:
    """Evidence averaged over a grid twice as fine as that of the gradient: a single position of a fine layer says
    little, and one speck must not set the layer's maximum.
    """
    if regions is None:
        return evidence
    return averaged_over_regions(evidence[:, None], 2 * along_axis(regions, evidence.shape[1:]))[:, 0]


def coherence(space: tuple[int, ...], regions: int | None) -> float:
    """How far a layer's gradient is trusted at single positions, in (0, 1]: sqrt(regions along an axis / side), at
    most 1.

    The side of a layer is the geometric mean of its positions along the axes that have several. None regions: 1.

    >>> coherence((56, 56), 14)
    0.5
    """
    if regions is None or not space:
        return 1.0
    side = float(prod(space)) ** (1 / max(sum(size > 1 for size in space), 1))
    return min(1.0, math.sqrt(along_axis(regions, space) / max(side, 1)))


def along_axis(regions: int, space: Sequence[int]) -> int:
    """How many regions there are along each axis; a signal, whose other axes have one position, has as many as an
    image.
    """
    return regions**2 if sum(size > 1 for size in space) == 1 else regions
