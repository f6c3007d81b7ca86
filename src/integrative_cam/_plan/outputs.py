"""Which of a network's output tensors a score is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import gcd
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from .plan import Outputs

_LIMIT = 4096
"""Nodes of the autograd graph between outputs and score; of more, the score is no function of the outputs alone."""


def output_tensors(output: Any) -> list[Tensor]:
    """The differentiable tensors in whatever a network returned, in the order in which they lie there."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad and output.is_floating_point() else []
    values: Sequence[Any] = ()
    if isinstance(output, Mapping):
        values = list(output.values())
    elif isinstance(output, tuple | list):
        values = output
    elif is_dataclass(output) and not isinstance(output, type):
        values = [getattr(output, field.name) for field in fields(output)]
    elif hasattr(output, "logits"):
        values = [output.logits]
    return [tensor for value in values for tensor in output_tensors(value)]


def outputs_of(score: Tensor, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Outputs | None:
    """The outputs that a score is computed from, with the number of paths to each; None where it is of something else.

    The walk goes from the score to the network's outputs and no further.
    """
    if score.grad_fn is None:
        return None
    ends = {get_gradient_edge(tensor)[:2]: place for place, tensor in reversed(list(enumerate(outputs)))}
    inputs = {get_gradient_edge(leaf).node for leaf in leaves}
    order = _towards(score.grad_fn, ends)
    if order is None or inputs.intersection(order):
        return None
    paths = dict.fromkeys(order, 0)
    paths[score.grad_fn] = 1
    counts: dict[int, int] = {}
    for node in reversed(order):
        for edge in node.next_functions:
            if edge in ends:
                counts[ends[edge]] = counts.get(ends[edge], 0) + paths[node]
            elif edge[0] is not None:
                paths[edge[0]] += paths[node]
    common = gcd(*counts.values())
    return tuple((place, count // common) for place, count in sorted(counts.items())) if counts else None


def _towards(root: Node, ends: Mapping[Any, int]) -> list[Node] | None:
    """The nodes between the score and the outputs, each after those that its gradient flows to."""
    order: list[Node] = []
    seen = {root}
    stack = [(root, iter(root.next_functions))]
    while stack:
        node, following = stack[-1]
        for edge in following:
            if edge[0] is not None and edge not in ends and edge[0] not in seen:
                seen.add(edge[0])
                stack.append((edge[0], iter(edge[0].next_functions)))
                break
        else:
            stack.pop()
            order.append(node)
        if len(seen) > _LIMIT:
            return None
    return order
