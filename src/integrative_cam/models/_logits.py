"""The softmax or sigmoid at the end of a graph, taken away so that logits are explained and not probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ._calls import OP
from ._pieces import Elementwise

_FINAL = {
    **dict.fromkeys(("Softmax", "softmax", "_softmax"), "Softmax"),
    **dict.fromkeys(("LogSoftmax", "log_softmax", "_log_softmax"), "LogSoftmax"),
    **dict.fromkeys(("Sigmoid", "sigmoid", "logsigmoid", "log_sigmoid"), "Sigmoid"),
}
_KEPT = frozenset((
    *("Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "to", "_to_copy", "view", "_unsafe_view"),
    *("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "contiguous"),
))  # fmt: skip
"""They move entries and change none."""
_LAYERS = frozenset((
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "convolution", "linear", "addmm", "matmul", "mm", "bmm", "einsum"),
    *(f"conv{transposed}{axes}d" for transposed in ("", "_transpose") for axes in (1, 2, 3)),
    *("ArgMax", "argmax"),
))  # fmt: skip
_LOGARITHMS = ("LogSoftmax", "log_softmax", "_log_softmax", "logsigmoid", "log_sigmoid")
_SHARES = torch.linspace(0, 1, 101).double()


class Ending(NamedTuple):
    """What was taken from the end of a graph.

    Attributes:
        removed: names of functions, as in ONNX; empty where the graph did not end in one.
        left: probabilities from which an output is computed in a way that logits cannot take.
    """

    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def notes(self, file: str) -> tuple[str, ...]:
        """What the user of the file should know."""
        notes = []
        if self.removed:
            be = "is" if len(self.removed) == 1 else "are"
            names = " and ".join(self.removed)
            notes.append(f"{file} ends in {names}, which {be} removed: the logits before it are explained.")
        if self.left:
            notes.append(
                f"{file} computes its output from the probabilities of {' and '.join(self.left)}, which are explained "
                "in place of logits, since what comes behind cannot be removed. Export the network without it."
            )
        return tuple(notes)


def end_in_logits(module: fx.GraphModule) -> Ending:
    """Let the graph return logits where it returns their softmax, log-softmax or sigmoid.

    What comes behind may move entries, as a reshape does; a function of each entry that keeps their order, such as a
    clip or a logarithm, is removed as well. Needs the name of each node's operation as `node.meta[OP]`.
    """
    elementwise = Elementwise(module)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    removed: list[str] = []
    for node in list(output.all_input_nodes):
        chain = _chain(elementwise, node)
        if not chain:
            continue
        final, *behind = chain
        removed.append(_FINAL[final.meta[OP]])
        instead = {final: final.all_input_nodes[0]}
        before = final
        with module.graph.inserting_before(output):
            for each in behind:
                if each.meta[OP] in _KEPT:
                    instead[each] = module.graph.node_copy(each, partial(_other, instead))
                else:
                    instead[each] = instead[before]
                    removed.append(each.meta[OP])
                before = each
        output.replace_input_with(node, instead[node])
        for each in reversed(chain):
            if not each.users:
                module.graph.erase_node(each)
    module.recompile()
    return Ending(tuple(dict.fromkeys(removed)), tuple(dict.fromkeys(_probabilities(output))))


def _other(instead: Mapping[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return instead.get(node, node)


def _chain(elementwise: Elementwise, node: fx.Node) -> list[fx.Node]:
    """The final function and the nodes from there to `node`, which logits can take; empty where there is none."""
    chain = [node]
    while node.meta.get(OP) not in _FINAL:
        operands = node.args[:1] if node.meta.get(OP) in _KEPT else elementwise.operands(node)
        if len(operands) != 1 or not isinstance(operands[0], fx.Node):
            return []
        node = operands[0]
        chain.insert(0, node)
    final, *behind = chain
    shares = _SHARES.log()[1:] if final.meta[OP] in _LOGARITHMS else _SHARES
    before = final
    for each in behind:
        if each.meta[OP] not in _KEPT and not _keeps_order(elementwise, before, each, shares):
            return []
        before, shares = each, shares if each.meta[OP] in _KEPT else elementwise.run(each, {before: shares})
    return chain if final.all_input_nodes[0].op != "placeholder" else []


def _keeps_order(elementwise: Elementwise, before: fx.Node, node: fx.Node, values: Tensor) -> bool:
    """Whether the node's function never falls on `values`, which rise, and is no comparison and no constant."""
    result = elementwise.run(node, {before: values})
    return result.is_floating_point() and bool((result.diff() >= 0).all()) and bool(result[-1] > result[0])


def _probabilities(output: fx.Node) -> Iterator[str]:
    """The functions that give probabilities and from which the graph's outputs are computed without a layer between."""
    seen = {output}
    waiting = [output]
    while waiting:
        node = waiting.pop()
        operation = node.meta.get(OP)
        if operation in _FINAL:
            yield _FINAL[operation]
        elif operation not in _LAYERS:
            new = [each for each in node.all_input_nodes if each not in seen]
            seen.update(new)
            waiting += new
