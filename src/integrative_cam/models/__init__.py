"""Networks by name, with their preprocessing and class names."""

from __future__ import annotations

from .bundled import NAME as DEFAULT
from .image import Preprocessing, View, read_image
from .network import Network
from .zoo import build, load

__all__ = ["DEFAULT", "Network", "Preprocessing", "View", "build", "load", "read_image"]
