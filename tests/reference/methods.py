"""Methods of the CAM family as their papers print them, on one image's feature map, before the last ReLU."""

from __future__ import annotations

import numpy as np

from .arrays import Array, positions, total


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
