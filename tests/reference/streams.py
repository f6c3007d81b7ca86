"""What entered through each input, measured by scaling it, on plain runs of a copy (method.md, Streams): no gradient.

A piecewise linear network's score is linear in a factor on what enters the fusion, so that a central difference is
the stream's part of it exactly, until a kink lies in between.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

STEP = 1e-6


def evidence(model: nn.Module, inputs: Sequence[Tensor], target: Tensor, branches: Sequence[str]) -> list[list[float]]:
    """Per sample and stream, the score's slope in a factor on what the stream's branch returns."""
    columns = []
    for branch in branches:
        scores = []
        for factor in (1 + STEP, 1 - STEP):
            scaled = copy.deepcopy(model)
            scaled.get_submodule(branch).register_forward_hook(partial(_scaled, factor))
            scores.append(_score(scaled, inputs, target))
        columns.append([(above - below) / (2 * STEP) for above, below in zip(*scores, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def shared(model: nn.Module, inputs: Sequence[Tensor], target: Tensor, behind: Sequence[str]) -> list[float]:
    """Per sample, the score's slope in a factor on every bias and running mean of the modules behind the fusion."""
    scores = []
    for factor in (1 + STEP, 1 - STEP):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for name in behind:
                for layer in scaled.get_submodule(name).modules():
                    for each in (getattr(layer, "bias", None), getattr(layer, "running_mean", None)):
                        if each is not None:
                            each *= factor
        scores.append(_score(scaled, inputs, target))
    return [(above - below) / (2 * STEP) for above, below in zip(*scores, strict=True)]


def share(parts: Sequence[float]) -> list[float]:
    """Each stream's evidence for the target as a share of all of it; equal shares where there is none."""
    total = 0.0
    for part in parts:
        if part > 0:
            total += part
    return [max(part, 0.0) / total if total else 1 / len(parts) for part in parts]


def fixed(model: nn.Module, inputs: Mapping[str, Tensor], name: str) -> nn.Module:
    """The network of one input only, the others held as they are."""
    return Fixed(model, {other: value for other, value in inputs.items() if other != name}, name)


class Fixed(nn.Module):
    """See `fixed`."""

    def __init__(self, model: nn.Module, held: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.model, self.held, self.name = model, dict(held), name

    def forward(self, images: Tensor) -> Tensor:
        return self.model(**self.held, **{self.name: images})


def _scaled(factor: float, layer: nn.Module, given: tuple[Tensor, ...], value: Tensor) -> Tensor:
    return value * factor


@torch.no_grad()
def _score(model: nn.Module, inputs: Sequence[Tensor], target: Tensor) -> list[float]:
    return [float(row[index]) for row, index in zip(model(*inputs), target.tolist(), strict=True)]
