"""Targets other than classes: a predicted value, similarity to a reference, a part or a step of the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import TargetError
from ._output import selected, tensor_of
from ._scoring import SampleTarget, as_integer, as_target, class_value, has_unit, name_of, named


def value(index: int = 0, sign: int = 1) -> SampleTarget:
    """A predicted value of a regression: what raises it (sign 1), or what lowers it (sign -1).

    Raises:
        TargetError: sign is neither, index is no integer or, when called, out of range.
    """
    index = as_integer(index, "index")
    if isinstance(sign, bool) or sign not in (1, -1):
        raise TargetError(f"sign must be 1 (what raises the value) or -1 (what lowers it), but got {sign!r}.")

    def target(output: Any) -> Tensor:
        return sign * class_value(output, index, "index", f"value({index})", as_returned=True)

    return named(target, f"{'-' if sign < 0 else ''}value {index}", has_unit=False)


def similarity(reference: Tensor) -> SampleTarget:
    """The cosine, -1 to 1, between a sample's embedding and a reference's, such as `model(reference_image)[0]`.

    Args:
        reference: of the shape of one sample's embedding; taken as a constant.

    Raises:
        TargetError: no finite floating-point tensor, zero everywhere or, when called, of another shape.
    """
    if not isinstance(reference, Tensor) or not reference.is_floating_point():
        came = reference.dtype if isinstance(reference, Tensor) else type(reference).__name__
        raise TargetError(f"reference must be a floating-point tensor, one sample's embedding, but got {came}.")
    if not reference.isfinite().all() or not reference.any():
        raise TargetError("reference must be finite and not zero everywhere, or it has no direction.")
    reference = reference.detach().clone()

    def target(output: Any) -> Tensor:
        embedding = tensor_of(output)
        if embedding.shape != reference.shape:
            raise TargetError(
                f"reference must have the shape of one sample's embedding, {tuple(embedding.shape)}, "
                f"but has {tuple(reference.shape)}; take one sample, such as model(images)[0]."
            )
        return torch.cosine_similarity(embedding.flatten(), reference.to(embedding).flatten(), 0)

    return named(target, "similarity", has_unit=False)


def step(number: int, of: int | SampleTarget, axis: int = 0) -> SampleTarget:
    """A target at one step of a sequence, such as a token, a frame or a time.

    Args:
        number: the step; from the end where negative.
        of: a class, or any target, of what the model says at that step.
        axis: of a sample's output that counts steps: 0 in (step, class), 1 in (class, step).

    Raises:
        TargetError: not integers, `of` is neither class nor callable or, when called, axis or step out of range.
    """
    number, axis = as_integer(number, "number", "an integer"), as_integer(axis, "axis", "an integer")
    wanted = as_target(of, "of")

    def target(output: Any) -> Tensor:
        sequence = tensor_of(output)
        if not -sequence.ndim <= axis < sequence.ndim:
            raise TargetError(
                f"axis {axis} is out of range: the output has {sequence.ndim} axes, shape {tuple(sequence.shape)}."
            )
        steps = sequence.shape[axis]
        if not -steps <= number < steps:
            raise TargetError(
                f"number {number} is out of range: axis {axis} of a sample's output, of shape {tuple(sequence.shape)}, "
                f"has {steps} steps, 0 to {steps - 1}."
            )
        return wanted(selected(sequence, axis, number))

    return named(target, f"{name_of(wanted)} at step {number}", has_unit(wanted))


def part(key: str | int, of: int | SampleTarget) -> SampleTarget:
    """A target on a part of a structured output, such as one of several heads.

    Args:
        key: of a dict, the name of an attribute, or the place in a tuple or list.
        of: a class, or any target, on that part; another `part` reaches deeper.

    Raises:
        TargetError: `of` is neither class nor callable or, when called, there is no such part.
    """
    wanted = as_target(of, "of")

    def target(output: Any) -> Tensor:
        return wanted(_part(output, key))

    return named(target, f"{name_of(wanted)} of {key}", has_unit(wanted))


def _part(output: Any, key: str | int) -> Any:
    if isinstance(output, Mapping) and key in output:
        return output[key]
    if isinstance(output, tuple | list) and isinstance(key, int) and -len(output) <= key < len(output):
        return output[key]
    if isinstance(key, str) and not isinstance(output, Tensor) and hasattr(output, key):
        return getattr(output, key)
    raise TargetError(f"key {key!r} names no part of a sample's output, which is {_described(output)}.")


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    parts = ", ".join(map(repr, getattr(output, "__dict__", ())))
    return type(output).__name__ + (f" with {parts}" if parts else "")
