"""What a network's layers hold, measured with module hooks on a copy: no formula, and none of the library's tracing.

The copy adds a tensor of zeros to what each layer returns; the score's derivative with respect to those zeros is its
gradient there, whatever later overwrites the value. What lies behind a layer is found by letting it return NaN.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from . import whole

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SITES = (*CONVS, *NORMS, nn.Linear)


@dataclass(frozen=True)
class Call:
    """One call of a layer: what it returned, the score's gradient there, and the constant it adds, if any."""

    name: str
    layer: nn.Module
    value: Tensor
    gradient: Tensor
    shift: Tensor | None


@dataclass(frozen=True)
class Measured:
    """One forward and one backward pass of a batch."""

    calls: list[Call]
    logits: Tensor
    target: Tensor
    score: Tensor
    input_part: Tensor

    def of(self, kinds: type | tuple[type, ...]) -> list[int]:
        """The calls of layers of these kinds that have space, in order."""
        return [
            index
            for index, call in enumerate(self.calls)
            if isinstance(call.layer, kinds) and call.value[0, 0].numel() > 1
        ]

    def sites(self) -> list[int]:
        """The calls that add a constant, in order."""
        return [index for index, call in enumerate(self.calls) if call.shift is not None]


def measure(model: nn.Module, images: Tensor, target: Tensor | None = None, contrast: bool = False) -> Measured:
    """Run a copy of `model` once and differentiate each image's `target` logit (None: its highest); with `contrast`
    the logit minus 0.8 of the others' mean, weighted by exp(logit / 2).
    """
    seen: list[tuple[str, nn.Module, Tensor, Tensor, Tensor | None]] = []

    def watch(name: str, layer: nn.Module, value: Tensor, given: Tensor) -> Tensor:
        zeros = torch.zeros_like(value).requires_grad_()
        seen.append((name, layer, value.detach().clone(), zeros, _shift(layer, given)))
        return value + zeros

    leaf = images.clone().requires_grad_()
    logits = _watched(model, watch)(leaf)
    chosen = logits.argmax(1) if target is None else target
    score = logits.gather(1, chosen[:, None])[:, 0]
    if contrast and logits.shape[1] > 1:
        rivals = []
        for row, own in zip(logits, chosen.tolist(), strict=True):
            others = [index for index in range(len(row)) if index != own]
            parts = torch.tensor([math.exp(float(row[index].detach()) / 2) for index in others], dtype=row.dtype)
            rivals.append((parts / parts.sum() * row[others]).sum())
        score = score - 0.8 * torch.stack(rivals)
    gradients = torch.autograd.grad(score.sum(), [leaf, *(each[3] for each in seen)])
    calls = [
        Call(name, layer, value, gradient, shift)
        for (name, layer, value, _, shift), gradient in zip(seen, gradients[1:], strict=True)
    ]
    return Measured(calls, logits.detach(), chosen, score.detach(), (gradients[0] * images).flatten(1).sum(1))


def behind(model: nn.Module, images: Tensor, tap: int) -> list[bool]:
    """For each call, whether it works on something computed from what call `tap` returned."""
    reached: list[bool] = []

    def watch(name: str, layer: nn.Module, value: Tensor, given: Tensor) -> Tensor:
        reached.append(bool(value.isnan().any()))
        return torch.full_like(value, float("nan")) if len(reached) - 1 == tap else value

    with torch.no_grad():
        _watched(model, watch)(images)
    return reached


def is_cut(model: nn.Module, images: Tensor, tap: int) -> bool:
    """Whether the score stops depending on the input when call `tap` returns a constant."""
    count = 0

    def watch(name: str, layer: nn.Module, value: Tensor, given: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return value.detach() if count - 1 == tap else value

    return not _watched(model, watch)(images.clone().requires_grad_()).requires_grad


def path_share(model: nn.Module, images: Tensor, tap: int) -> Fraction:
    """The share of the ways from the score to the input that pass what call `tap` returned: all are walked."""
    marked: list[Node | None] = []

    def watch(name: str, layer: nn.Module, value: Tensor, given: Tensor) -> Tensor:
        marked.append(value.grad_fn)
        return value

    def walk(node: Node) -> tuple[int, int]:
        """Ways from here to the input, and those of them that pass the tap."""
        if not node.next_functions:
            return 1, 0
        ways, passing = 0, 0
        for following, _ in node.next_functions:
            if following is not None:
                more, through = walk(following)
                ways, passing = ways + more, passing + through
        return ways, ways if node is marked[tap] else passing

    logits = _watched(model, watch)(images.clone().requires_grad_())
    ways, passing = walk(logits.grad_fn)
    return Fraction(passing, ways)


def samples(model: nn.Module, images: Tensor, measured: Measured, taps: Sequence[int]) -> list[whole.Sample]:
    """The same as arrays, one image each, with the calls `taps` as layers."""
    sites = measured.sites()
    paths = [float(path_share(model, images, tap)) for tap in taps]
    reached = [[found[site] for site in sites] for found in (behind(model, images, tap) for tap in taps)]

    def layer(tap: int, index: int) -> whole.Layer:
        call = measured.calls[tap]
        return whole.Layer(call.value[index].numpy(), call.gradient[index].numpy())

    def site(at: int, index: int) -> whole.Site:
        call = measured.calls[at]
        assert call.shift is not None
        return whole.Site(call.shift[index].numpy(), call.gradient[index].numpy())

    return [
        whole.Sample(
            layers=[layer(tap, index) for tap in taps],
            sites=[site(at, index) for at in sites],
            behind=reached,
            paths=paths,
            logits=measured.logits[index].tolist(),
            target=int(measured.target[index]),
            space=tuple(images.shape[2:]),
            score=float(measured.score[index]),
        )
        for index in range(len(images))
    ]


def _watched(model: nn.Module, watch: Callable[[str, nn.Module, Tensor, Tensor], Tensor]) -> nn.Module:
    twin = copy.deepcopy(model).requires_grad_(False)
    for name, layer in twin.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(
                lambda layer, given, value, name=name: watch(name, layer, value, given[0]),
            )
    return twin


def _shift(layer: nn.Module, given: Tensor) -> Tensor | None:
    """What the layer makes of zeros: its constant, at every position."""
    if not isinstance(layer, SITES) or (getattr(layer, "bias", None) is None and not isinstance(layer, NORMS)):
        return None
    with torch.no_grad():
        return layer.forward(torch.zeros_like(given))
