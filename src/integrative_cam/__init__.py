"""Integrative CAM: class activation maps fused over all layers of a network (arXiv:2412.01354).

Names are imported when they are first used: `import integrative_cam` alone does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._deprecation import deprecated_names
from ._version import __version__

if TYPE_CHECKING:
    from . import targets
    from ._call import trace
    from ._maps.completeness import Completeness
    from ._maps.streams import Streams
    from ._maps.traced import Trace
    from ._maps.weighting import LayerScores
    from ._plan.taps import TapInfo
    from .cam import IntegrativeCAM, explain, explain_trace
    from .errors import CamError, MissingExtraError
    from .explanation import BiasLayer, Explanation, Layer, SeenRegion
    from .methods import Method, get_method, list_methods
    from .recipe import Recipe

__all__ = [
    "BiasLayer",
    "CamError",
    "Completeness",
    "Explanation",
    "IntegrativeCAM",
    "Layer",
    "LayerScores",
    "Method",
    "MissingExtraError",
    "Recipe",
    "SeenRegion",
    "Streams",
    "TapInfo",
    "Trace",
    "__version__",
    "explain",
    "explain_trace",
    "get_method",
    "list_methods",
    "targets",
    "trace",
]

_HOMES = {
    "._call": ("trace",),
    "._maps.completeness": ("Completeness",),
    "._maps.streams": ("Streams",),
    "._maps.traced": ("Trace",),
    "._maps.weighting": ("LayerScores",),
    "._plan.taps": ("TapInfo",),
    ".cam": ("IntegrativeCAM", "explain", "explain_trace"),
    ".errors": ("CamError", "MissingExtraError"),
    ".explanation": ("BiasLayer", "Explanation", "Layer", "SeenRegion"),
    ".methods": ("Method", "get_method", "list_methods"),
    ".recipe": ("Recipe",),
}
_PACKAGES = ("errors", "evaluate", "integrations", "methods", "models", "render", "reports", "run", "targets")
_deprecated = deprecated_names(__name__)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home, __name__), name)
            return value
    return import_module(f".{name}", __name__) if name in _PACKAGES else _deprecated(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
