"""One sample of whatever a model returns, the tensor to explain in it, and callables on it with names."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import OutputError, TargetError

if TYPE_CHECKING:
    from jaxtyping import Float

SampleTarget = Callable[[Any], Tensor]
"""Takes one sample's output (any structure, its batch axis removed) and gives a scalar tensor."""


def logits_of(output: Any) -> Tensor:
    """The tensor to explain: the output itself, its `logits`, or its first floating-point tensor.

    Raises:
        OutputError: there is none.
    """
    tensor = _first_tensor(output)
    if tensor is None:
        raise OutputError(
            f"The model returned {type(output).__name__} without a floating-point tensor or `logits`. "
            "Wrap the model so that it returns a tensor, or a tuple or dict that holds one."
        )
    return tensor


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values: Sequence[Any] = ()
    if isinstance(output, Mapping):
        values = [output.get("logits"), *output.values()]
    elif isinstance(output, tuple | list):
        values = output
    elif _is_record(output):
        values = [getattr(output, "logits", None), *(getattr(output, field.name) for field in fields(output))]
    elif hasattr(output, "logits"):
        values = [output.logits]
    return next((tensor for value in values if (tensor := _first_tensor(value)) is not None), None)


def sample_of(output: Any, sample: int) -> Any:
    """One sample of a structured output: every tensor in it loses its batch axis, the structure stays.

    Tensors without axes, such as a loss, stay too.
    """
    if isinstance(output, Tensor):
        return output[sample] if output.ndim else output
    if _is_record(output):
        parts = {field.name: getattr(output, field.name) for field in fields(output) if field.init}
        return replace(output, **{name: sample_of(value, sample) for name, value in parts.items()})
    if isinstance(output, Mapping):
        return {key: sample_of(value, sample) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(sample_of(value, sample) for value in output))
    if isinstance(output, tuple | list):
        return type(output)(sample_of(value, sample) for value in output)
    return output


def _is_record(output: Any) -> bool:
    return is_dataclass(output) and not isinstance(output, type)


def class_scores(logits: Tensor, asked: str, came: str = "") -> Float[Tensor, "batch classes"]:
    """The logits as one value per class; a single value per sample counts as one class.

    Args:
        logits: (batch, ...).
        asked: what needs a class, for the message.
        came: what it got instead, for the message; default the shape of `logits`.

    Raises:
        TargetError: several values per class, as in segmentation.
    """
    if logits.ndim == 1:
        return logits[:, None]
    if logits.ndim > 2 and logits[0, 0].numel() > 1:
        came = came or f"the model's output has shape {tuple(logits.shape)}"
        raise TargetError(
            f"{asked} picks a class, but {came}: more than one value per class. Give a callable on one sample's "
            "output, such as lambda output: output[3].mean(). Use targets.segmentation, targets.region or targets.step "
            "to make one."
        )
    return logits.flatten(1)


def class_values(output: Any, asked: str) -> Float[Tensor, "classes"]:
    """One sample's value for each class; see `class_scores`."""
    logits = logits_of(output)
    return class_scores(logits[None], asked, f"a sample's output has shape {tuple(logits.shape)}")[0]


def class_value(output: Any, index: int, argument: str, asked: str = "") -> Float[Tensor, ""]:
    """One sample's value for a class, which `argument` names.

    Raises:
        TargetError: out of range, or several values per class.
    """
    values = class_values(output, asked or f"{argument}={index}")
    return values[check_index(index, len(values), argument)]


def check_index(index: int, count: int, argument: str, whole: str = "the model has {} outputs") -> int:
    """The index, if it is from 0 to count - 1.

    Raises:
        TargetError: it is not.
    """
    if not 0 <= index < count:
        raise TargetError(f"{argument} {index} is out of range: {whole.format(count)}, 0 to {count - 1}.")
    return index


def check_box(box: Sequence[float] | Tensor, wanted: str) -> Float[Tensor, "4"]:
    """(left, top, right, bottom) in float64.

    Raises:
        TargetError: not four numbers, or a box without area; `wanted` begins the message.
    """
    try:
        edges = torch.as_tensor(box, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        edges = torch.empty(0)
    if edges.shape != (4,) or not (edges[2:] > edges[:2]).all():
        raise TargetError(f"{wanted} with right > left and bottom > top, but got {box!r}.")
    return edges


def as_target(target: int | SampleTarget, argument: str) -> SampleTarget:
    """A class index as a callable that gives the class's logit; a callable as it is.

    Raises:
        TargetError: neither; or, when called, an index out of range.
    """
    if callable(target):
        return target
    index = as_integer(target, argument, "a class index or a callable")
    return named(lambda output: class_value(output, index, argument), str(index))


def as_integer(value: Any, argument: str, wanted: str = "a class index") -> int:
    """The value as an int, if it is an integer of any library; a bool is not.

    Raises:
        TargetError: no integer; the message says what was wanted.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TargetError(f"{argument} must be {wanted}, but got {value!r}.")


def named(target: SampleTarget, name: str) -> SampleTarget:
    """The callable under a name that says what it explains; shown as `Explanation.target_names`."""
    target.__name__ = name
    return target


def name_of(target: int | SampleTarget) -> str:
    """A class index or a callable's name."""
    return str(target) if isinstance(target, int) else getattr(target, "__name__", type(target).__name__)
