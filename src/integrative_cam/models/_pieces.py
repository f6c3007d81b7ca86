"""Activations that a graph holds in pieces, put together again: x * sigmoid(x) becomes one call of silu.

Exporters write SiLU, GELU, Mish and others as products, quotients and exponentials. The pieces are no activations of
the network: a gate such as sigmoid(x) would become a tap, and the 1 in 1 + erf(x) a bias. What some pieces compute
together is told by their values and not by their form, so that neither the order of operands matters nor how constants
are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, permutations
from operator import attrgetter, getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .._plan.functions import ACTIVATIONS
from ._calls import OP, find_function, replace_by_call

_VALUES = torch.cat((torch.linspace(-12, 12, 97), torch.tensor((-100.0, 100.0)))).double()
_TOLERANCE = 1e-5
_SOURCES = 16
"""How many nodes back the input of an activation may lie: twice the pieces of any that is known."""

ELEMENTWISE = frozenset(ACTIVATIONS) - {"glu"} | {
    *("add", "sub", "rsub", "mul", "div", "pow", "square", "neg", "abs", "sign", "exp", "expm1", "log", "log1p"),
    *("sqrt", "rsqrt", "reciprocal", "erf", "maximum", "minimum", "clamp_max", "where", "gt", "ge", "lt", "le"),
    *("logical_not", "logical_and", "logical_or", "to", "_to_copy", "clone", "alias", "detach", "contiguous"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sign", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Max", "Min"),
    *("Clip", "Where", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Cast", "Identity"),
    *("Sigmoid", "Tanh", "Softplus", "Softsign", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid"),
    *("HardSwish", "Sum"),
}
"""Operations of torch and of ONNX that compute each entry of the output from those at the same place."""
_CONSTANTS = ("Constant", "full", "scalar_tensor", "lift_fresh_copy", "view")
# These are one call in torch as well; onnx2torch computes HardSigmoid in pieces.
_WHOLE = frozenset(name.replace("_", "") for name in ACTIVATIONS)
_IN_PIECES = "HardSigmoid"


class Activation(NamedTuple):
    """A function of torch with its arguments behind the input."""

    name: str
    args: tuple[float, ...] = ()
    options: Mapping[str, Any] = {}

    def __call__(self, values: Tensor) -> Tensor:
        function = find_function(self.name)
        assert function is not None
        result: Tensor = function(values, *self.args, **self.options)
        return result


_PLAIN = (
    Activation("gelu", (), {"approximate": "tanh"}),
    *(
        Activation(name)
        for name in (
            *("silu", "gelu", "mish", "hardswish", "hardsigmoid", "softplus", "logsigmoid", "softsign", "tanhshrink"),
            *("relu", "relu6", "sigmoid", "tanh", "selu", "elu", "leaky_relu"),
        )
    ),
)
_WITH_ONE_NUMBER = ("celu", "elu", "leaky_relu", "softplus", "hardshrink", "softshrink")


class Elementwise:
    """What the nodes of a graph compute entry by entry, with scalar constants."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self._scalars: dict[fx.Node, Tensor | None] = {}

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that an elementwise operation is applied to, without scalars; empty for other operations."""
        if node.meta.get(OP) not in ELEMENTWISE:
            return []
        return [each for each in node.all_input_nodes if self.scalar(each) is None]

    def scalar(self, node: fx.Node) -> Tensor | None:
        """The value of a node of one entry that does not depend on the graph's input; else None."""
        if node not in self._scalars:
            value = self._constant(node)
            is_scalar = isinstance(value, Tensor) and value.numel() == 1
            self._scalars[node] = value.detach().cpu().reshape(()) if is_scalar else None
        return self._scalars[node]

    def halves(self, split: fx.Node) -> bool:
        """Whether an ONNX Split gives two parts of one size."""
        sizes = [self._constant(each) for each in split.all_input_nodes[1:]]
        module = self.module.get_submodule(str(split.target))
        return bool(module.num_splits == 2) and all(size is not None and size.unique().numel() == 1 for size in sizes)

    def run(self, node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor:
        """The node's output, where those of some nodes that it depends on are known."""
        if node not in known:
            scalar = self.scalar(node)
            if scalar is not None:
                return scalar.double() if scalar.is_floating_point() else scalar
            known[node] = self._call(node, lambda each: self.run(each, known))
        return known[node]

    def _constant(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.module)
        if node.meta.get(OP) not in _CONSTANTS and node.meta.get(OP) not in ELEMENTWISE:
            return None
        inputs = {each: self.scalar(each) for each in node.all_input_nodes}
        return None if None in inputs.values() else self._call(node, inputs.__getitem__)

    def _call(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        args, options = fx.map_arg((node.args, node.kwargs), value_of)
        function = self.module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        with torch.no_grad():
            return function(*args, **options)  # type: ignore[operator]  # a function or a module by its op


def gather_pieces(module: fx.GraphModule) -> None:
    """Let the graph call an activation of torch wherever several of its nodes compute one together.

    Needs the name of each node's operation as `node.meta[OP]`.
    """
    elementwise = Elementwise(module)
    order = {node: at for at, node in enumerate(module.graph.nodes)}
    sources: dict[fx.Node, frozenset[fx.Node]] = {}  # of each node, those that it is an elementwise function of
    for node in list(order):
        operands = elementwise.operands(node)
        common = frozenset.intersection(*(sources[each] for each in operands)) if operands else frozenset[fx.Node]()
        # The nearest source first: of relu(relu(x)), each is an activation.
        nearest = sorted(common, key=order.__getitem__, reverse=True)[:_SOURCES]
        sources[node] = frozenset((node, *nearest))
        for source in nearest:
            if source in operands and _is_whole(node):
                break
            region = _between(source, node)
            activation = _recognised(elementwise, region, source) if _may_be_one_call(region) else None
            if activation is None:
                continue
            path = str(node.target) if node.op == "call_module" else ""
            call = replace_by_call(module, node, path, activation.name, source, *activation.args, **activation.options)
            order[call], sources[call] = order[node], frozenset((call, *nearest))
            for piece in sorted(region[1:], key=order.__getitem__, reverse=True):
                if not piece.users:
                    module.graph.erase_node(piece)
            break
    for node in list(module.graph.nodes):
        found = _glu(elementwise, node) or _prelu(node)
        if found is not None:
            name, source, argument, nodes = found
            if _may_be_one_call(nodes):
                path = str(node.target) if node.op == "call_module" else ""
                replace_by_call(module, node, path, name, source, argument)
                for piece in nodes[1:]:
                    if not piece.users:
                        module.graph.erase_node(piece)
    module.recompile()


Found = tuple[str, fx.Node, Any, Sequence[fx.Node]]
"""A function's name, its input, its other argument, and the nodes that compute it, the last first."""


def _glu(elementwise: Elementwise, node: fx.Node) -> Found | None:
    """One half of the channels times the sigmoid of the other half."""
    if node.meta.get(OP) not in ("mul", "Mul") or len(node.all_input_nodes) != 2:
        return None
    half, gate = node.all_input_nodes
    if gate.meta.get(OP) not in ("sigmoid", "Sigmoid"):
        half, gate = gate, half
    if gate.meta.get(OP) not in ("sigmoid", "Sigmoid"):
        return None
    other = gate.all_input_nodes[0]
    region = [node, gate, other, half]
    if half.meta.get(OP) == other.meta.get(OP) == "slice":
        whole, axis, *first = half.args
        same, same_axis, *second = other.args
        if isinstance(whole, fx.Node) and "val" in whole.meta and (whole, axis) == (same, same_axis):
            size = whole.meta["val"].shape[axis]
            if [*first[:2], *second[:2]] == [0, size // 2, size // 2, size]:
                return "glu", whole, axis, region
    if half.target is other.target is getitem and half.args[0] is other.args[0]:
        split = half.all_input_nodes[0]
        if split.meta.get(OP) == "Split" and (half.args[1], other.args[1]) == (0, 1) and elementwise.halves(split):
            module = elementwise.module.get_submodule(str(split.target))
            return "glu", split.all_input_nodes[0], module.axis, [*region, split]
    return None


def _prelu(node: fx.Node) -> Found | None:
    """Where x is positive x, elsewhere x times a weight of its channel."""
    if node.meta.get(OP) != "where" or len(node.all_input_nodes) != 3:
        return None
    positive, source, product = node.all_input_nodes
    weights = [each for each in product.all_input_nodes if each is not source]
    is_one = positive.meta.get(OP) == "gt" and positive.args == (source, 0) and product.meta.get(OP) == "mul"
    if not is_one or len(weights) != 1:
        return None
    return "_prelu_kernel", source, weights[0], [node, positive, product]


def _is_whole(node: fx.Node) -> bool:
    """Whether the node alone is an activation already."""
    name = str(node.meta.get(OP))
    return name != _IN_PIECES and name.replace("_", "").lower() in _WHOLE


def _between(source: fx.Node, node: fx.Node) -> list[fx.Node]:
    """The nodes that compute `node` from `source` and constants, the last first."""
    region = {node: None}
    waiting = [node]
    while waiting:
        new = [each for each in waiting.pop().all_input_nodes if each is not source and each not in region]
        region.update(dict.fromkeys(new))
        waiting += new
    return list(region)


def _may_be_one_call(region: Sequence[fx.Node]) -> bool:
    """Whether the nodes may be of one call before the export, as far as the program says."""
    return len({node.meta["torch_fn"] for node in region if "torch_fn" in node.meta}) <= 1


def _recognised(elementwise: Elementwise, region: Sequence[fx.Node], source: fx.Node) -> Activation | None:
    """The activation that the nodes compute of `source`."""
    try:
        values = elementwise.run(region[0], {source: _VALUES}).flatten().double()
    except (RuntimeError, TypeError):  # such as a memory format that needs four axes
        return None
    if values.shape != _VALUES.shape or _equal(values, _VALUES):
        return None
    numbers = dict.fromkeys(_numbers(elementwise, region))
    candidates = chain(
        _PLAIN,
        (Activation(name, (number,)) for name in _WITH_ONE_NUMBER for number in numbers if number > 0),
        (Activation("threshold", pair) for pair in permutations(numbers, 2)),
    )
    return next((activation for activation in candidates if _equal(values, activation(_VALUES))), None)


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE)


def _numbers(elementwise: Elementwise, region: Sequence[fx.Node]) -> Iterator[float]:
    """The constants in some nodes."""
    for node in region:
        scalar = elementwise.scalar(node)
        if scalar is not None:
            yield float(scalar)
        yield from (float(each) for each in node.args if isinstance(each, int | float))
