"""What one forward and one gradient of a batch leave: feature maps, constants, inputs, each with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Generic

import torch
from torch import Tensor
from typing_extensions import TypeVar  # torch needs it, and brings it

from .._plan.placement import Placement
from .blocks import at_least_float32, per_channel, sum_over_blocks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Sums:
    """Over a feature map A and its gradient g: the sums of g A and |g A|, the means of |g| and |A|."""

    product: Float[Tensor, "batch"]
    magnitude: Float[Tensor, "batch"]
    gradient: Float[Tensor, "batch"]
    activation: Float[Tensor, "batch"]


def block_sums(
    size: Float[Tensor, "row channel"],
    product: Float[Tensor, "row channel position"],
    strength: Float[Tensor, "row channel position"],
    total: Float[Tensor, "row"],
) -> tuple[Tensor, ...]:
    """Of a block, what `sums_of` wants, from the sum of |A| per channel, g A, |g| and the sum of the untouched g A."""
    return total, torch.linalg.vector_norm(product, 1, (1, 2)), strength.sum((1, 2)), size.sum(1)


def sums_of(found: Sequence[Float[Tensor, "batch"]], entries: int) -> Sums:
    """From what `block_sums` gives for all blocks of a feature map of so many entries per sample."""
    product, magnitude, gradient, activation = found
    return Sums(product, magnitude, gradient / entries, activation / entries)


def with_rest(part: Float[Tensor, "batch"], rest: Float[Tensor, "batch"] | None) -> Float[Tensor, "batch"]:
    """The part of the score on the grid, and the rest of it that is nowhere there, if any."""
    return part if rest is None else part + rest


@dataclass(frozen=True)
class Tap:
    """One feature map and the gradient of the score with respect to that same tensor.

    Both have the network's dtype; `wide` gives them in float32 or better. `path_share`: of
    all the paths from the inputs to the score, the share that passes here. `is_positive`: no
    activation is below zero, whatever the image, as behind a ReLU.
    """

    name: str
    kind: str
    activation: Float[Tensor, "batch channel *space"]
    gradient: Float[Tensor, "batch channel *space"]
    path_share: Fraction
    rest: Float[Tensor, "batch"] | None = None
    is_positive: bool = False

    @cached_property
    def sums(self) -> Sums:
        """What its scores and the score's parts are made of, found in one walk."""
        # Kept for later calls too, which may want the graph.
        with torch.set_grad_enabled(self.gradient.requires_grad):
            found = sum_over_blocks(
                lambda activation, gradient: block_sums(
                    activation.abs().sum(2), product := activation * gradient, gradient.abs(), product.sum((1, 2))
                ),
                (self.activation, self.gradient),
            )
            return sums_of(found, self.activation[0].numel())

    @property
    def has_sums(self) -> bool:
        """Whether its sums were asked for before."""
        return "sums" in vars(self)

    @property
    def part(self) -> Float[Tensor, "batch"]:
        """<gradient, activation>, with `rest`."""
        return with_rest(self.sums.product, self.rest)

    @property
    def is_cut(self) -> bool:
        """Every path passes here."""
        return self.path_share == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, *space)."""
        return tuple(self.activation.shape[1:])


@dataclass(frozen=True)
class BiasSite:
    """A place where the network adds a constant: the gradient there, and `shift`, expanded to its shape.

    The space is empty behind global pooling: (batch, channel). `rest`: as in `Tap`.
    """

    name: str
    gradient: Float[Tensor, "batch channel *space"]
    shift: Float[Tensor, "batch channel *space"]
    rest: Float[Tensor, "batch"] | None = None

    @property
    def part(self) -> Float[Tensor, "batch"]:
        """<gradient, shift>, with `rest`."""
        factor, gradient = per_channel(self.shift), at_least_float32(self.gradient)
        if factor is None:
            part = (gradient * self.shift).flatten(1).sum(1)
        else:
            summed = gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient
            part = (summed * factor[..., 0]).sum(1)
        return with_rest(part, self.rest)


@dataclass(frozen=True)
class Input:
    """One floating-point input: dS/dx times x, entry by entry, and how much of the network it reaches.

    `space` is empty where no tap keeps its axes, as of a vector. Per tap, `path_shares`: of all the paths from this
    input to the score, the share that passes there; 0 where the tap does not depend on it. `fused`: the taps that its
    map is made of. `sites`: the bias sites that act on something computed from it. `placements` and `site_placements`:
    where each of these lies on the input, None for a grid that covers it evenly.
    """

    name: str
    product: Float[Tensor, "batch ..."]
    space: tuple[int, ...]
    path_shares: tuple[Fraction, ...]
    fused: tuple[int, ...]
    sites: tuple[int, ...]
    placements: tuple[Placement | None, ...] = ()
    site_placements: tuple[Placement | None, ...] = ()

    @property
    def part(self) -> Float[Tensor, "batch"]:
        """<dS/dx, x>."""
        return self.product.flatten(1).sum(1) if self.product.ndim > 1 else self.product


TapT = TypeVar("TapT", default=Tap)
SiteT = TypeVar("SiteT", default=BiasSite)


@dataclass(frozen=True)
class Trace(Generic[TapT, SiteT]):
    """One forward and one gradient of a batch; detached, and independent of the model from here on, unless it was made
    with `differentiable`: then all tensors with floats keep their graphs.

    Taps and sites may also be what was made of them as soon as their gradients arrived; see `trace_reduced`.
    `behind[t, s]`, on the CPU, is True where bias site s acts on a value computed from tap t. `index` holds the target
    classes, None where the target is a callable; `names` those of callables, none for classes. `unit`: what
    the score is divided by before the read-out; None for a score as it is. `contrast`: the score is that of
    Recipe(score="contrast").
    """

    taps: tuple[TapT, ...]
    sites: tuple[SiteT, ...]
    behind: Bool[Tensor, "tap site"]
    score: Float[Tensor, "batch"]
    output: Tensor
    index: Int[Tensor, "batch"] | None
    names: tuple[str, ...]
    inputs: tuple[Input, ...]
    unit: Float[Tensor, "batch"] | None = None
    contrast: bool = False

    @property
    def target_names(self) -> tuple[str, ...]:
        """The class index or the callable's name, per image; reads the indices back from the device."""
        return self.names if self.index is None else tuple(map(str, self.index.tolist()))

    @property
    def is_differentiable(self) -> bool:
        """Whether it keeps the graph, so that maps made of it can be differentiated."""
        return self.score.requires_grad

    @property
    def main_input(self) -> Input:
        """The first input with a map."""
        return next(each for each in self.inputs if each.space)

    @property
    def input_space(self) -> tuple[int, ...]:
        """The spatial size of the main input."""
        return self.main_input.space

    @property
    def input_part(self) -> Float[Tensor, "batch"]:
        """<dS/dx, x>, over all inputs."""
        return torch.stack([each.part for each in self.inputs]).sum(0)
