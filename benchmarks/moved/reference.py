"""A slow map from autograd alone: it shows that a composition can be explained, and that the judge is fair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .networks import Composition

MOST = 120
"""Positions of one layer, at most; those with most evidence."""


def reference_maps(composition: Composition) -> list[Tensor]:
    """One map per input: gradient times output of every step, each position drawn where its gradient says it looks."""
    torch.manual_seed(composition.seed)
    dense = tuple(0.5 + torch.rand_like(each) for each in composition.inputs)
    _, outputs, logits = _watched(composition.model, composition.inputs)
    dense_leaves, dense_outputs, _ = _watched(composition.model, dense)
    gradients = torch.autograd.grad(logits[:, composition.target].sum(), outputs, retain_graph=True, allow_unused=True)
    maps = [torch.zeros_like(truth.evidence, dtype=torch.float) for truth in composition.truths]
    for output, gradient, dense_output in zip(outputs, gradients, dense_outputs, strict=True):
        if gradient is None:
            continue
        evidence = (gradient * output).sum(1).relu().detach()
        seen = dense_output.sum(1)
        layer = [torch.zeros_like(each) for each in maps]
        for at in evidence.flatten().argsort(descending=True)[:MOST].tolist():
            value = float(evidence.flatten()[at])
            if value <= 0.03 * float(evidence.max()):
                break
            looks = torch.autograd.grad(seen.flatten()[at], dense_leaves, retain_graph=True, allow_unused=True)
            _draw(layer, looks, value, composition.channel_axis)
        for total, part in zip(maps, layer, strict=True):
            total += part / max(float(part.max()), 1e-12)
    return maps


def _watched(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # A copy goes on, so that a later step in place leaves the kept one as it is.
        outputs.append(output)
        return output.clone()

    body = model.body
    assert isinstance(body, nn.Sequential)
    hooks = [step.register_forward_hook(keep) for step in list(body)[:-1]]
    try:
        logits = model(*leaves)
    finally:
        for hook in hooks:
            hook.remove()
    return leaves, outputs, logits


def _draw(layer: list[Tensor], looks: Sequence[Tensor | None], value: float, channel_axis: int | None) -> None:
    """Add `value` at the centre of where a position looks."""
    for target, look in zip(layer, looks, strict=True):
        if look is None:
            continue
        # Squared, since gates and attention let every position look a little at everything.
        weights = look.square() if channel_axis is None else look.square().sum(channel_axis)
        if not weights.sum() > 0:
            continue
        places = weights.nonzero()
        centre = (places * weights[tuple(places.T)][:, None]).sum(0) / weights.sum()
        target[tuple(centre.round().long().tolist())] += value
