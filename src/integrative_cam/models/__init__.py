"""Networks by name, with their preprocessing and class names."""

from __future__ import annotations

from .._choices import DEFAULT_NETWORK as DEFAULT
from .._deprecation import deprecated_names
from ._exported import as_functions
from ._image import Preprocessing, View, read_image
from ._network import Network
from ._zoo import build, load

__all__ = ["DEFAULT", "Network", "Preprocessing", "View", "as_functions", "build", "load", "read_image"]

__getattr__ = deprecated_names(__name__)
