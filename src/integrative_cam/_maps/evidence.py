"""Evidence at each position of a feature map, under a smooth read-out (method.md, section 3).

Grad-CAM++ (arXiv:1710.11063, eq. 19) has alpha = Y'' / (2 Y'' + sum(A) Y'''). With Y = f(S) and S locally
linear in A, Y'' = f'' g^2 and Y''' = f''' g^3, so alpha = 1 / (2 + rho g sum(A)), rho = f''' / f''. Evidence is
alpha g A; the positive factor f'(S) is the same everywhere and cancels when the map is normalised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import per_channel, sum_over_blocks
from .regional import along_axis, averaged_over_regions
from .traced import Sums, block_sums, sums_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Aggregation = Literal["position", "channel", "active"]

ROUNDING = 8
"""Multiples of the number format's precision that sums of cancelling terms are off by."""
FLOOR = 1.0
"""The pole guard: the least 2 + rho g sum(A) allowed, so that alpha <= 1, twice its linear value of 1/2."""


def evidence(
    activation: Float[Tensor, "batch channel *space"],
    gradient: Float[Tensor, "batch channel *space"],
    rho: Float[Tensor, "batch"],
    negative_share: float,
    aggregation: Aggregation,
    can_fall: bool = True,
) -> tuple[Float[Tensor, "batch *space"], Int[Tensor, "batch"]]:
    """Evidence for the target minus the share `negative_share` of the evidence against it, and the guarded entries.

    "position": sum over channels of alpha g A, each product where it arose, as LayerCAM does.
    "channel": one weight per channel, sum over positions of alpha g, times A: Grad-CAM++.
    "active": the same with the mean of alpha g, weighted by A: XGrad-CAM (arXiv:2008.02312).
    """

    def reduced(activation: Tensor, gradient: Tensor, rho: Tensor) -> tuple[Tensor, ...]:
        mass = activation.sum(2)
        return _evidence(activation, gradient, gradient.abs(), mass, rho, negative_share, aggregation, can_fall)

    found, clamped = sum_over_blocks(reduced, (activation, gradient), rho)
    return found.reshape(len(found), *activation.shape[2:]), clamped


def evidence_and_sums(
    activation: Float[Tensor, "batch channel *space"],
    gradient: Float[Tensor, "batch channel *space"],
    rho: Float[Tensor, "batch"],
    negative_share: float,
    aggregation: Aggregation,
    is_positive: bool,
    can_fall: bool = True,
    regions: int | None = None,
    centring: float = 0,
) -> tuple[Float[Tensor, "batch *space"], Int[Tensor, "batch"], Sums]:
    """`evidence`, and the sums over the feature map, in one walk. `is_positive`: no activation is below zero.

    With `regions` the gradient is first averaged over them, and with `centring` that share of each channel's mean is
    taken off the activation. Evidence and scores are made of these; the sum of g A is always that of the gradient and
    the activation themselves, so that the score's parts stay exact.
    """
    space = activation.shape[2:]
    along = along_axis(regions, space) if regions is not None and space else None

    def reduced(activation: Tensor, gradient: Tensor, rho: Tensor) -> tuple[Tensor, ...]:
        mass = activation.sum(2)
        size = mass if is_positive else activation.abs().sum(2)
        total = torch.linalg.vecdot(activation.flatten(1), gradient.flatten(1))
        if along is not None:
            gradient = averaged_over_regions(gradient.reshape(*gradient.shape[:2], *space), along).flatten(2)
        if centring:
            activation = centred(activation, mass, size, centring)
            mass = mass * (1 - centring)
        product, strength = activation * gradient, gradient.abs()
        sums = block_sums(size, product, strength, total)
        of_sign = product if is_positive or centring else None
        parts = _evidence(activation, gradient, strength, mass, rho, negative_share, aggregation, can_fall, of_sign)
        return *parts, *sums

    found, clamped, *sums = sum_over_blocks(reduced, (activation, gradient), rho)
    return found.reshape(len(found), *space), clamped, sums_of(sums, activation[0].numel())


def centred(
    activation: Float[Tensor, "row channel position"],
    mass: Float[Tensor, "row channel"],
    size: Float[Tensor, "row channel"],
    share: float,
) -> Float[Tensor, "row channel position"]:
    """The activation without that share of each channel's mean; `mass` and `size` are the sums of A and |A|.

    Where nothing is left of a channel but the rounding of a constant, it is zero: no fusion shall scale that up.
    """
    positions = activation.shape[2]
    found = activation - mass[..., None] * (share / positions)
    if share < 1:
        return found
    least = size * (ROUNDING * torch.finfo(found.dtype).eps / positions)
    return found * (found.abs().amax(2) > least)[..., None]


