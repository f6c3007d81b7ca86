"""Maps and weights -> one map (method.md, section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._plan.placement import Placement
from .evidence import expand_like
from .regional import MODES
from .weighting import power

if TYPE_CHECKING:
    from jaxtyping import Float

Fusion = Literal["sum", "max", "geometric", "product"]


def fuse(
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    weights: Float[Tensor, "batch layer"],
    space: tuple[int, ...],
    fusion: Fusion,
    gamma: float = 1,
    signed: bool = True,
    placements: Sequence[Placement | None] = (),
) -> Float[Tensor, "batch *space"]:
    """Fuse signed maps of any resolution to one map of size `space` in [0, 1]; its maximum is 1 or it is blank.

    Each map is divided by its own largest magnitude, weighted and fused; then cut at zero, divided by the maximum and
    raised to the power `gamma`. No minimum is subtracted: a constant positive map stays positive. With `signed` False
    each map is cut at zero before that as well. `placements`: where the maps lie, if not evenly on all of the space.
    See docs/method.md, "Fusion".
    """
    maps = maps if signed else [layer_map.relu() for layer_map in maps]
    placements = placements or [None] * len(maps)
    fused = by_magnitude(_fused(maps, weights, space, fusion, placements).relu())
    return fused if gamma == 1 else power(fused, gamma)


def signed_sum(
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    weights: Float[Tensor, "batch layer"],
    space: tuple[int, ...],
    placements: Sequence[Placement | None] = (),
) -> Float[Tensor, "batch *space"]:
    """What `fuse` with fusion="sum" cuts at zero, divided by its largest magnitude: values in [-1, 1]."""
    return by_magnitude(_weighted_sum(maps, weights, space, placements or [None] * len(maps)))


def _fused(
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    weights: Float[Tensor, "batch layer"],
    space: tuple[int, ...],
    fusion: Fusion,
    placements: Sequence[Placement | None],
) -> Float[Tensor, "batch *space"]:
    if fusion == "sum":
        return _weighted_sum(maps, weights, space, placements)
    scaled = [by_magnitude(layer_map) for layer_map in maps]
    resized = (laid_on(layer_map, space, at) for layer_map, at in zip(scaled, placements, strict=True))
    if fusion == "max":
        total = torch.zeros(1, dtype=weights.dtype, device=weights.device)
        for index, layer_map in enumerate(resized):
            total = torch.maximum(total, expand_like(weights[:, index], layer_map) * layer_map)
    else:
        total = _geometric_mean(resized, weights)
        if fusion == "product":
            total = by_magnitude(total) ** len(scaled)
    return total


def _weighted_sum(
    maps: Sequence[Tensor], weights: Tensor, space: tuple[int, ...], placements: Sequence[Placement | None]
) -> Tensor:
    # Interpolation is linear: add what has one size and place, then resize once for each of these.
    alike: dict[tuple[tuple[int, ...], Placement | None], list[int]] = {}
    for index, (layer_map, at) in enumerate(zip(maps, placements, strict=True)):
        alike.setdefault((tuple(layer_map.shape[1:]), at), []).append(index)
    total = torch.zeros(1, dtype=weights.dtype, device=weights.device)
    for (size, at), indices in alike.items():
        stacked = torch.stack([maps[index].flatten(1) for index in indices], 1)
        shares = weights[:, indices] / _largest(stacked, 2)
        total = total + laid_on(torch.bmm(shares[:, None], stacked).reshape(-1, *size), space, at)
    return total


def _geometric_mean(maps: Iterable[Float[Tensor, "batch *space"]], weights: Tensor) -> Tensor:
    logarithm = torch.zeros(1, dtype=weights.dtype, device=weights.device)
    vetoed = torch.zeros(1, dtype=torch.bool, device=weights.device)
    for index, resized in enumerate(maps):
        weight = expand_like(weights[:, index], resized)
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
    return F.interpolate(values[:, None], size=space, mode=MODES[len(space)], align_corners=False)[:, 0]


def laid_on(
    values: Float[Tensor, "batch *grid"], space: tuple[int, ...], placement: Placement | None
) -> Float[Tensor, "batch *space"]:
    """A map on the input that it lies on: as `resize` where it covers it evenly, else by its `Placement`."""
    if placement is None and len(space) in MODES:
        return resize(values, space)
    if placement is None:
        lines = tuple(tuple((place + 0.5) / size for place in range(size)) for size in values.shape[1:])
        placement = Placement(lines, ((0.0, 1.0),) * len(space), (False,) * len(space))
    of_axes = zip(placement.lines, placement.seen, placement.apart, space, strict=True)
    for axis, (line, seen, apart, size) in enumerate(of_axes, 1):
        matrix = _interpolation(line, seen, apart, size).to(values, non_blocking=True)
        values = torch.tensordot(values, matrix, dims=([axis], [1])).movedim(-1, axis)
    return values


@lru_cache(512)
def _interpolation(
    line: tuple[float, ...], seen: tuple[float, float], apart: bool, size: int
) -> Float[Tensor, "pixel place"]:
    """Linear interpolation between the places of a line, to the centres of the pixels along an axis of that size.

    Places that are `apart`, and centres of pixels, fill these pixels alone.
    """
    places = torch.tensor(line, dtype=torch.float64)
    pixels = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    matrix = torch.zeros(size, len(line), dtype=torch.float64)
    own = places * size - 0.5
    if apart and len(line) > 1 and bool(((own - own.round()).abs() < 1e-3).all()):
        matrix[own.round().long().clamp(0, size - 1), torch.arange(len(line))] = 1
        return matrix
    after = torch.searchsorted(places, pixels).clamp(1, max(len(line) - 1, 1))
    if len(line) == 1:
        matrix[:, 0] = 1
    else:
        low, high = places[after - 1], places[after]
        part = ((pixels - low) / (high - low)).clamp(0, 1)
        pixel = torch.arange(size)
        matrix[pixel, after - 1] = 1 - part
        matrix[pixel, after] += part
    edge = 0.5 / size
    matrix[(pixels + edge <= seen[0] + 1e-9) | (pixels - edge >= seen[1] - 1e-9)] = 0
    return matrix
