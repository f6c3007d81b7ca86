"""Which constant a torch function adds to its output (method.md, section 4).

Each entry takes the function's own arguments and gives the constant, shaped to broadcast to the output,
or None where nothing constant is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

_ENTRY = "integrative_cam entry"

ShiftRule = Callable[..., "Tensor | None"]


Side = Literal["left", "right"] | None
"""Which operand of an addition is the constant; None where neither is, or both are, or nothing is added."""


def shift_of(func: str, args: tuple[Any, ...], kwargs: dict[str, Any], side: Side) -> Tensor | None:
    """The constant that this call adds; None where there is none. `side`: from `constant_side`."""
    if func in _ADDITIONS:
        return None if side is None else _ADDITIONS[func](side, *args, **kwargs)
    rule = RULES.get(func)
    return None if rule is None else rule(*args, **kwargs)


def constant_side(func: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Side:
    """Which operand of an addition or subtraction is a constant, the other being none. Looks at the autograd graph."""
    if func not in _ADDITIONS:
        return None
    operands = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)][:2]
    if func == "addmm":  # only what is added to the product can be a constant of its own
        return "left" if _is_constant(operands[0]) else None
    left, right = map(_is_constant, operands)
    return None if left == right else "left" if left else "right"


def entering(images: Tensor) -> Tensor:
    """A copy that stays in the graph of `images` and is never taken for a constant, though it be made of parameters."""
    copy = images.clone()
    assert copy.grad_fn is not None
    copy.grad_fn.metadata[_ENTRY] = True  # type: ignore[index]  # torch declares a method
    return copy


def _channels(value: Tensor, input: Tensor) -> Tensor:
    """(channel,) -> (channel, 1, ...), one 1 for each spatial axis of `input`."""
    return value.reshape(-1, *[1] * (input.ndim - 2))


def _conv(input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:
    # An unbatched input, (channel, *space), is one axis short of the weight.
    return None if bias is None else bias.reshape(-1, *[1] * (weight.ndim - 2))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    return bias


def _addmm(side: Side, input: Tensor, *_: Any, beta: float = 1, **__: Any) -> Tensor:
    return input * beta


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        # Statistics of the batch are no constants: only the affine bias is.
        return None if bias is None else _channels(bias, input)
    slope = (running_var + eps).rsqrt_()
    slope = slope if weight is None else slope * weight
    return _channels(
        -running_mean * slope if bias is None else torch.addcmul(bias, running_mean, slope, value=-1), input
    )


class BatchNorm(NamedTuple):
    """The arguments of a call of batch_norm."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @property
    def is_affine(self) -> bool:
        """In evaluation mode, with running statistics, weight and bias: the same function of each value."""
        return not self.training and all(value is not None for value in self[1:5])


def batch_norm_shifts(calls: Sequence[BatchNorm]) -> list[Tensor | None]:
    """The constants of many calls of batch_norm; of affine ones in four operations for all instead of four each."""
    affine = [call for call in calls if call.is_affine]
    shifts: Iterator[Tensor] = iter(())
    if affine:
        _, means, variances, weights, biases, _, _, eps = map(list, zip(*affine, strict=True))
        slopes = torch._foreach_mul(torch._foreach_rsqrt(torch._foreach_add(variances, eps)), weights)
        shifts = iter(torch._foreach_addcmul(biases, means, slopes, value=-1))
    return [_channels(next(shifts), call.input) if call.is_affine else _batch_norm(*call) for call in calls]


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    return _batch_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    return None if bias is None else _channels(bias, input)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    return bias


def _is_constant(value: Any) -> bool:
    """A number, a parameter or a buffer, or made of these alone: nothing that was computed from the input."""
    if not isinstance(value, Tensor):
        return isinstance(value, int | float)
    if not value.is_floating_point():
        return False
    return not value.requires_grad or isinstance(value, nn.Parameter) or _made_of_parameters(value)


def _made_of_parameters(value: Tensor, nodes: int = 16) -> bool:
    """Whether the autograd graph behind `value` ends within a few nodes, in parameters only."""
    waiting = [value.grad_fn]
    for _ in range(nodes):
        if not waiting:
            return True
        node = waiting.pop()
        if node is None or _ENTRY in node.metadata:  # type: ignore[operator]  # torch declares a method
            return False
        if not isinstance(getattr(node, "variable", None), nn.Parameter | None):
            return False
        waiting.extend(following for following, _ in node.next_functions if following is not None)
    return False


def _constant_of(side: Side, left: Any, right: Any, left_factor: float, right_factor: float) -> Tensor:
    constant, other, factor = (left, right, left_factor) if side == "left" else (right, left, right_factor)
    return torch.as_tensor(constant, dtype=other.dtype, device=other.device) * factor


def _add(side: Side, input: Any, other: Any, *, alpha: float = 1, out: Any = None) -> Tensor:
    return _constant_of(side, input, other, 1, alpha)


def _sub(side: Side, input: Any, other: Any, *, alpha: float = 1, out: Any = None) -> Tensor:
    return _constant_of(side, input, other, 1, -alpha)


def _rsub(side: Side, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _constant_of(side, input, other, -alpha, 1)


_ADDITIONS: Mapping[str, Callable[..., Tensor]] = {"add": _add, "sub": _sub, "rsub": _rsub, "addmm": _addmm}

RULES: Mapping[str, ShiftRule] = {
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv for n in (1, 2, 3)},
    "linear": _linear,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
}