def _evidence(
    activation: Float[Tensor, "row channel position"],
    gradient: Float[Tensor, "row channel position"],
    strength: Float[Tensor, "row channel position"],
    mass: Float[Tensor, "row channel"],
    rho: Float[Tensor, "row"],
    negative_share: float,
    aggregation: Aggregation,
    can_fall: bool,
    product: Float[Tensor, "row channel position"] | None = None,
) -> tuple[Float[Tensor, "row position"], Int[Tensor, "row"]]:
    """`strength` is |gradient|, which is overwritten; `mass` is the sum of a channel's activations; `product` is
    activation * gradient, if it has the gradient's sign.
    """
    denominator, clamped = saturation(mass, strength, rho, can_fall)
    if product is not None and aggregation == "position":
        return F.leaky_relu(product, negative_share).div_(denominator).sum(1), clamped
    # Evidence against is scaled by its share; torch.where is far slower on a CPU.
    slope = F.leaky_relu(gradient, negative_share).div_(denominator)
    if aggregation == "position":
        return slope.mul_(activation).sum(1), clamped
    if aggregation == "channel":
        weight = slope.sum(2)
    else:
        weight = torch.where(mass == 0, 0, (slope * activation).sum(2) / torch.where(mass == 0, 1, mass))
    return torch.bmm(weight[:, None], activation)[:, 0], clamped


def saturation(
    mass: Float[Tensor, "row channel"],
    strength: Float[Tensor, "row channel position"],
    rho: Float[Tensor, "row"],
    can_fall: bool = True,
) -> tuple[Float[Tensor, "row channel position"], Int[Tensor, "row"]]:
    """1 / alpha = 2 + rho |g| sum(A), at least FLOOR, and the number of entries per sample where that cut in.

    |g|, so that evidence against saturates as evidence for does. `mass` is sum(A) per channel, `strength` |g|, which
    is overwritten. `can_fall`: it can fall below FLOOR, as neither rho nor sum(A) is known to be at least 0.
    """
    bend = expand_like(rho, mass) * mass
    # In place, so that more of it stays in the processor's cache; autograd copies what it needs.
    denominator = strength.mul_(bend[..., None]).add_(2)
    if not can_fall:
        return denominator, torch.zeros(len(bend), dtype=torch.long, device=bend.device)
    return denominator.clamp_min(FLOOR), (denominator < FLOOR).flatten(1).sum(1)


def saturated_shift(
    gradient: Float[Tensor, "batch channel *space"],
    shift: Float[Tensor, "batch channel *space"],
    rho: Float[Tensor, "batch"],
    negative_share: float,
    regions: int | None = None,
) -> tuple[Float[Tensor, "batch *space"], Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Evidence that a constant `shift` carries, its mass, the sum of |shift * gradient|, and the sum of
    shift * gradient.

    Per channel t / (2 + rho sum(t)) with t = relu(shift * gradient). What pulls against the target,
    relu(-shift * gradient), saturates alike and is subtracted by its share. With `regions` evidence and mass are made
    of the gradient's averages over these; the sum is that of the gradient itself.
    """
    factor, space = per_channel(shift), gradient.shape[2:]
    along = along_axis(regions, space) if regions is not None and space else None
    if factor is None:
        gradient, factor = gradient * shift, torch.ones_like(shift.flatten(2)[..., :1])

    def reduced(gradient: Tensor, factor: Tensor, rho: Tensor) -> tuple[Tensor, ...]:
        if along is None:
            return _saturated_shift(gradient, factor, rho, negative_share)
        regional = averaged_over_regions(gradient.reshape(*gradient.shape[:2], *space), along).flatten(2)
        evidence, mass, _ = _saturated_shift(regional, factor, rho, negative_share)
        return evidence, mass, (factor[..., 0] * gradient.sum(2)).sum(1)

    found, mass, total = sum_over_blocks(reduced, (gradient, factor), rho)
    return found.reshape(len(found), *space), mass, total


def _saturated_shift(
    gradient: Float[Tensor, "row channel position"],
    shift: Float[Tensor, "row channel 1"],
    rho: Float[Tensor, "row"],
    negative_share: float,
) -> tuple[Float[Tensor, "row position"], Float[Tensor, "row"], Float[Tensor, "row"]]:
    # Of a channel, the gradient's positive part, `up`, pulls one way and its negative part, up - gradient, the other:
    # t is |shift| times either, and one product of matrices adds all channels up.
    shift = shift[..., 0]
    up = gradient.relu()
    ups, sums = up.sum(2), gradient.sum(2)
    downs = ups - sums
    bend = expand_like(rho, shift) * shift.abs()
    at_ups = F.leaky_relu(shift, negative_share) / (bend * ups + 2).clamp_min_(FLOOR)
    at_downs = F.leaky_relu(-shift, negative_share) / (bend * downs + 2).clamp_min_(FLOOR)
    found = torch.bmm((at_ups + at_downs)[:, None], up) - torch.bmm(at_downs[:, None], gradient)
    return found[:, 0], (shift.abs() * (ups + downs)).sum(1), (shift * sums).sum(1)


def expand_like(per_sample: Float[Tensor, "batch"], values: Tensor) -> Tensor:
    """(batch,) shaped to broadcast over (batch, ...), in the dtype of `values`."""
    return per_sample.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
