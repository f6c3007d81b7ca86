"""The maps that biases make (section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Array, Space, inner, positions, total
from .evidence import FLOOR
from .fusion import interpolate


def site_map(gradient: Array, shift: Array, rho: float, negative_share: float) -> Array:
    """One bias site: per channel t / (2 + rho sum(t)) with t = relu(b g), less the share `negative_share` of the same
    made of relu(-b g). A site without space, (channel,), gives a single number.
    """
    space = gradient.shape[1:]
    result = np.zeros(space)
    for channel in range(gradient.shape[0]):
        for sign, share in ((1.0, 1.0), (-1.0, -negative_share)):
            pull = np.zeros(space)
            for place in positions(space):
                pull[place] = max(0.0, sign * float(shift[channel][place]) * float(gradient[channel][place]))
            denominator = max(FLOOR, 2 + rho * total(pull))
            for place in positions(space):
                result[place] += share * float(pull[place]) / denominator
    return result


def complete(maps: Sequence[Array], behind: Sequence[bool], space: Space) -> Array:
    """The maps of all sites behind a tap, at the tap's size and with the same sum: a value stands for as many
    entries as it is spread over, and what interpolation then lacks (where no size divides the other) is spread
    evenly. A site without space gives every position the same.
    """
    result = np.zeros(space)
    count = int(np.prod(space))
    for found, is_behind in zip(maps, behind, strict=True):
        if not is_behind:
            continue
        if found.ndim != len(space):
            for place in positions(space):
                result[place] += total(found) / count
            continue
        resized = interpolate(found, space) * found.size / count
        lacking = (total(found) - total(resized)) / count
        for place in positions(space):
            result[place] += float(resized[place]) + lacking
    return result


def residual(score: float, activation: Array, gradient: Array) -> Array:
    """S - <g, A> in equal parts, each halved as evidence without saturation is (alpha = 1/2).

    `score` and `gradient` are those of the direction in which the read-out rises.
    """
    space = activation.shape[1:]
    result = np.zeros(space)
    for place in positions(space):
        result[place] = (score - inner(activation, gradient)) / int(np.prod(space)) / 2
    return result
