"""Metrics by name, on one method's map of one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..explanation import Explanation
from ..methods import Explainer
from ..recipe import one_of
from . import faithfulness, road, simplicity

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ROAD_NOISE = 0.01
"""Of ROAD's imputed pixels (arXiv:2202.00449), so that a network cannot tell them by their smoothness."""


@dataclass(frozen=True)
class Case:
    """A method's map of a batch of images, and what several metrics need, computed once."""

    model: nn.Module
    images: Float[Tensor, "batch channel height width"]
    method: Explainer
    steps: int
    seed: int

    @cached_property
    def explanation(self) -> Explanation:
        """Of each image's own top class."""
        return self.method(self.model, self.images, None)

    @cached_property
    def maps(self) -> Float[Tensor, "batch height width"]:
        return self.explanation.map

    @cached_property
    def index(self) -> Int[Tensor, "batch"]:
        assert self.explanation.target is not None
        return self.explanation.target

    @cached_property
    def insertion(self) -> Float[Tensor, "batch"]:
        return faithfulness.insertion(self.model, self.images, self.maps, self.index, self.steps)

    @cached_property
    def deletion(self) -> Float[Tensor, "batch"]:
        return faithfulness.deletion(self.model, self.images, self.maps, self.index, self.steps)

    @cached_property
    def dimmed(self) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        return faithfulness.dimmed_probabilities(self.model, self.images, self.maps, self.index)

    @property
    def drop(self) -> Float[Tensor, "batch"]:
        return faithfulness.share_lost(*self.dimmed)

    @property
    def increase(self) -> Float[Tensor, "batch"]:
        return faithfulness.gained(*self.dimmed)

    @cached_property
    def road(self) -> Float[Tensor, "batch"]:
        generator = torch.Generator().manual_seed(self.seed)
        return road.road_combined(self.model, self.images, self.maps, self.index, noise=ROAD_NOISE, generator=generator)

    @cached_property
    def coherency(self) -> Float[Tensor, "batch"]:
        masked = self.images * self.maps[:, None].to(self.images.dtype)
        again = self.method(self.model, masked, self.index)
        return simplicity.coherency(self.maps, again.map)

    @property
    def complexity(self) -> Float[Tensor, "batch"]:
        return simplicity.complexity(self.maps)


@dataclass(frozen=True)
class Metric:
    """How to compute it, and which way is better; None where neither is."""

    of: Callable[[Case], Tensor]
    higher_is_better: bool | None


METRICS: Mapping[str, Metric] = {
    "insertion": Metric(lambda case: case.insertion, True),
    "deletion": Metric(lambda case: case.deletion, False),
    "ins-del": Metric(lambda case: case.insertion - case.deletion, True),
    "drop": Metric(lambda case: case.drop, False),
    "increase": Metric(lambda case: case.increase, True),
    "road": Metric(lambda case: case.road, True),
    "coherency": Metric(lambda case: case.coherency, True),
    "complexity": Metric(lambda case: case.complexity, False),
    "adcc": Metric(lambda case: simplicity.adcc(case.drop, case.coherency, case.complexity), True),
    "arcc": Metric(lambda case: simplicity.arcc(case.road, case.coherency, case.complexity), True),
    "area": Metric(lambda case: simplicity.area(case.maps), None),
    "variation": Metric(lambda case: simplicity.total_variation(case.maps), False),
}


def evaluate(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    method: Explainer,
    metrics: Sequence[str],
    steps: int = 16,
    seed: int = 0,
) -> dict[str, Float[Tensor, "batch"]]:
    """The value of each metric for a method's map of each image's own top class.

    Args:
        model: returns logits; left as it was.
        images: (batch, channel, height, width), normalised, so that 0 is the mean colour.
        method: one of `methods()`, or any callable like them.
        metrics: names in `METRICS`.
        steps: of insertion and deletion.
        seed: of ROAD's noise.

    Raises:
        RecipeError: an unknown metric.
        CamError: see `explain` and `faithfulness`.
    """
    if not metrics:
        raise RecipeError(f"metrics must name at least one of {', '.join(METRICS)}.")
    for name in metrics:
        one_of("metric", name, METRICS)
    case = Case(model, images, method, steps, seed)
    return {name: METRICS[name].of(case) for name in metrics}
