"""Methods of the CAM family as their papers print them, on one image's feature map, before the last ReLU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .arrays import Array, Space, positions, total
from .fusion import interpolate


def grad_cam(activation: Array, gradient: Array) -> Array:
    """arXiv:1610.02391: sum_k mean(g_k) A_k."""
    result = np.zeros(activation.shape[1:])
    for channel in range(activation.shape[0]):
        weight = total(gradient[channel]) / gradient[channel].size
        for place in positions(result.shape):
            result[place] += weight * float(activation[channel][place])
    return result


def xgrad_cam(activation: Array, gradient: Array) -> Array:
    """arXiv:2008.02312: sum_k w_k A_k with w_k = sum(A_k g_k) / sum(A_k); a silent channel has no say."""
    result = np.zeros(activation.shape[1:])
    for channel in range(activation.shape[0]):
        mass = total(activation[channel])
        if mass == 0:
            continue
        weight = 0.0
        for place in positions(result.shape):
            weight += float(activation[channel][place]) / mass * float(gradient[channel][place])
        for place in positions(result.shape):
            result[place] += weight * float(activation[channel][place])
    return result


def hires_cam(activation: Array, gradient: Array) -> Array:
    """arXiv:2011.08891: sum_k g_k A_k at each position."""
    result = np.zeros(activation.shape[1:])
    for channel in range(activation.shape[0]):
        for place in positions(result.shape):
            result[place] += float(gradient[channel][place]) * float(activation[channel][place])
    return result


def layer_cam(activation: Array, gradient: Array) -> Array:
    """10.1109/TIP.2021.3089943: sum_k relu(g_k) A_k at each position."""
    return hires_cam(activation, np.maximum(gradient, 0))


def elementwise(activation: Array, gradient: Array) -> Array:
    """pytorch-grad-cam's GradCAMElementWise: sum_k relu(g_k A_k) at each position."""
    result = np.zeros(activation.shape[1:])
    for channel in range(activation.shape[0]):
        for place in positions(result.shape):
            result[place] += max(0.0, float(gradient[channel][place]) * float(activation[channel][place]))
    return result


def from_minimum_to_maximum(values: Array) -> Array:
    """0 at the least of all entries, 1 at the greatest; a constant is 0 everywhere."""
    entries = [float(values[place]) for place in positions(values.shape)]
    result = np.zeros(values.shape)
    for place in positions(values.shape):
        if max(entries) > min(entries):
            result[place] = (float(values[place]) - min(entries)) / (max(entries) - min(entries))
    return result


def score_cam(activation: Array, image: Array, score: Callable[[Array], float]) -> Array:
    """arXiv:1910.01279, algorithm 1: sum_k w_k A_k, w = softmax of the scores of the image times each channel.

    A channel is resized to the image and scaled from minimum to maximum; a constant one is left out.
    """
    exponents = {}
    for channel in range(activation.shape[0]):
        mask = from_minimum_to_maximum(interpolate(activation[channel], image.shape[1:]))
        if mask.any():
            exponents[channel] = math.exp(score(np.stack([plane * mask for plane in image])))
    result = np.zeros(activation.shape[1:])
    for channel, exponent in exponents.items():
        for place in positions(result.shape):
            result[place] += exponent / sum(exponents.values()) * float(activation[channel][place])
    return result


def ablation_cam(activation: Array, score: float, score_without: Callable[[int], float]) -> Array:
    """10.1109/WACV45572.2020.9093360: sum_k w_k A_k, w_k = S - S_k, which the paper divides by S."""
    result = np.zeros(activation.shape[1:])
    for channel in range(activation.shape[0]):
        fall = score - score_without(channel)
        for place in positions(result.shape):
            result[place] += fall * float(activation[channel][place])
    return result


def full_grad(products: Sequence[Array], space: Space) -> Array:
    """arXiv:1905.00780, eq. 8 with the authors' scaling: per product of gradient and value, (channel, *space), its
    magnitudes from their minimum to their maximum, resized and summed over channels.
    """
    result = np.zeros(space)
    for product in products:
        scaled = from_minimum_to_maximum(np.abs(product))
        for channel in range(product.shape[0]):
            result += interpolate(scaled[channel], space)
    return result


def winsorised(importances: Sequence[float], percentile: float) -> list[float]:
    """arXiv:2507.10846: cut at zero, then at the percentile of those above zero, and these go from 0.1 to 1."""
    counting = sorted(each for each in importances if each > 0)
    if not counting:
        return [0.0 for _ in importances]
    at = percentile * (len(counting) - 1)
    left, right = counting[math.floor(at)], counting[math.ceil(at)]
    highest = left + (at - math.floor(at)) * (right - left)
    cut = [min(each, highest) for each in importances]
    low = min(counting)
    return [0.0 if each <= 0 else 0.1 + 0.9 * (each - low) / (highest - low) if highest > low else 1.0 for each in cut]
