"""What the twins work on: float64 arrays and walks over their positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Space = tuple[int, ...]


def positions(space: Space) -> Iterator[Space]:
    """Every position of a space, one index per axis."""
    return itertools.product(*(range(size) for size in space))


def total(values: Array) -> float:
    """The sum of all entries."""
    result = 0.0
    for place in positions(values.shape):
        result += float(values[place])
    return result


def inner(left: Array, right: Array) -> float:
    """<left, right>."""
    result = 0.0
    for place in positions(left.shape):
        result += float(left[place]) * float(right[place])
    return result


def relu(values: Array) -> Array:
    """What is negative becomes 0."""
    result = np.zeros(values.shape)
    for place in positions(values.shape):
        result[place] = max(0.0, float(values[place]))
    return result
