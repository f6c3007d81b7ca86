"""One sample of whatever a model returns, the tensor to explain in it, and callables on it with names."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

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
    found = _first_tensor(output)
    if found is None:
        raise OutputError(
            f"The model returned {type(output).__name__} without a floating-point tensor or `logits`. "
            "Wrap the model so that it returns a tensor, or a tuple or dict that holds one."
        )
    return found


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values: Sequence[Any] = ()
    if isinstance(output, Mapping):
        values = [output.get("logits"), *output.values()]
    elif isinstance(output, tuple | list):
        values = output
    elif _is_record(output):
        values = [getattr(output, "logits", None), *(getattr(output, each.name) for each in fields(output))]
    elif hasattr(output, "logits"):
        values = [output.logits]
    return next((found for value in values if (found := _first_tensor(value)) is not None), None)


def sample_of(output: Any, sample: int) -> Any:
    """One sample of a structured output: every tensor in it loses its batch axis, the structure stays.

    Tensors without axes, such as a loss, stay too.
    """
    if isinstance(output, Tensor):
        return output[sample] if output.ndim else output
    if _is_record(output):
        own = {each.name: getattr(output, each.name) for each in fields(output) if each.init}
        return replace(output, **{name: sample_of(value, sample) for name, value in own.items()})
    if isinstance(output, Mapping):
        return {key: sample_of(value, sample) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(sample_of(value, sample) for value in output))
    if isinstance(output, tuple | list):
        return type(output)(sample_of(value, sample) for value in output)
    return output


def _is_record(output: Any) -> bool:
    return is_dataclass(output) and not isinstance(output, type)


def class_values(output: Any, asked: str) -> Float[Tensor, "classes"]:
    """One sample's value for each class; a single value is one class. `asked` is what wanted them.

    Raises:
        TargetError: several values per class, as in segmentation.
    """
    logits = logits_of(output)
    if logits.ndim > 1 and logits[0].numel() > 1:
        raise TargetError(
            f"{asked} picks a class, but a sample's output has shape {tuple(logits.shape)}: more than one value per "
            "class. Use targets.segmentation, targets.region or targets.step."
        )
    return logits.reshape(-1)


def as_target(target: int | SampleTarget, argument: str) -> SampleTarget:
    """A class index as a callable that gives the class's logit; a callable as it is.

    Raises:
        TargetError: neither; or, when called, an index out of range.
    """
    if callable(target):
        return target
    index = as_integer(target, argument, "a class index or a callable")

    def logit(output: Any) -> Tensor:
        return class_values(output, f"{argument}={index}")[checked(index, output, argument)]

    return named(logit, str(index))


def as_integer(value: Any, argument: str, wanted: str = "a class index") -> int:
    """The integer of any library as an int; a bool is none.

    Raises:
        TargetError: no integer; it says what was wanted.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TargetError(f"{argument} must be {wanted}, but got {value!r}.")


def checked(index: int, output: Any, argument: str) -> int:
    """A class index within the sample's output.

    Raises:
        TargetError: out of range.
    """
    classes = len(class_values(output, f"{argument}={index}"))
    if not 0 <= index < classes:
        raise TargetError(f"{argument} {index} is out of range: the model has {classes} outputs, 0 to {classes - 1}.")
    return index


def named(target: SampleTarget, name: str) -> SampleTarget:
    """The callable under a name that says what it explains; shown as `Explanation.target_names`."""
    target.__name__ = name
    return target


def name_of(target: int | SampleTarget) -> str:
    """A class index or a callable's name."""
    return str(target) if isinstance(target, int) else getattr(target, "__name__", type(target).__name__)
