"""Gradients averaged over regions, activations without their mean, and how far a fine layer is trusted."""

from __future__ import annotations

import itertools
import math

import numpy as np

from .arrays import Array, Space, positions, total
from .fusion import interpolate


def averaged_over_regions(gradient: Array, along: int) -> Array:
    """Per channel: the mean of every region, then linear interpolation between the regions' centres.

    Region i of k along an axis of n positions reaches from floor(i n / k) to ceil((i + 1) n / k).
    """
    space: Space = gradient.shape[1:]
    grid = tuple(min(size, along) for size in space)
    result = np.zeros(gradient.shape)
    for channel in range(gradient.shape[0]):
        means = np.zeros(grid)
        for cell in positions(grid):
            spans = [
                range(at * size // count, math.ceil((at + 1) * size / count))
                for at, count, size in zip(cell, grid, space, strict=True)
            ]
            inside = [float(gradient[channel][place]) for place in itertools.product(*spans)]
            means[cell] = math.fsum(inside) / len(inside)
        result[channel] = interpolate(means, space)
    return result


def along_axis(regions: int, space: Space) -> int:
    """A signal has as many regions as an image; an axis of one position is none."""
    return regions * regions if len([size for size in space if size > 1]) == 1 else regions


def coherence(space: Space, regions: int | None) -> float:
    """sqrt(regions along an axis / side), at most 1; the side is the geometric mean over the axes."""
    if regions is None or not space:
        return 1.0
    axes = [size for size in space if size > 1]
    return min(1.0, math.sqrt(along_axis(regions, space) / math.prod(axes) ** (1 / max(len(axes), 1))))


def centred(activation: Array, share: float) -> Array:
    """Each channel without the share of its mean over space."""
    result = np.array(activation, dtype=float)
    for channel in range(activation.shape[0]):
        result[channel] -= share * total(activation[channel]) / activation[channel].size
    return result
