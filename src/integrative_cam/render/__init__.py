"""Pictures: Pillow and matplotlib live here only.

Photographs with maps are Pillow images (`overlay`, `coloured`, `outline`, `contour`), everything else matplotlib
figures, which `save` writes as PNG, SVG or PDF. `region` is where a map lies in a photograph, such as `View.region`.
"""

from __future__ import annotations

from .colours import ACTIVATION, GRADIENT, WEIGHT
from .comparison import comparison, contrast
from .decomposition import decomposition
from .outline import contour, outline
from .overlay import Region, coloured, overlay, overlays
from .panel import panel, profile
from .plot import plot
from .presentation import presented, presented_layer
from .sheet import save
from .space import curve, slices
from .streams import streams
from .viewer import viewer

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
    "presented",
    "presented_layer",
    "profile",
    "save",
    "slices",
    "streams",
    "viewer",
]
