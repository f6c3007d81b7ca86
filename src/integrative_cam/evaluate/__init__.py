"""How good is a map? Metrics with one value per image, their means with intervals, and whole data sets measured.

Arguments that metrics share:
    model: returns logits of at least two classes; run in evaluation mode and left as it was.
    images: (batch, channel, *space), as the model takes them.
    maps: (batch, *space), finite and of the images' size.
    method: one of `list_methods()`, or any callable like them.
    target_index: the class, for all images or for each.
    batch_size: how many images the model sees at once, at least 1.
    cells: pixels per side of the square cells (cubes or intervals in other dimensions) that are shown, hidden or
        imputed as a whole, ranked by the map's mean in the cell; smaller at the far edges where the size is no
        multiple. None: pixel by pixel.

A metric raises InputError for arguments that cannot be used; OutputError or TargetError where the model's output has
no logits, is not finite, or has several values per class; and, where it makes maps itself, the errors of `explain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._deprecation import deprecated_names
from ..methods._controls import centre_map, random_maps
from ._accumulate import Accumulator, accumulator
from ._cells import faithfulness_correlation, single_cell
from ._faithfulness import (
    average_drop,
    deletion,
    deletion_curve,
    dimmed_probabilities,
    increase,
    insertion,
    insertion_curve,
    road_combined,
    road_lerf,
    road_morf,
    srg,
)
from ._ground_truth import grid_pointing, planted_patch
from ._localisation import best_iou, box_hits, energy, mask_of_boxes, max_box_accuracy, pointing, top_share
from ._perturbation import Baseline, NoisyLinear, blurred, imputed, mean_of, order, zeros
from ._randomisation import class_dependence, randomisation, randomisation_curve, randomised, rank_correlation
from ._robustness import infidelity, max_sensitivity
from ._simplicity import adcc, arcc, area, coherency, complexity, total_variation
from ._statistics import Interval, bootstrap_mean, mean_rank, paired_difference, win_rate

if TYPE_CHECKING:
    from ._evaluation import Evaluation, evaluate_dataset

__all__ = [
    "Accumulator",
    "Baseline",
    "Evaluation",
    "Interval",
    "NoisyLinear",
    "accumulator",
    "adcc",
    "arcc",
    "area",
    "average_drop",
    "best_iou",
    "blurred",
    "bootstrap_mean",
    "box_hits",
    "centre_map",
    "class_dependence",
    "coherency",
    "complexity",
    "deletion",
    "deletion_curve",
    "dimmed_probabilities",
    "energy",
    "evaluate_dataset",
    "faithfulness_correlation",
    "imputed",
    "grid_pointing",
    "increase",
    "infidelity",
    "insertion",
    "insertion_curve",
    "mask_of_boxes",
    "max_box_accuracy",
    "max_sensitivity",
    "mean_of",
    "mean_rank",
    "order",
    "paired_difference",
    "planted_patch",
    "pointing",
    "random_maps",
    "randomisation",
    "randomisation_curve",
    "randomised",
    "rank_correlation",
    "road_combined",
    "road_lerf",
    "road_morf",
    "single_cell",
    "srg",
    "top_share",
    "total_variation",
    "win_rate",
    "zeros",
]


def __getattr__(name: str) -> Any:
    # These need the extra `evaluate`; the metrics do not.
    if name in ("Evaluation", "evaluate_dataset"):
        from . import _evaluation

        return getattr(_evaluation, name)
    return deprecated_names(__name__)(name)
