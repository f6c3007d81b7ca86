"""How much each layer counts: scores from gradient and activation, and the weights made of them (section 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._plan.placement import Placement
from ..errors import RecipeError
from .traced import Trace

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class LayerScores:
    """Per sample and tap. `gradient` = mean|g| and `activation` = mean|A|, each summing to 1 over the taps;
    `joint` = sum|g A|, as it is. Per tap, `paths`: the share of the network's paths that pass it.
    """

    gradient: Float[Tensor, "batch tap"]
    activation: Float[Tensor, "batch tap"]
    joint: Float[Tensor, "batch tap"]
    paths: Float[Tensor, "tap"]


Weighting = Callable[[LayerScores], Tensor]


def layer_scores(trace: Trace[Any, Any]) -> LayerScores:
    """Score every tap of `trace`."""
    sums = [tap.sums for tap in trace.taps]
    gradient = shares(torch.stack([each.gradient for each in sums], 1))
    activation = shares(torch.stack([each.activation for each in sums], 1))
    joint = torch.stack([each.magnitude for each in sums], 1)
    paths = joint.new_tensor([float(tap.path_share) for tap in trace.taps])
    return LayerScores(gradient, activation, joint, paths)


def _product(scores: LayerScores) -> Tensor:
    return shares(scores.gradient * scores.activation)


def _last(scores: LayerScores) -> Tensor:
    weights = torch.zeros_like(scores.joint)
    weights[:, -1] = 1
    return weights


WEIGHTINGS: Mapping[str, Weighting] = {
    "joint": lambda scores: scores.joint,
    "product": _product,
    "average": lambda scores: (scores.gradient + scores.activation) / 2,
    "geometric": lambda scores: power(_product(scores) * shares(scores.joint), 0.5),
    "uniform": lambda scores: torch.ones_like(scores.joint),
    "last": _last,
}


def layer_weights(
    scores: LayerScores, weighting: str | Weighting, weight_exponent: float, path_exponent: float
) -> Float[Tensor, "batch tap"]:
    """Weights that sum to 1 over the taps: the weighting's to the power `weight_exponent`, times the path share's to
    `path_exponent`.

    A `weight_exponent` of 1/2 flattens the weights. A tap that all paths pass keeps its weight whatever
    `path_exponent` is; one inside of a residual branch, which half of them pass, keeps 1/16 of it at 4.

    Raises:
        RecipeError: a callable's weights are negative, not finite or of another shape.
    """
    weigh = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    weights = weigh(scores)
    if not isinstance(weights, Tensor) or weights.shape != scores.joint.shape:
        came = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise RecipeError(
            f"weighting must give a tensor of shape (batch, taps) = {tuple(scores.joint.shape)}, but gave {came}."
        )
    if callable(weighting) and not (weights.isfinite() & (weights >= 0)).all():
        raise RecipeError("weighting must give finite weights >= 0.")
    # Shares first: a power of very small or large scores could leave the range of float32.
    return shares(power(shares(weights), weight_exponent) * scores.paths**path_exponent)


def adjust_for_resolution(
    weights: Float[Tensor, "batch tap"],
    spaces: Sequence[tuple[int, ...]],
    image: tuple[int, ...],
    stride_exponent: float,
    stage_share: float,
    placements: Sequence[Placement | None] = (),
) -> Float[Tensor, "batch tap"]:
    """Weights by where the taps stand: times `coarseness` to the power `stride_exponent`; then the last tap
    of each resolution has the part `stage_share` in addition, in proportion to its weight, and all have the rest.

    Early layers are many and alike, the last of a resolution holds what they come to.
    """
    coarse = coarseness(spaces, image, placements)
    weights = shares(weights * coarse.to(weights) ** stride_exponent)
    last = list({space: index for index, space in enumerate(spaces)}.values())
    at_ends = torch.zeros_like(weights)
    at_ends[:, last] = weights[:, last]
    total = at_ends.sum(1, keepdim=True)
    # Where none of them has a weight, all keep theirs.
    part = stage_share * (total > 0).to(weights)
    return (1 - part) * weights + part * at_ends / torch.where(total > 0, total, 1)


def coarseness(
    spaces: Sequence[tuple[int, ...]], image: tuple[int, ...], placements: Sequence[Placement | None] = ()
) -> Float[Tensor, "map"]:
    """Half of each map's stride, pixels of the image per position along an axis, but at most 1."""
    placements = placements or [None] * len(spaces)
    sizes = [space if at is None else at.sizes for space, at in zip(spaces, placements, strict=True)]
    strides = [(prod(image) / prod(size)) ** (1 / len(image)) for size in sizes]
    return torch.tensor([min(1.0, stride / 2) for stride in strides], dtype=torch.float64)


def shares(values: Float[Tensor, "batch layer"]) -> Float[Tensor, "batch layer"]:
    """Scale non-negative rows to sum 1; a row of zeros becomes uniform."""
    total = values.sum(1, keepdim=True)
    # Nothing is divided by zero, so that no gradient is NaN.
    scaled = values / torch.where(total > 0, total, 1)
    return torch.where(total > 0, scaled, 1 / max(values.shape[1], 1))


def power(values: Tensor, exponent: float) -> Tensor:
    """Non-negative values to a positive power; at zero the gradient is zero, where that of a root is infinite."""
    zero = values == 0  # NaN is none: what is undefined stays so
    return torch.where(zero, 0, torch.where(zero, 1, values) ** exponent)
