"""Metrics by name, on one method's map of one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import InputError, RecipeError
from ..explanation import Explanation
from ..methods._registry import Explainer
from ..recipe import one_of
from ..targets import Target, class_scores
from . import _cells as by_cells
from . import _faithfulness as faithfulness
from . import _ground_truth as ground_truth
from . import _localisation as localisation
from . import _robustness as robustness
from . import _simplicity as simplicity
from ._probabilities import TargetAgainstNone
from ._randomisation import other_class, randomised, rank_correlation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

ROAD_NOISE = 0.01
"""Of ROAD's imputed pixels (arXiv:2202.00449), so that a network cannot tell them by their smoothness."""


@dataclass(frozen=True)
class Regions:
    """Where the explained class is in each image: `masks`, and, where the data has them, the `boxes` they come from.

    `boxes` per image: (left, top, right, bottom) in pixels of the map.
    """

    masks: Bool[Tensor, "batch height width"]
    boxes: tuple[Float[Tensor, "box 4"], ...] | None = None


@dataclass(frozen=True)
class Case:
    """A method's maps of a batch of images, and what several metrics need, computed once. See `evaluate`."""

    model: nn.Module
    images: Float[Tensor, "batch channel height width"]
    method: Explainer
    steps: int
    seed: int
    target: Target = None
    regions: Regions | None = None
    task: str = "classification"
    cells: int = by_cells.CELL
    answers: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    companions: Float[Tensor, "batch 3 channel height width"] | None = None
    _values: dict[str, Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def explanation(self) -> Explanation:
        return self.method(self.model, self.images, self.target)

    @property
    def maps(self) -> Float[Tensor, "batch height width"]:
        return self.explanation.map

    @property
    def index(self) -> Int[Tensor, "batch"]:
        if self.explanation.target is None:
            raise InputError("target must be None, a class index or one per image, but the method explained no class.")
        return self.explanation.target

    @property
    def model_images_maps_index(self) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """The arguments of metrics that follow the target's probability."""
        if self.task == "classification":
            return self.model, self.images, self.maps, self.index
        model = TargetAgainstNone(self.model, int(self.index), self.task)
        return model, self.images, self.maps, torch.ones_like(self.index)

    @property
    def masks(self) -> Bool[Tensor, "batch height width"]:
        if self.regions is None:
            raise InputError("regions must say where the explained class is, for metrics of localisation; got None.")
        return self.regions.masks

    @property
    def boxes(self) -> tuple[Float[Tensor, "box 4"], ...]:
        if self.regions is None or self.regions.boxes is None:
            raise InputError("regions must have boxes for maxboxacc; got none.")
        return self.regions.boxes

    def __getitem__(self, metric: str) -> Tensor:
        """A metric's value, computed once, though others are made of it."""
        if metric not in self._values:
            self._values[metric] = ALL[metric].of(self)
        return self._values[metric]

    def answer(self, measure: Callable[..., Tensor], **settings: int) -> Tensor:
        """What the network answers about the target, whatever the map: measured once for all methods."""
        model, images, _, index = self.model_images_maps_index
        key = (measure.__name__, *self.index.tolist())
        if key not in self.answers:
            self.answers[key] = measure(model, images, index, self.cells, **settings)
        return self.answers[key]

    @cached_property
    def planted(self) -> tuple[Float[Tensor, "quadrant batch ..."], Bool[Tensor, "quadrant batch ..."]]:
        return ground_truth.planted_maps(self.model, self.images, self.method)

    @cached_property
    def dimmed(self) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        return faithfulness.dimmed_probabilities(*self.model_images_maps_index)


def _road(case: Case, cells: int | None = None) -> Float[Tensor, "batch"]:
    generator = torch.Generator().manual_seed(case.seed)
    return faithfulness.road_combined(*case.model_images_maps_index, noise=ROAD_NOISE, generator=generator, cells=cells)


def _single_cell(case: Case) -> Float[Tensor, "batch"]:
    falls = case.answer(by_cells.falls_by_cell)
    return by_cells.single_cell_of(case.explanation.signed_map, falls, case.cells)


def _faithfulness_correlation(case: Case) -> Float[Tensor, "batch"]:
    logits = case.answer(by_cells.logits_of_sets, seed=case.seed)
    return by_cells.faithfulness_correlation_of(case.explanation.signed_map, logits, case.cells, case.seed)


def _coherency(case: Case) -> Float[Tensor, "batch"]:
    masked = case.images * case.maps[:, None].to(case.images.dtype)
    return simplicity.coherency(case.maps, case.method(case.model, masked, case.index).map)


def _randomisation(case: Case) -> Float[Tensor, "batch"]:
    model = randomised(case.model, 0.5, case.seed)
    return rank_correlation(case.maps, case.method(model, case.images, case.index).map)


def _class_dependence(case: Case, other: str) -> Float[Tensor, "batch"]:
    index = other_class(class_scores(case.explanation.output, "target"), case.index, other)
    return simplicity.correlation(case.maps, case.method(case.model, case.images, index).map)


def _grid_pointing(case: Case) -> Float[Tensor, "batch"]:
    if case.companions is None:
        raise InputError(f"companions must be three images per image for {GRID}, of other classes; got None.")
    return ground_truth.grid_pointing(case.model, case.images, case.companions, case.method, case.index)


def _planted(case: Case, measure: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, "batch"]:
    maps, masks = case.planted
    return measure(maps.flatten(0, 1), masks.flatten(0, 1)).reshape(4, -1).mean(0)


def _by_captum(case: Case, metric: Callable[..., Tensor]) -> Float[Tensor, "batch"]:
    return metric(case.model, case.images, case.method, case.index, seed=case.seed)


@dataclass(frozen=True)
class Metric:
    """How to compute it, which way is better, None where neither is, and what it is in words."""

    of: Callable[[Case], Tensor]
    higher_is_better: bool | None
    meaning: str

    def title(self, name: str) -> str:
        """The metric's name with an arrow to the better side."""
        return name + {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]


GRID = "grid-pointing"
"""Needs other photographs beside the image."""

METRICS: Mapping[str, Metric] = {
    "insertion": Metric(
        lambda case: faithfulness.insertion(*case.model_images_maps_index, case.steps),
        True,
        "area under the target's probability while pixels appear on a blurred image, highest first",
    ),
    "deletion": Metric(
        lambda case: faithfulness.deletion(*case.model_images_maps_index, case.steps),
        False,
        "area under the target's probability while pixels are set to zero, highest first",
    ),
    "ins-del": Metric(lambda case: case["insertion"] - case["deletion"], True, "insertion minus deletion"),
    "srg": Metric(
        lambda case: faithfulness.srg(*case.model_images_maps_index, case.steps),
        True,
        "symmetric relevance gain: deletion with the lowest pixels first minus deletion with the highest first",
    ),
    "insertion-cells": Metric(
        lambda case: faithfulness.insertion(*case.model_images_maps_index, case.steps, cells=case.cells),
        True,
        "insertion by cells, ranked by the map's mean in the cell",
    ),
    "deletion-cells": Metric(
        lambda case: faithfulness.deletion(*case.model_images_maps_index, case.steps, cells=case.cells),
        False,
        "deletion by cells, ranked by the map's mean in the cell, to the blurred image",
    ),
    "ins-del-cells": Metric(
        lambda case: case["insertion-cells"] - case["deletion-cells"], True, "insertion minus deletion by cells"
    ),
    "srg-cells": Metric(
        lambda case: faithfulness.srg(*case.model_images_maps_index, case.steps, cells=case.cells),
        True,
        "symmetric relevance gain by cells, which are set to zero",
    ),
    "single-cell": Metric(
        _single_cell,
        True,
        "rank correlation of the signed map's sum in a cell with the fall of the logit when it alone is blurred",
    ),
    "faithfulness-correlation": Metric(
        _faithfulness_correlation,
        True,
        "correlation of the signed map's part in random sets of cells that are kept with the logit, "
        "the number of cells taken out",
    ),
    "drop": Metric(
        lambda case: faithfulness.share_lost(*case.dimmed),
        False,
        "share of the probability lost when the normalised image is multiplied by its map",
    ),
    "increase": Metric(
        lambda case: faithfulness.gained(*case.dimmed),
        True,
        "how often the probability gains when the image is multiplied by its map",
    ),
    "road": Metric(_road, True, "(least - most relevant pixels imputed) / 2, at 20, 40, 60 and 80 %"),
    "road-cells": Metric(
        lambda case: _road(case, case.cells), True, "road by cells, ranked by the map's mean in the cell"
    ),
    "coherency": Metric(_coherency, True, "correlation with the map of the image multiplied by the map"),
    "complexity": Metric(lambda case: simplicity.complexity(case.maps), False, "mean of the map"),
    "adcc": Metric(
        lambda case: simplicity.adcc(case["drop"], case["coherency"], case["complexity"]),
        True,
        "harmonic mean of coherency, 1 - complexity and 1 - drop",
    ),
    "arcc": Metric(
        lambda case: simplicity.arcc(case["road"], case["coherency"], case["complexity"]),
        True,
        "harmonic mean of coherency, 1 - complexity and twice road",
    ),
    "area": Metric(lambda case: simplicity.area(case.maps), None, "share of the image above half of the maximum"),
    "variation": Metric(
        lambda case: simplicity.total_variation(case.maps), False, "mean difference of neighbouring pixels"
    ),
    "randomisation": Metric(
        _randomisation,
        False,
        "rank correlation with the map of the network whose top half of layers is redrawn",
    ),
    "class-dependence": Metric(
        lambda case: _class_dependence(case, "unrelated"),
        False,
        "correlation with the map of an unrelated class, the median of the other classes' scores",
    ),
    "class-dependence-second": Metric(
        lambda case: _class_dependence(case, "second"),
        False,
        "correlation with the map of the class with the highest score besides the target",
    ),
    GRID: Metric(
        _grid_pointing,
        True,
        "share of the map's sum in the photograph's quadrant of a mosaic with three photographs of other classes",
    ),
    "planted-patch": Metric(
        lambda case: _planted(case, localisation.energy),
        True,
        "share of the map's sum in the quadrant that the network sees, blind to all others",
    ),
    "planted-patch-pointing": Metric(
        lambda case: _planted(case, localisation.pointing),
        True,
        "whether the map's maximum is in the quadrant that the network sees, blind to all others",
    ),
    "infidelity": Metric(
        lambda case: _by_captum(case, robustness.infidelity),
        False,
        "squared error of what the map says about hiding random squares",
    ),
    "sensitivity": Metric(
        lambda case: _by_captum(case, robustness.max_sensitivity),
        False,
        "how far the map moves when a little noise is added to the image",
    ),
}


MAX_BOX = "maxboxacc"
"""Has one value per data set: per image only a hit or none at each threshold, shape (batch, threshold)."""

LOCALISATION: Mapping[str, Metric] = {
    "pointing": Metric(
        lambda case: localisation.pointing(case.maps, case.masks), True, "whether the map's maximum is in the region"
    ),
    "energy": Metric(
        lambda case: localisation.energy(case.maps, case.masks), True, "share of the map's sum in the region"
    ),
    "top-share": Metric(
        lambda case: localisation.top_share(case.maps, case.masks),
        True,
        "share of the top tenth of the pixels in the region",
    ),
    "best-iou": Metric(
        lambda case: localisation.best_iou(case.maps, case.masks),
        True,
        "intersection over union at the threshold that is best for the image",
    ),
    MAX_BOX: Metric(
        lambda case: localisation.box_hits(case.maps, case.boxes),
        True,
        "share of images where the box around the map's largest part overlaps a box by at least 0.5",
    ),
}
"""Those that need to know where the explained class is."""

ALL: Mapping[str, Metric] = {**METRICS, **LOCALISATION}


def evaluate(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    method: Explainer,
    metrics: Sequence[str],
    steps: int = 16,
    seed: int = 0,
    target: Target = None,
    regions: Regions | None = None,
    task: str = "classification",
    cells: int = by_cells.CELL,
    answers: dict[tuple[object, ...], Tensor] | None = None,
    companions: Float[Tensor, "batch 3 channel height width"] | None = None,
) -> dict[str, Float[Tensor, "batch"]]:
    """The value of each metric for a method's map of each image, which is normalised, so that 0 is the mean colour.

    `steps` are those of insertion, deletion and the symmetric relevance gain, `seed` that of ROAD's noise, of random
    sets of cells and of redrawn layers, `cells` the pixels per side of a cell, `target` a class, one per image, or each
    image's top class. Metrics of `LOCALISATION` need `regions`; for `maxboxacc` the values are the hits that
    `max_box_accuracy` takes. With the task "multi-label", `images` holds one image. Calls with the same model, images,
    task, seed and cells may share a dict of `answers`: what the network answers whatever the map. `companions` are
    those of `grid_pointing`.

    Raises:
        RecipeError: an unknown metric.
        InputError: a target that is no class, or no regions or boxes for metrics that need them.
        CamError: see `explain` and `insertion_curve`.
    """
    if not metrics:
        raise RecipeError(f"metrics must name at least one of {', '.join(ALL)}.")
    for name in metrics:
        one_of("metric", name, ALL)
    case = Case(
        model, images, method, steps, seed, target, regions, task, cells, {} if answers is None else answers, companions
    )
    return {name: case[name] for name in metrics}
