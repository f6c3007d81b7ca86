"""The explanations in a folder as one HTML page, most suspicious first."""

from .._deprecation import deprecated_names
from ._cases import Case, cases_of_explanations
from ._explanations import html
from ._truth import Truth, read_truth

__all__ = [
    "Case",
    "Truth",
    "cases_of_explanations",
    "html",
    "read_truth",
]

__getattr__ = deprecated_names(__name__)
