"""Layer scores and layer weights (section 5), one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .arrays import Array, positions

Row = list[float]


def mean_magnitude(values: Array) -> float:
    """mean|values|."""
    result = 0.0
    for place in positions(values.shape):
        result += abs(float(values[place]))
    return result / values.size


def joint_score(activation: Array, gradient: Array) -> float:
    """sum|g A|."""
    result = 0.0
    for place in positions(activation.shape):
        result += abs(float(activation[place]) * float(gradient[place]))
    return result


def shares(values: Sequence[float]) -> Row:
    """Parts of the sum; equal ones where there is nothing to share."""
    everything = sum(values)
    return [value / everything if everything > 0 else 1 / len(values) for value in values]


def layer_scores(activations: Sequence[Array], gradients: Sequence[Array]) -> tuple[Row, Row, Row]:
    """(G, C, J): shares of mean|g|, shares of mean|A|, and sum|g A|."""
    gradient = shares([mean_magnitude(each) for each in gradients])
    activation = shares([mean_magnitude(each) for each in activations])
    joint = [joint_score(a, g) for a, g in zip(activations, gradients, strict=True)]
    return gradient, activation, joint


def product(gradient: Row, activation: Row) -> Row:
    """G C, renormalised."""
    return shares([g * c for g, c in zip(gradient, activation, strict=True)])


def coarseness(space: Sequence[int], image: Sequence[int]) -> float:
    """Half the stride, pixels per position along an axis (their geometric mean), at most 1."""
    stride = math.prod(pixels / size for pixels, size in zip(image, space, strict=True)) ** (1 / len(image))
    return min(1.0, stride / 2)


def adjust_for_resolution(
    values: Sequence[float],
    spaces: Sequence[Sequence[int]],
    image: Sequence[int],
    stride_exponent: float,
    stage_share: float,
) -> Row:
    """Fine layers count less; the last layer of each resolution has the share `stage_share` in addition."""
    found = shares(
        [value * coarseness(space, image) ** stride_exponent for value, space in zip(values, spaces, strict=True)]
    )
    ends = []
    for index, space in enumerate(spaces):
        is_last = all(tuple(later) != tuple(space) for later in spaces[index + 1 :])
        ends.append(found[index] if is_last else 0.0)
    if sum(ends) == 0:
        return found
    return [(1 - stage_share) * value + stage_share * end / sum(ends) for value, end in zip(found, ends, strict=True)]


def weights(
    gradient: Row,
    activation: Row,
    joint: Row,
    paths: Sequence[float],
    weighting: str,
    weight_exponent: float,
    path_exponent: float,
) -> Row:
    """The weighting's shares to `weight_exponent`, times each layer's path share to `path_exponent`, as shares."""
    layers = range(len(joint))
    if weighting == "joint":
        found = joint
    elif weighting == "product":
        found = product(gradient, activation)
    elif weighting == "average":
        found = [(gradient[layer] + activation[layer]) / 2 for layer in layers]
    elif weighting == "geometric":
        of_product, of_joint = product(gradient, activation), shares(joint)
        found = [math.sqrt(of_product[layer] * of_joint[layer]) for layer in layers]
    elif weighting == "uniform":
        found = [1.0 for _ in layers]
    elif weighting == "last":
        found = [float(layer == len(joint) - 1) for layer in layers]
    else:
        raise ValueError(weighting)
    return shares(
        [share**weight_exponent * path**path_exponent for share, path in zip(shares(found), paths, strict=True)]
    )
