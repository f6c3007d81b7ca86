"""Evidence at each position of a feature map, under a smooth read-out (method.md, section 3).

Grad-CAM++ (arXiv:1710.11063, eq. 19) has alpha = Y'' / (2 Y'' + sum(A) Y'''). With Y = f(S) and S locally
linear in A, Y'' = f'' g^2 and Y''' = f''' g^3, so alpha = 1 / (2 + rho g sum(A)), rho = f''' / f''. Evidence is
alpha g A; the positive factor f'(S) is the same everywhere and cancels when the map is normalised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Aggregation = Literal["position", "channel", "active"]

AGGREGATIONS: dict[str, str] = {
    "position": "evidence stays where it arose",
    "channel": "one weight per channel (Grad-CAM++)",
    "active": "one weight per channel, from where it is active (XGrad-CAM)",
}
FLOOR = 1.0
"""The pole guard: the least 2 + rho g sum(A) allowed, so that alpha <= 1, twice its linear value of 1/2."""


def evidence(
    activation: Float[Tensor, "batch channel *space"],
    gradient: Float[Tensor, "batch channel *space"],
    rho: Float[Tensor, "batch"],
    negative: float,
    aggregation: Aggregation,
) -> tuple[Float[Tensor, "batch *space"], Int[Tensor, "batch"]]:
    """Evidence for the target minus the share `negative` of the evidence against it, and the guarded entries.

    "position": sum over channels of alpha g A, each product where it arose, as LayerCAM does.
    "channel": one weight per channel, sum over positions of alpha g, times A: Grad-CAM++.
    "active": the same with the mean of alpha g, weighted by A: XGrad-CAM (arXiv:2008.02312).
    """
    alpha, guarded = saturation(activation, gradient, rho)
    slope = alpha * discounted(gradient, negative)
    if aggregation == "channel":
        slope = slope.sum(space_of(slope), keepdim=True)
    elif aggregation == "active":
        mass = activation.sum(space_of(activation), keepdim=True)
        weighted = (slope * activation).sum(space_of(slope), keepdim=True)
        slope = torch.where(mass == 0, 0, weighted / mass)
    return (slope * activation).sum(1), guarded


def saturation(
    activation: Float[Tensor, "batch channel *space"],
    gradient: Float[Tensor, "batch channel *space"],
    rho: Float[Tensor, "batch"],
) -> tuple[Float[Tensor, "batch channel *space"], Int[Tensor, "batch"]]:
    """Alpha = 1 / (2 + rho |g| sum(A)), at most 1, and the number of entries per sample where that cut in.

    |g|, so that evidence against saturates as evidence for does.
    """
    mass = over(rho, activation) * activation.sum(space_of(activation), keepdim=True)
    denominator = 2 + mass * gradient.abs()
    guarded = (denominator < FLOOR).flatten(1).sum(1)
    return denominator.clamp_min(FLOOR).reciprocal(), guarded


def saturated_shift(
    gradient: Float[Tensor, "batch channel *space"],
    shift: Float[Tensor, "batch channel *space"],
    rho: Float[Tensor, "batch"],
    negative: float,
) -> Float[Tensor, "batch *space"]:
    """Evidence that a constant `shift` carries: per channel t / (2 + rho sum(t)), t = relu(shift * gradient).

    What pulls against the target, relu(-shift * gradient), saturates alike and is subtracted by its share.
    """
    product = shift * gradient
    total = torch.zeros_like(product[:, 0])
    for part, share in ((product.relu(), 1.0), ((-product).relu(), -negative)):
        mass = part.sum(space_of(part), keepdim=True) if part.ndim > 2 else part
        total = total + share * (part / (2 + over(rho, part) * mass).clamp_min(FLOOR)).sum(1)
    return total


def discounted(values: Tensor, negative: float) -> Tensor:
    """`values` with the negative ones scaled by `negative`: 0 drops them, 1 keeps them."""
    return torch.where(values < 0, values * negative, values)


def space_of(values: Tensor) -> tuple[int, ...]:
    """The spatial axes of (batch, channel, *space)."""
    return tuple(range(2, values.ndim))


def over(per_sample: Float[Tensor, "batch"], values: Tensor) -> Tensor:
    """(batch,) shaped to broadcast over (batch, ...), in the dtype of `values`."""
    return per_sample.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
