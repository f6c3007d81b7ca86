"""The softmax or sigmoid at the end of a graph, taken away so that the network returns logits and not probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, fx

from ._calls import OP
from ._pieces import Elementwise

_FINAL = {
    **dict.fromkeys(("Softmax", "softmax", "_softmax"), "Softmax"),
    **dict.fromkeys(("LogSoftmax", "log_softmax", "_log_softmax"), "LogSoftmax"),
    **dict.fromkeys(("Sigmoid", "sigmoid"), "Sigmoid"),
}
_MOVES = frozenset((
    *("Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "to", "_to_copy", "view", "_unsafe_view"),
    *("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "contiguous"),
))  # fmt: skip
"""Operations that change the form of their first argument and none of its values."""
_SHARES = torch.linspace(0, 1, 101).double()


def end_in_logits(module: fx.GraphModule) -> tuple[str, ...]:
    """Let the graph return logits where it returns their softmax, log-softmax or sigmoid; what was removed.

    Behind it may stand operations that change the form, such as a reshape. Functions of each value that keep the order
    of values, such as a clip or a logarithm, are removed as well. Other ends stay as they are. Needs the name of each
    node's operation as `node.meta[OP]`.
    """
    elementwise = Elementwise(module)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    removed: list[str] = []
    for node in list(output.all_input_nodes):
        chain = _end(elementwise, node)
        if not chain:
            continue
        final, *behind = chain
        removed.append(_FINAL[final.meta[OP]])
        instead = {final: final.all_input_nodes[0]}
        with module.graph.inserting_before(output):
            for before, each in zip(chain, behind, strict=False):
                if each.meta[OP] in _MOVES:
                    instead[each] = module.graph.node_copy(each, partial(_other, instead))
                else:
                    instead[each] = instead[before]
                    removed.append(each.meta[OP])
        output.replace_input_with(node, instead[node])
        for each in reversed(chain):
            if not each.users:
                module.graph.erase_node(each)
    module.recompile()
    return tuple(dict.fromkeys(removed))


def describe_end(file: str, removed: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The notes for the user of a file and the network's task, by what `end_in_logits` removed."""
    task = "multi-label" if "Sigmoid" in removed[:1] else "classification"
    if not removed:
        return (), task
    verb = "is" if len(removed) == 1 else "are"
    note = f"{file} ends in {' and '.join(removed)}, which {verb} removed: the logits before it are explained."
    return (note,), task


def _end(elementwise: Elementwise, node: fx.Node) -> list[fx.Node]:
    """The final function and the nodes from there to `node`, if logits can pass these in place of probabilities."""
    chain = [node]
    while node.meta.get(OP) not in _FINAL:
        operands = node.args[:1] if node.meta.get(OP) in _MOVES else elementwise.operands(node)
        if len(operands) != 1 or not isinstance(operands[0], fx.Node):
            return []
        node = operands[0]
        chain.insert(0, node)
    values = _SHARES.log()[1:] if _FINAL[node.meta[OP]] == "LogSoftmax" else _SHARES
    for before, each in pairwise(chain):
        if each.meta[OP] not in _MOVES:
            values = elementwise.run(each, {before: values})
            if not _rises(values):
                return []
    return chain if node.all_input_nodes[0].op != "placeholder" else []


def _rises(values: Tensor) -> bool:
    """Whether they are numbers that never fall and are not all the same."""
    return values.is_floating_point() and bool((values.diff() >= 0).all()) and bool(values[-1] > values[0])


def _other(instead: Mapping[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return instead.get(node, node)
