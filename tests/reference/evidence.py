"""Evidence on one feature map (section 3), and Grad-CAM++'s equation 19 as its paper prints it."""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array, positions, total

FLOOR = 1.0
"""The library's pole guard: a smaller denominator of alpha is raised to this, and counted."""


def alpha(activation: Array, gradient: Array, rho: float) -> tuple[Array, int]:
    """1 / (2 + rho |g| sum(A)) at every entry, and how many denominators the guard raised."""
    result = np.zeros(activation.shape)
    clamped = 0
    for channel in range(activation.shape[0]):
        mass = total(activation[channel])
        for place in positions(activation.shape[1:]):
            denominator = 2 + rho * abs(float(gradient[channel][place])) * mass
            if denominator < FLOOR:
                denominator = FLOOR
                clamped += 1
            result[channel][place] = 1 / denominator
    return result, clamped


def evidence(
    activation: Array, gradient: Array, rho: float, negative_share: float, aggregation: str, by_product: bool = False
) -> tuple[Array, int]:
    """alpha g A summed over channels, what has g < 0 (`by_product`: g A < 0) with the share `negative_share`; and the
    clamped entries.

    "position" keeps each product in its place; "channel" makes one weight per channel, sum(alpha g), first; "active"
    makes it sum(alpha g A) / sum(A), and 0 where sum(A) is.
    """
    saturation, clamped = alpha(activation, gradient, rho)
    space = activation.shape[1:]
    result = np.zeros(space)
    for channel in range(activation.shape[0]):
        slope = np.zeros(space)
        for place in positions(space):
            g = float(gradient[channel][place])
            sign = g * float(activation[channel][place]) if by_product else g
            slope[place] = float(saturation[channel][place]) * (g if sign >= 0 else negative_share * g)
        weight = total(slope)
        if aggregation == "active":
            mass = total(activation[channel])
            weight = total(slope * activation[channel]) / mass if mass else 0.0
        for place in positions(space):
            factor = float(slope[place]) if aggregation == "position" else weight
            result[place] += factor * float(activation[channel][place])
    return result, clamped


def grad_cam_plus_plus(activation: Array, gradient: Array, score: float) -> Array:
    """Grad-CAM++ (arXiv:1710.11063) before its last ReLU, Y = exp(S).

    Equation 19: alpha = Y'' / (2 Y'' + sum(A) Y'''), with Y'' = exp(S) g^2 and Y''' = exp(S) g^3; equation 7: a
    channel weighs sum(alpha relu(Y')); alpha is 0 where the gradient is.
    """
    y = math.exp(score)
    space = activation.shape[1:]
    result = np.zeros(space)
    for channel in range(activation.shape[0]):
        mass = 0.0
        for place in positions(space):
            mass += float(activation[channel][place])
        weight = 0.0
        for place in positions(space):
            g = float(gradient[channel][place])
            if g == 0:
                continue
            second, third = y * g**2, y * g**3
            weight += second / (2 * second + mass * third) * max(0.0, y * g)
        for place in positions(space):
            result[place] += weight * float(activation[channel][place])
    return result
