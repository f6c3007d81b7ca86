"""Watch one forward pass: which tensors could be taps, and where biases enter.

A `TorchFunctionMode` sees every torch function the network calls, inside modules or not. It lives on
the calling thread only and puts nothing on the model, so nothing can be left behind.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .bias_sites import shift_of
from .follower import Follower
from .model_state import storage_of
from .positions import Fold, Layout

if TYPE_CHECKING:
    from jaxtyping import Float

ACTIVATIONS = (
    *("celu", "clamp", "clamp_min", "clip", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish"),
    *("hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid"),
    *("silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold"),
)
KINDS: Mapping[str, str] = {
    **dict.fromkeys(ACTIVATIONS, "activation"),
    **{f"conv{n}d": "conv" for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": "conv" for n in (1, 2, 3)},
    **dict.fromkeys(("linear", "addmm", "matmul", "bmm", "baddbmm"), "linear"),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"), "norm"),
    **{f"{mode}_pool{n}d": "pool" for mode in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)},
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "cat"), "merge"),
}


@dataclass(frozen=True)
class Candidate:
    """A feature map met on the way: its value and the place in the autograd graph where it arose.

    `fold` brings a gradient there to the value's axes; None where it has them. `outside`: the network's own tensor,
    where it has entries that are nowhere on the grid, such as a class token. `is_positive`: the function gives nothing
    below zero.
    """

    name: str
    kind: str
    value: Float[Tensor, "batch channel *space"]
    edge: GradientEdge
    fold: Fold | None
    outside: Tensor | None
    is_positive: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, *space)."""
        return tuple(self.value.shape[1:])


@dataclass(frozen=True)
class Shift:
    """A constant that the network adds: `value` broadcasts to the output whose edge this is."""

    name: str
    value: Tensor
    edge: GradientEdge
    layout: Layout


class Capture(TorchFunctionMode):
    """Record the candidates that `wanted(name, kind)` asks for, and every constant shift.

    Values stay those of the moment: a tensor that the network overwrites later is copied just before, and
    `before_write` is told of it. With `keep_graph` they stay in the autograd graph.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        wanted: Callable[[str, str], bool],
        before_write: Callable[[Tensor], None],
        keep_graph: bool = False,
    ) -> None:
        super().__init__()
        self.candidates: list[Candidate] = []
        self.shifts: list[Shift] = []
        self.seen: list[str] = []
        self.operators = False
        self._follower = Follower(batch)
        self._batch = batch
        self._wanted = wanted
        self._before_write = before_write
        self._keep_graph = keep_graph
        self.modules = dict(model.named_modules())
        self._names = {id(module): name for name, module in self.modules.items()}
        self._by_storage: dict[int, list[int]] = {}
        self._calls: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        self.operators |= isinstance(func, torch._ops.OpOverload)
        name = called.strip("_")  # relu_ is relu in place, __rsub__ is the operator of rsub
        written = _written(called, args, kwargs)
        if written is not None:
            self._preserve(written)
            self._before_write(written)
        output = func(*args, **kwargs)
        kind = KINDS.get(name)
        if (
            kind is not None
            and isinstance(output, Tensor)
            and output.requires_grad
            and output.is_floating_point()
            and not output.is_leaf
        ):
            if written is None and output._is_view():
                # Linear and instance norm end in a view of a tensor that nobody else sees. Writing into a view
                # would give it another place in the graph and cut the recorded one off.
                output = torch.ops.aten._unsafe_view(output, output.shape)
            self._follower.follow(func, name, args, kwargs, output)
            self._record(name, kind, args, kwargs, output)
        else:
            # An operator of torch's dispatcher, permute.default, moves what permute moves.
            self._follower.follow(func, name.partition(".")[0], args, kwargs, output)
        return output

    def enter(self, inputs: Sequence[Tensor]) -> None:
        """Say which tensors are the network's inputs: where they lie on the grid is followed from there."""
        for each in inputs:
            self._follower.enter(each)

    def _record(self, func: str, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        layout = self._follower.layout(output)
        with torch.set_grad_enabled(self._keep_graph):
            shift = shift_of(func, args, kwargs)
        name = self._name(func)
        self.seen.append(name)
        edge = get_gradient_edge(output)
        if shift is not None:
            self.shifts.append(Shift(name, shift if self._keep_graph else shift.detach(), edge, layout))
        if not self._wanted(name, kind):
            return
        whole, fold = output if self._keep_graph else output.detach(), None
        value = whole
        if not layout.regular:
            fold = layout.fold
            if fold is None or fold.batch != self._batch:
                return
            value = fold(whole)
        if value.shape[2:].numel() > 1:
            outside = None if value.numel() == whole.numel() else whole
            self._by_storage.setdefault(storage_of(output), []).append(len(self.candidates))
            self.candidates.append(Candidate(name, kind, value, edge, fold, outside, _is_positive(func, args, kwargs)))

    def _name(self, func: str) -> str:
        """Path of the innermost module that runs now, `:function` where it is not a torch.nn layer, `#call`."""
        frame = sys._getframe(3)
        path, layer = "", False
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code.co_varnames[0] == "self":
                module = frame.f_locals.get("self")
                found = self._names.get(id(module))
                if found is not None:
                    path, layer = found, type(module).__module__.startswith("torch.nn.")
                    break
            frame = frame.f_back  # type: ignore[assignment]
        name = path if layer and path else f"{path}:{func}"
        self._calls[name] += 1
        calls = self._calls[name]
        return name if calls == 1 else f"{name}#{calls}"

    def _preserve(self, tensor: Tensor) -> None:
        for index in self._by_storage.pop(storage_of(tensor), ()):
            candidate = self.candidates[index]
            outside = None if candidate.outside is None else candidate.outside.clone()
            self.candidates[index] = replace(candidate, value=candidate.value.clone(), outside=outside)


def _is_positive(func: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the function gives nothing below zero, whatever it is given."""
    if func == "hardtanh":  # nn.ReLU6 as well
        least = kwargs.get("min_val", args[1] if len(args) > 1 else -1)
        return isinstance(least, int | float) and least >= 0
    return func in ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")


def _written(called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that this call overwrites, if any."""
    out = kwargs.get("out")
    if isinstance(out, Tensor):
        return out
    in_place = (
        called == "__setitem__" or (called.endswith("_") and not called.endswith("__")) or kwargs.get("inplace") is True
    )
    first = args[0] if args else kwargs.get("input")
    return first if in_place and isinstance(first, Tensor) else None
