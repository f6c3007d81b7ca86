"""HTML pages: the explanations of a folder, most suspicious first, and an evaluation of methods."""

from .._deprecation import deprecated_names
from ._cases import Case, cases_of_explanations
from ._evaluation import Example, Plot, Report, evaluation_html
from ._explanations import html
from ._truth import Truth, read_truth

__all__ = [
    "Case",
    "Example",
    "Plot",
    "Report",
    "Truth",
    "cases_of_explanations",
    "evaluation_html",
    "html",
    "read_truth",
]

__getattr__ = deprecated_names(__name__)
