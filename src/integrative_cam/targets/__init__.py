"""What is explained: one scalar score per sample, and targets for the common tasks.

A target is a class index, or a plain callable that takes one sample's output and gives a scalar tensor. The functions
here make such callables; where they take a class index, they take another target as well.
"""

from .classes import contrast, log_odds, probability, total
from .detection import Decoder, Detections, detection, fastestdet, matching, overlap
from .regions import region, segmentation
from .sample import SampleTarget, logits_of, sample_of
from .scoring import Scored, Several, Target, check_several, class_scores, favourites, score, score_each
from .values import part, similarity, step, value

__all__ = [
    "Decoder",
    "Detections",
    "SampleTarget",
    "Scored",
    "Several",
    "Target",
    "check_several",
    "class_scores",
    "contrast",
    "detection",
    "fastestdet",
    "favourites",
    "log_odds",
    "logits_of",
    "matching",
    "overlap",
    "part",
    "probability",
    "region",
    "sample_of",
    "score",
    "score_each",
    "segmentation",
    "similarity",
    "step",
    "total",
    "value",
]
