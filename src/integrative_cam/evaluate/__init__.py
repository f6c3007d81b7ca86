"""How good is a map? One value per image; means over images with intervals are in `statistics`."""

from .faithfulness import (
    average_drop,
    deletion,
    deletion_curve,
    dimmed_probabilities,
    increase,
    insertion,
    insertion_curve,
)
from .localisation import best_iou, centre_map, energy, mask_of_boxes, pointing, random_maps, top_share
from .perturbation import Baseline, blurred, imputed, mean_of, order, zeros
from .road import road_combined, road_lerf, road_morf
from .simplicity import adcc, arcc, area, coherency, complexity, total_variation
from .statistics import Interval, bootstrap_mean, mean_rank, paired_difference

__all__ = [
    "Baseline",
    "Interval",
    "adcc",
    "arcc",
    "area",
    "average_drop",
    "best_iou",
    "blurred",
    "bootstrap_mean",
    "centre_map",
    "coherency",
    "complexity",
    "deletion",
    "deletion_curve",
    "dimmed_probabilities",
    "energy",
    "imputed",
    "increase",
    "insertion",
    "insertion_curve",
    "mask_of_boxes",
    "mean_of",
    "mean_rank",
    "order",
    "paired_difference",
    "pointing",
    "random_maps",
    "road_combined",
    "road_lerf",
    "road_morf",
    "top_share",
    "total_variation",
    "zeros",
]
