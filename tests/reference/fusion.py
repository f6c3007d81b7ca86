"""Maps and weights into one map (section 6), one sample at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from .arrays import Array, Space, positions, relu


def neighbours(index: int, old: int, new: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """The two old entries between which a new one lies, with their shares.

    Entries are cells of equal extent, so that centres sit at index + 1/2 (align_corners=False).
    """
    centre = max(0.0, (old / new) * (index + 0.5) - 0.5)
    left = math.floor(centre)
    share = centre - left
    return (left, 1 - share), (min(left + 1, old - 1), share)


def interpolate(values: Array, space: Space) -> Array:
    """Linear along every axis, in any number of dimensions."""
    result = np.zeros(space)
    for place in positions(space):
        sides = [neighbours(*each) for each in zip(place, values.shape, space, strict=True)]
        for corner in itertools.product(*sides):
            share = 1.0
            for _, part in corner:
                share *= part
            result[place] += share * float(values[tuple(index for index, _ in corner)])
    return result


def largest_magnitude(values: Array) -> float:
    """max|values|."""
    result = 0.0
    for place in positions(values.shape):
        result = max(result, abs(float(values[place])))
    return result


def by_magnitude(values: Array) -> Array:
    """Divided by the largest magnitude; zeros stay zeros."""
    largest = largest_magnitude(values)
    result = np.zeros(values.shape)
    for place in positions(values.shape):
        result[place] = float(values[place]) / largest if largest > 0 else 0.0
    return result


def fuse(maps: Sequence[Array], weights: Sequence[float], space: Space, fusion: str) -> Array:
    """Each map by its largest magnitude, resized, weighted and fused; cut at zero; divided by the maximum."""
    resized = [interpolate(by_magnitude(each), space) for each in maps]
    result = np.zeros(space)
    for place in positions(space):
        values = [float(each[place]) for each in resized]
        if fusion == "sum":
            result[place] = sum(weight * value for weight, value in zip(weights, values, strict=True))
        elif fusion == "max":
            result[place] = max(weight * value for weight, value in zip(weights, values, strict=True))
        elif fusion in ("geometric", "product"):
            power = 1 if fusion == "geometric" else len(maps)
            result[place] = math.prod(
                max(0.0, value) ** (weight * power) for weight, value in zip(weights, values, strict=True)
            )
        else:
            raise ValueError(fusion)
    return by_magnitude(relu(result))
