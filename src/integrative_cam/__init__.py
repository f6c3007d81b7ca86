"""Integrative CAM: class activation maps fused over all layers of a network (arXiv:2412.01354)."""

from . import targets
from ._call import trace
from ._maps.completeness import Completeness
from ._maps.streams import Streams
from ._maps.traced import Trace
from ._maps.weighting import LayerScores
from ._plan.taps import TapInfo
from ._version import __version__
from .cam import IntegrativeCAM, explain, explain_trace
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
from .methods._registry import Method, get_method, list_methods
from .recipe import Recipe

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
    "explain_trace",
    "get_method",
    "list_methods",
    "targets",
    "trace",
]
