"""The methods of the CAM family, by name."""

from ._registry import Explainer, Method, get_method, list_methods

__all__ = ["Explainer", "Method", "get_method", "list_methods"]
