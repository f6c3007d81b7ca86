"""What is explained: one scalar score per sample, and targets for the common tasks.

A target is a class index, or a callable that takes one sample's output and returns a scalar tensor. The functions here
make such callables. Where they take a class index, they also take another target.
"""

from .._deprecation import deprecated_names
from ._classes import contrast, log_odds, probability, total
from ._detection import Decoder, Detections, detection, fastestdet, matching, overlap
from ._output import Output, logits_of, sample_of
from ._regions import region, segmentation
from ._scoring import (
    SampleTarget,
    Scored,
    Target,
    Targets,
    against_rivals,
    check_targets,
    class_scores,
    score,
    score_each,
    top_classes,
)
from ._values import part, similarity, step, value

__all__ = [
    "Decoder",
    "Detections",
    "Output",
    "SampleTarget",
    "Scored",
    "Targets",
    "Target",
    "against_rivals",
    "check_targets",
    "class_scores",
    "contrast",
    "detection",
    "fastestdet",
    "top_classes",
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

__getattr__ = deprecated_names(__name__)
