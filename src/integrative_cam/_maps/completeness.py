"""What the biases contribute: as numbers (completeness) and as maps (method.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .evidence import expand_like
from .fusion import resize
from .traced import Trace

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Bias = Literal["complete", "residual", "layers", "none"]


@dataclass(frozen=True)
class Completeness:
    """How the score splits, per sample; exact for piecewise linear networks without clipping or gates.

    score = input + bias + remainder, and at every tap score = activation + tap_bias + bypass. At a cut tap
    (`is_cut`) every path passes, so that its bypass is the network's own remainder (clipping, gates, smooth
    activations); at any other tap it also holds what flows around the tap.
    """

    score: Float[Tensor, "batch"]
    input: Float[Tensor, "batch"]
    bias: Float[Tensor, "batch"]
    activation: Float[Tensor, "batch tap"]
    tap_bias: Float[Tensor, "batch tap"]
    is_cut: Bool[Tensor, "tap"]

    @property
    def remainder(self) -> Float[Tensor, "batch"]:
        """Score - input - bias."""
        return self.score - self.input - self.bias

    @property
    def bypass(self) -> Float[Tensor, "batch tap"]:
        """Score - activation - tap_bias."""
        return self.score[:, None] - self.activation - self.tap_bias


def completeness(trace: Trace[Any, Any]) -> Completeness:
    """Split the score at the input and at every tap of `trace`."""
    parts = [each.part for each in trace.taps]
    sites = [site.part for site in trace.sites]
    per_site = torch.stack(sites, 1) if sites else trace.score.new_zeros(len(trace.score), 0)
    return Completeness(
        score=trace.score,
        input=trace.input_part,
        bias=per_site.sum(1),
        activation=torch.stack(parts, 1) if parts else trace.score.new_zeros(len(trace.score), 0),
        tap_bias=per_site @ trace.behind.to(per_site).T,
        is_cut=torch.tensor([each.is_cut for each in trace.taps], dtype=torch.bool),
    )


def complete_bias(
    trace: Trace[Any, Any], maps: list[Float[Tensor, "batch *site_space"]], tap: int
) -> Float[Tensor, "batch *space"]:
    """Sum of the maps of all sites behind `tap`, at the tap's resolution and with their sums preserved.

    A site without the tap's spatial axes gives every position an equal share.
    """
    space = torch.Size(trace.taps[tap].shape[1:])
    same_size: dict[tuple[int, ...], Tensor] = {}
    for site, is_behind in zip(maps, trace.behind[tap].tolist(), strict=True):
        if is_behind:
            if site.ndim - 1 != len(space):
                site = site.reshape(len(site), -1).sum(1).reshape(-1, *[1] * len(space))
            size = tuple(site.shape[1:])
            same_size[size] = same_size[size] + site if size in same_size else site
    total = trace.score.new_zeros(len(trace.score), *space)
    for size, site in same_size.items():
        resized = resize(site, space) * (torch.Size(size).numel() / space.numel())
        # Interpolation keeps sums only where one size divides the other: spread what is lost evenly.
        lost = (site.flatten(1).sum(1) - resized.flatten(1).sum(1)) / space.numel()
        total = total + resized + expand_like(lost, resized)
    return total


def residual_bias(trace: Trace[Any, Any], split: Completeness, tap: int) -> Float[Tensor, "batch *space"]:
    """S - <g, A>, spread evenly and halved as unsaturated evidence is (alpha = 1/2)."""
    space = torch.Size(trace.taps[tap].shape[1:])
    rest = (split.score - split.activation[:, tap]) / (2 * space.numel())
    return rest.reshape(-1, *[1] * len(space)).expand(-1, *space)
