"""The colours of all pictures, told apart by colour-blind eyes."""

from __future__ import annotations

EVIDENCE = "inferno"
"""Of maps in [0, 1]: perceptually uniform."""
SIGNED = "PuOr_r"
"""Of signed maps, white at zero: orange speaks for, purple against."""
WEIGHT, WEIGHT_MARKED = "#f1a340", "#b35806"
GRADIENT, ACTIVATION = "#542788", "#2b7a78"
INPUT, BIAS, REMAINDER = "#0072b2", "#e69f00", "#999999"
"""The parts of a score."""
INK = "#333333"
"""Of everything that is no data; a page with a dark side puts its own colour in its place."""
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's."""
