"""A network under construction: its steps so far, and how far and how coarsely each position looks."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = (F.conv1d, F.conv2d, F.conv3d)
MODULE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class UnfitError(Exception):
    """A step does not fit the tensor it would get; another one is drawn."""


class Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the function makes of `x`."""
        return self.function(x)


class Draft:
    """Steps that map (batch, channel, *space) to (batch, channel, *space), with a description of each.

    All weights are positive (averages) and there are no positive biases: a dark background stays dark in every layer,
    and all of a score is caused by what is bright.

    Attributes:
        draw: all choices come from it.
        scale: pixels of the image per position, along the coarsest axis.
        reach: how many pixels a position looks to either side.
        lost: how many pixels at a border have no position at their place, as behind an unpadded convolution.
        slack: by how many pixels the centre of the evidence may move, as a layer norm of its faint edges moves it.
        activations: how many nonlinearities there are, gates left out.
        is_local: whether neighbours in the tensor are neighbours on the image, so that a convolution may follow.
    """

    def __init__(self, draw: random.Random, channels: int, size: tuple[int, ...]) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw.getrandbits(32))
        self.probe = torch.zeros(2, channels, *size)
        self.scale, self.reach, self.lost, self.is_local = 1.0, 0.0, 0.0, True
        self.slack, self.activations = 0.0, 0
        self.steps: list[nn.Module] = []
        self.names: list[str] = []
        self.kinds: list[str] = []

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return self.probe.ndim - 2

    @property
    def channels(self) -> int:
        """Number of channels now."""
        return self.probe.shape[1]

    @property
    def size(self) -> tuple[int, ...]:
        """Positions along each axis now."""
        return tuple(self.probe.shape[2:])

    def require(self, fits: bool) -> None:
        """Give up on this step where it does not fit."""
        if not fits:
            raise UnfitError

    def axis(self) -> int:
        """One of the spatial axes."""
        return self.draw.randrange(2, 2 + self.dims)

    def positions(self, pixels: float) -> int:
        """So many pixels of the image, in positions of now."""
        return max(1, round(pixels / self.scale))

    def positive(self, *shape: int) -> Tensor:
        """Weights around 1 of this shape."""
        return 0.85 + 0.3 * torch.rand(shape, generator=self.generator)

    def convolution(self, outputs: int, kernel: int | tuple[int, ...], **options: object) -> nn.Module:
        """A convolution that averages."""
        layer = MODULE[self.dims](self.channels, outputs, kernel, bias=False, **options)  # type: ignore[arg-type]
        averaging(layer, self)
        return layer

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A linear layer that averages."""
        layer = nn.Linear(inputs, outputs, bias=False)
        averaging(layer, self)
        return layer

    def add(
        self,
        name: str,
        kind: str,
        step: nn.Module | Callable[[Tensor], Tensor],
        *,
        scale: float = 1,
        reach: float = 0,
        is_local: bool = True,
    ) -> None:
        """Append a step; `reach` in positions of before it, `scale` relative to before."""
        module = step if isinstance(step, nn.Module) else Function(step)
        with torch.no_grad():
            self.probe = module.eval()(self.probe)
        self.reach += reach * self.scale
        self.scale *= scale
        self.is_local &= is_local
        self.steps.append(module)
        self.names.append(name)
        self.kinds.append(kind)


def averaging(layer: nn.Module, draft: Draft) -> None:
    """Set the weight of a convolution or linear layer: positive, and outputs as large as inputs."""
    weight = draft.positive(*layer.weight.shape)
    with torch.no_grad():
        layer.weight.copy_(weight / weight.flatten(1).sum(1).reshape(-1, *[1] * (weight.ndim - 1)))
