"""Winsor-CAM (arXiv:2507.10846): Grad-CAM at every convolution, weighted by importances without outliers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._call import trace
from .._maps.blocks import at_least_float32
from .._maps.traced import Trace
from ..cam import explain_trace
from ..explanation import Explanation
from ..recipe import PLAIN, Recipe
from ..targets import Target

if TYPE_CHECKING:
    from jaxtyping import Float

PERCENTILE = 0.9
"""The value of the authors' example; the paper leaves it to the user."""
LEAST = 0.1
"""The weight of the least important layer with positive importance; the most important has 1."""

_GRAD_CAMS = Recipe(
    taps="*", readout="identity", aggregation="channel", negative_share=1.0, bias="none", signed=False, **PLAIN
)


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
