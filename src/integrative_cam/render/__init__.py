"""Pictures: Pillow and matplotlib live here only."""

from __future__ import annotations

from .overlay import overlay, overlays
from .panel import panel

__all__ = ["overlay", "overlays", "panel"]
