"""The methods of the CAM family, by name."""

import sys

from .._deprecation import CallableModule, deprecated_names
from ._registry import Explainer, Method, get_method, list_methods

__all__ = ["Explainer", "Method", "get_method", "list_methods"]

__getattr__ = deprecated_names(__name__)
sys.modules[__name__].__class__ = CallableModule
