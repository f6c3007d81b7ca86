"""Maps and weights -> one map (method.md, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .evidence import expand_like
from .weighting import power

if TYPE_CHECKING:
    from jaxtyping import Float

Fusion = Literal["sum", "max", "geometric", "product"]
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def fuse(
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    weights: Float[Tensor, "batch layer"],
    space: tuple[int, ...],
    fusion: Fusion,
    gamma: float = 1,
    signed: bool = True,
) -> Float[Tensor, "batch *space"]:
    """Fuse signed maps of any resolution to one map of size `space` in [0, 1]; its maximum is 1 or it is blank.

    Each map is divided by its own largest magnitude, weighted and fused; then cut at zero, divided by the maximum and
    raised to the power `gamma`. No minimum is subtracted: a constant positive map stays positive. With `signed` False
    each map is cut at zero before that as well. See docs/method.md, "Fusion".
    """
    maps = maps if signed else [layer_map.relu() for layer_map in maps]
    fused = by_magnitude(_fused(maps, weights, space, fusion).relu())
    return fused if gamma == 1 else power(fused, gamma)


def signed_sum(
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    weights: Float[Tensor, "batch layer"],
    space: tuple[int, ...],
) -> Float[Tensor, "batch *space"]:
    """What `fuse` with fusion="sum" cuts at zero, divided by its largest magnitude: values in [-1, 1]."""
    return by_magnitude(_weighted_sum(maps, weights, space))


def _fused(
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    weights: Float[Tensor, "batch layer"],
    space: tuple[int, ...],
    fusion: Fusion,
) -> Float[Tensor, "batch *space"]:
    if fusion == "sum":
        return _weighted_sum(maps, weights, space)
    scaled = [by_magnitude(each) for each in maps]
    if fusion == "max":
        total = torch.zeros(1, dtype=weights.dtype, device=weights.device)
        for index, each in enumerate(scaled):
            total = torch.maximum(total, expand_like(weights[:, index], each) * resize(each, space))
    else:
        total = _geometric_mean(scaled, weights, space)
        if fusion == "product":
            total = by_magnitude(total) ** len(scaled)
    return total


def _weighted_sum(maps: Sequence[Tensor], weights: Tensor, space: tuple[int, ...]) -> Tensor:
    # Interpolation is linear: add what has one size, then resize once per size.
    of_size: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(maps):
        of_size.setdefault(tuple(each.shape[1:]), []).append(index)
    total = torch.zeros(1, dtype=weights.dtype, device=weights.device)
    for size, indices in of_size.items():
        stacked = torch.stack([maps[index].flatten(1) for index in indices], 1)
        shares = weights[:, indices] / _largest(stacked, 2)
        total = total + resize(torch.bmm(shares[:, None], stacked).reshape(-1, *size), space)
    return total


def _geometric_mean(maps: Sequence[Tensor], weights: Tensor, space: tuple[int, ...]) -> Tensor:
    logarithm = torch.zeros(1, dtype=weights.dtype, device=weights.device)
    vetoed = torch.zeros(1, dtype=torch.bool, device=weights.device)
    for index, each in enumerate(maps):
        weight, resized = expand_like(weights[:, index], each), resize(each, space)
        positive = resized > 0
        # No logarithm of zero, whose gradient is NaN. A layer without weight has no veto.
        logarithm = logarithm + weight * torch.where(positive, resized, 1).log()
        vetoed = vetoed | ~positive & (weight > 0)
    return torch.where(vetoed, 0, logarithm.exp())


def by_magnitude(values: Float[Tensor, "batch *space"]) -> Float[Tensor, "batch *space"]:
    """Each sample divided by its largest magnitude; zeros stay zeros, and their gradient is zero."""
    return values / expand_like(_largest(values.flatten(1), 1), values)


def _largest(values: Tensor, axis: int) -> Tensor:
    """The largest magnitude along an axis, infinite where all are zero: nothing is divided by zero."""
    largest = values.abs().amax(axis)
    return torch.where(largest > 0, largest, torch.inf)


def by_range(values: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Each sample from 0 at its minimum to 1 at its maximum; a constant becomes 0."""
    low, high = torch.aminmax(values.flatten(1), dim=1)
    return (values - expand_like(low, values)) / expand_like(torch.where(high > low, high - low, 1), values)


def resize(values: Float[Tensor, "batch *space"], space: tuple[int, ...]) -> Float[Tensor, "batch *new_space"]:
    """Linear interpolation with pixel centres aligned (align_corners=False), in 1, 2 or 3 dimensions."""
    if tuple(values.shape[1:]) == tuple(space):
        return values
    return F.interpolate(values[:, None], size=space, mode=_MODES[len(space)], align_corners=False)[:, 0]
