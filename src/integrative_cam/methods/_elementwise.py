"""Element-wise Grad-CAM, as pytorch-grad-cam has it under the name GradCAMElementWise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .._call import trace
from ..cam import explanation_from_slopes
from ..explanation import Explanation
from ..targets import Target

if TYPE_CHECKING:
    from jaxtyping import Float


def elementwise_grad_cam(
    model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None
) -> Explanation:
    """sum_k relu(g_k A_k) at the last activation: LayerCAM where activations are positive; elsewhere, a negative
    gradient on a negative activation counts as evidence for the target.
    """
    traced = trace(model, images, target, "last")
    (tap,) = traced.taps
    return explanation_from_slopes(traced, tap.gradient.where(tap.gradient * tap.activation > 0, 0))
