"""Methods of one forward and one gradient that are no recipes: FullGrad, Winsor-CAM, element-wise Grad-CAM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._call import trace
from .._maps.blocks import at_least_float32
from .._maps.fusion import by_range, resize
from .._maps.traced import Trace
from ..cam import explain_trace, explanation_from_map, explanation_from_slopes
from ..explanation import Explanation
from ..recipe import PLAIN, Recipe
from ..targets import Target

if TYPE_CHECKING:
    from jaxtyping import Float

PERCENTILE = 0.9
"""Of Winsor-CAM: the value of the authors' example; the paper leaves it to the user."""
LEAST = 0.1
"""The weight of the least important layer with positive importance; the most important has 1."""

_GRAD_CAMS = Recipe(
    taps="*", readout="identity", aggregation="channel", negative_share=1.0, bias="none", signed=False, **PLAIN
)


def full_grad(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """Sum of psi(|gradient * value|) over the input and all bias sites with space (arXiv:1905.00780, eq. 8).

        map = sum_channels psi(|dS/dx * x|) + sum_sites sum_channels psi(|dS/d(out) * b|)

    psi is the authors' scaling: magnitudes less their minimum over channels and space, divided by their maximum, and
    resized to the input. Three things differ from their code: constants added anywhere count, not only those of
    convolutions and batch norms; pixel centres are aligned; and nothing is added to the divisor. A site of one position
    has no place on the image and is left out.

    Not scaled, the same products add up to the score: see `Completeness` and docs/method.md, "Bias".
    """
    traced = trace(model, images, target, "last")
    space = traced.input_space
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        total = by_range(traced.main_input.product.abs()).reshape(len(images), -1, *space).sum(1)
        for site in traced.sites:
            if site.gradient.ndim - 2 == len(space) and site.gradient[0, 0].numel() > 1:
                total = total + resize(by_range((at_least_float32(site.gradient) * site.shift).abs()).sum(1), space)
    return explanation_from_map(traced, total)


def winsor_cam(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """Grad-CAM of every convolution's output, weighted by its winsorised importance (arXiv:2507.10846).

        map = sum_l winsorised(relu(mean g_l)) * relu(sum_channels mean(g_l) A_l) / its maximum

    A layer's importance is the mean of its gradient over channels and space, cut at zero; see `winsorised`.
    Convolutions of a single position, as in squeeze-and-excite, have no map and are left out. A layer's map is divided
    by its maximum, where the authors' code stretches it from its minimum. Where no layer has a positive importance, all
    layers have the same weight.
    """
    traced = trace(model, images, target, lambda tap: tap.kind == "conv")
    weights = winsorised(importances(traced))
    explanation = explain_trace(traced, replace(_GRAD_CAMS, weighting=lambda _: weights))
    return replace(explanation, recipe=None)


def importances(trace: Trace) -> Float[Tensor, "batch tap"]:
    """Mean gradient of each tap, cut at zero."""
    return torch.stack([at_least_float32(tap.gradient).flatten(1).mean(1) for tap in trace.taps], 1).relu()


def winsorised(values: Float[Tensor, "batch tap"], percentile: float = PERCENTILE) -> Float[Tensor, "batch tap"]:
    """Positive values, cut at their row's percentile and scaled linearly from `LEAST` at the smallest to 1.

    Zeros stay zero. Equal values become 1.
    """
    counts = values > 0
    highest = values.where(counts, torch.nan).nanquantile(percentile, dim=1, keepdim=True)
    cut = torch.minimum(values, highest)
    low = cut.where(counts, torch.inf).amin(1, keepdim=True)
    spread = cut.amax(1, keepdim=True) - low
    scaled = torch.where(spread > 0, LEAST + (1 - LEAST) * (cut - low) / spread, 1)
    return scaled.where(counts, 0)


def elementwise_grad_cam(
    model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None
) -> Explanation:
    """sum_k relu(g_k A_k) at the last activation: LayerCAM where activations are positive; elsewhere, a negative
    gradient on a negative activation counts as evidence for the target.
    """
    traced = trace(model, images, target, "last")
    (tap,) = traced.taps
    return explanation_from_slopes(traced, tap.gradient.where(tap.gradient * tap.activation > 0, 0))
