"""The explanations of a run as one HTML file, most suspicious first."""

from .cases import Case, cases_of_explanations
from .page import html
from .truth import Truth, read_truth

__all__ = ["Case", "Truth", "cases_of_explanations", "html", "read_truth"]
