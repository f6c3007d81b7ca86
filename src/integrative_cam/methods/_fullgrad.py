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
    """Sum over the input and all bias sites with space of |gradient * value|, each scaled to [0, 1].

    The paper's eq. 8 with its authors' scaling: a site's magnitudes less their minimum over channels and space,
    divided by their maximum, resized and summed over channels; gradient times input alike. Three things differ from
    their code: constants added anywhere count, not those of convolutions and batch norms alone; pixel centres are
    aligned; and nothing is added to the divisor. A site of one position says nothing about where and is left out.

    What is scaled here adds up to the score as it is: `completeness` has score = input + bias + remainder.
    """
    found = trace(model, images, target, "last")
    space = found.input_space
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        total = by_range(found.main_input.product.abs()).reshape(len(images), -1, *space).sum(1)
        for site in found.sites:
            if site.gradient.ndim - 2 == len(space) and site.gradient[0, 0].numel() > 1:
                total = total + resize(by_range((at_least_float32(site.gradient) * site.shift).abs()).sum(1), space)
    return explanation_from_map(found, total)
