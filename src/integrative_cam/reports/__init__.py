"""The explanations of a run as one HTML file, most suspicious first."""

from ._cases import Case, cases_of_explanations
from ._page import html
from ._truth import Truth, read_truth

__all__ = ["Case", "Truth", "cases_of_explanations", "html", "read_truth"]
