"""Smooth read-outs f of the score by their first three derivatives, and rho = f''' / f'' (section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Derivatives = tuple[float, float, float]
Readout = Callable[[Sequence[float], int], Derivatives]
"""(logits, target) -> (f', f'', f''') with respect to the target's logit, the others held fixed."""

LIMIT = 1e6
"""The library's bound on |rho|: at p = 1/2 a probability has a pole."""


def rho(derivatives: Derivatives) -> float:
    """f''' / f'', within the limit; 0 for a read-out without curvature."""
    _, second, third = derivatives
    if second == 0 and third == 0:
        return 0.0
    if second == 0:
        return math.copysign(LIMIT, third)
    return max(-LIMIT, min(LIMIT, third / second))


def direction(derivatives: Derivatives) -> float:
    """The sign of f'."""
    slope = derivatives[0]
    return 0.0 if slope == 0 else math.copysign(1.0, slope)


def of_probability(p: float) -> Derivatives:
    """A probability p = 1 / (1 + exp(-S + constant)): softmax with the other logits held fixed, and sigmoid."""
    return p * (1 - p), p * (1 - p) * (1 - 2 * p), p * (1 - p) * (1 - 6 * p + 6 * p * p)


def of_log_probability(p: float) -> Derivatives:
    """log p: d log p = 1 - p, whose derivatives are those of -p."""
    return 1 - p, -p * (1 - p), -p * (1 - p) * (1 - 2 * p)


def logistic(score: float) -> float:
    """1 / (1 + exp(-S))."""
    return 1 / (1 + math.exp(-score))


def probability(logits: Sequence[float], target: int) -> float:
    """Softmax of the target; a single logit stands against 0."""
    if len(logits) == 1:
        return logistic(logits[0])
    top = max(logits)
    everything = 0.0
    for logit in logits:
        everything += math.exp(logit - top)
    return math.exp(logits[target] - top) / everything


def exp(logits: Sequence[float], target: int) -> Derivatives:
    """Grad-CAM++'s own: exp(S)."""
    value = math.exp(logits[target])
    return value, value, value


def identity(logits: Sequence[float], target: int) -> Derivatives:
    """S itself."""
    return 1.0, 0.0, 0.0


def softplus(logits: Sequence[float], target: int) -> Derivatives:
    """log(1 + exp(S)), whose slope is the logistic function."""
    p = logistic(logits[target])
    return (p, *of_probability(p)[:2])


def sigmoid(logits: Sequence[float], target: int) -> Derivatives:
    """1 / (1 + exp(-S))."""
    return of_probability(logistic(logits[target]))


def softmax(logits: Sequence[float], target: int) -> Derivatives:
    """The target's probability among the classes."""
    return of_probability(probability(logits, target))


def log_softmax(logits: Sequence[float], target: int) -> Derivatives:
    """The logarithm of that probability."""
    return of_log_probability(probability(logits, target))


NAMED: dict[str, Readout] = {
    "exp": exp,
    "identity": identity,
    "softplus": softplus,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "log_softmax": log_softmax,
}
