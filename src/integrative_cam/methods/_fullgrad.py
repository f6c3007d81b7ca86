"""FullGrad (arXiv:1905.00780): the input's and every bias's share of the score, as one map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._call import trace
from .._maps.blocks import at_least_float32
from .._maps.fusion import by_range, resize
from ..cam import explanation_from_map
from ..explanation import Explanation
from ..targets import Target

if TYPE_CHECKING:
    from jaxtyping import Float


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
