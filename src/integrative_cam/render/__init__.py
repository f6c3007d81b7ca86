"""Pictures: Pillow and matplotlib live here only.

Photographs with maps are Pillow images (`overlay`, `coloured`, `outline`, `contour`), everything else matplotlib
figures, which `save` writes as PNG, SVG or PDF. Pictures of an explanation lie where the network looked
(`Explanation.views`); for maps alone, `region` says where they lie in a photograph, such as `View.region`.
"""

from __future__ import annotations

from .._deprecation import deprecated_names
from ._colours import ACTIVATION, GRADIENT, WEIGHT
from ._comparison import comparison, contrast
from ._drawing import curve, plot, presented_layer, slices
from ._notebook import viewer
from ._overlay import Region, coloured, contour, outline, overlay
from ._parts import decomposition, panel, profile, streams
from ._placement import overlays
from ._sheet import save

__all__ = [
    "ACTIVATION",
    "GRADIENT",
    "Region",
    "WEIGHT",
    "comparison",
    "coloured",
    "contour",
    "contrast",
    "curve",
    "decomposition",
    "outline",
    "overlay",
    "overlays",
    "panel",
    "plot",
    "presented_layer",
    "profile",
    "save",
    "slices",
    "streams",
    "viewer",
]

__getattr__ = deprecated_names(__name__)
