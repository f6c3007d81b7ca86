"""Integrative CAM: class activation maps fused over all layers of a network (arXiv:2412.01354)."""

from . import targets
from ._version import __version__
from .bias import Completeness
from .cam import IntegrativeCAM, explain, integrate
from .errors import (
    CamError,
    ExplanationError,
    ImageError,
    InputError,
    MissingExtraError,
    ModelError,
    OutputError,
    RecipeError,
    TapError,
    TargetError,
)
from .explanation import BiasLayer, Explanation, Layer
from .methods import Method, method, methods
from .recipe import Recipe
from .streams import Streams
from .taps import TapInfo
from .trace import trace
from .traced import Trace
from .weighting import LayerScores

__all__ = [
    "BiasLayer",
    "CamError",
    "Completeness",
    "Explanation",
    "ExplanationError",
    "ImageError",
    "InputError",
    "IntegrativeCAM",
    "Layer",
    "LayerScores",
    "Method",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Streams",
    "TapError",
    "TapInfo",
    "TargetError",
    "Trace",
    "__version__",
    "explain",
    "integrate",
    "method",
    "methods",
    "targets",
    "trace",
]
