"""The torch functions that a run of a network calls, with what goes into each: how a later run is compared with a plan.

Two runs that call the same functions in the same order, on tensors made by the same earlier calls, with the same
integers, flags and strings, compute the same graph. Floats may differ: no tap, place or path depends on one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OUTSIDE = "outside"
"""Stands for a tensor that no call of the run made: a parameter, a buffer, a constant."""

_PLAIN = frozenset((int, bool, str, type(None), torch.dtype, torch.device, torch.memory_format, type(Ellipsis)))
_GRAPH_NODES = 32


@dataclass(frozen=True)
class Step:
    """One call of a torch function.

    Attributes:
        function: what was called.
        arguments: its arguments as `DataFlow.arguments` describes them.
        shapes: of the tensors it returned.
        overwrites: it writes to a feature map that was taken before, or to a buffer.
        is_view: it is a layer that returned a view; see `capture.unviewed`.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    overwrites: bool
    is_view: bool


class DataFlow:
    """Numbers the tensors of one run by the call that made them; leaves nothing on any tensor."""

    def __init__(self) -> None:
        self._labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._count = 0

    def add(self, output: Any, args: Sequence[Any] = ()) -> tuple[tuple[int, ...], ...]:
        """Number the tensors that a call with these arguments returned; their shapes.

        A tensor from outside of the run that the call hands back, as in place, stays one from outside.
        """
        tensors = (output,) if isinstance(output, Tensor) else tensors_in((output,))
        for tensor in tensors:
            if self.label(tensor) is not None or not any(tensor is argument for argument in args):
                self._labels[id(tensor)] = weakref.ref(tensor), f"#{self._count}"
            self._count += 1
        return tuple([tuple(tensor.shape) for tensor in tensors])

    def label(self, tensor: Tensor) -> str | None:
        """The number of a tensor made in this run, as a text that no argument is; else None."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def arguments(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """What the arguments have in common with those of any run of the same graph."""
        if function is torch._assert:  # its message may hold the batch size
            return ()
        described = self._described(args)
        if kwargs:
            described += [(name, self._described((value,))[0]) for name, value in kwargs.items()]
        return tuple(described)

    def _described(self, values: Sequence[Any]) -> list[Any]:
        """One loop and few calls: this runs for every function that a network calls."""
        described: list[Any] = []
        for value in values:
            kind = type(value)
            if kind in _PLAIN:
                described.append(value)
            elif kind is Tensor or isinstance(value, Tensor):
                entry = self._labels.get(id(value))
                made_here = entry is not None and entry[0]() is value
                described.append(entry[1] if made_here else _outside(value))  # type: ignore[index]
            elif kind is float:
                described.append(float)
            elif kind is slice:
                described.append((slice, *self._described((value.start, value.stop, value.step))))
            elif isinstance(value, tuple | list):
                described.append(tuple(self._described(value)))
            elif kind is dict:
                described.append(tuple(zip(value, self._described(list(value.values())), strict=True)))
            else:
                described.append(kind)
        return described


def _outside(tensor: Tensor) -> str:
    """A tensor that no seen call made. Indices are told apart, since positions depend on them."""
    if type(tensor) is nn.Parameter:
        return OUTSIDE
    if not tensor.is_floating_point() and not tensor.is_complex():
        version = None if tensor.is_inference() else tensor._version  # inference tensors count no writes
        return f"{OUTSIDE} {id(tensor)} {version}"
    if tensor.grad_fn is None:
        return OUTSIDE
    # Made by what torch does not show, such as an autograd.Function: told apart by the graph behind it.
    names: list[str] = []
    waiting = [tensor.grad_fn]
    while waiting and len(names) < _GRAPH_NODES:
        node = waiting.pop()
        names.append(node.name())
        waiting += [following for following, _ in node.next_functions if following is not None]
    return " ".join([OUTSIDE, *names])


def same_arguments(planned: tuple[Any, ...], current: tuple[Any, ...], batches: tuple[int, int]) -> bool:
    """Whether a call has the planned arguments, for the batch size of now, `batches` = (planned, current)."""
    if planned == current:
        return True
    return batches[0] != batches[1] and _scales(planned, current, *batches)


def same_shapes(
    planned: Sequence[tuple[int, ...]], current: Sequence[tuple[int, ...]], batches: tuple[int, int]
) -> bool:
    """Whether a call returned tensors of the planned shapes, for the batch size of now."""
    return planned == current or (batches[0] != batches[1] and _scales(planned, current, *batches))


def _scales(planned: Any, current: Any, before: int, now: int) -> bool:
    if isinstance(planned, tuple) and isinstance(current, tuple):
        return len(planned) == len(current) and all(
            _scales(*pair, before, now) for pair in zip(planned, current, strict=True)
        )
    if type(planned) is int and type(current) is int:
        return planned == current or planned * now == current * before
    return bool(planned == current)


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among some values, and in tuples and lists there."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            tensors += tensors_in(value)
    return tensors
