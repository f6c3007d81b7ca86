"""Pictures: Pillow and matplotlib live here only."""

from __future__ import annotations

from .comparison import comparison
from .overlay import overlay, overlays
from .panel import panel

__all__ = ["comparison", "overlay", "overlays", "panel"]
