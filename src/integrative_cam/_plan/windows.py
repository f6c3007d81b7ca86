"""Convolutions, pooling and resizing: at which places of its input each place of an output looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .functions import ADAPTIVE_POOLS, CONVOLUTIONS, POOLS, RESIZES, TRANSPOSED_CONVOLUTIONS, FunctionCall


def groups_of(call: FunctionCall) -> int:
    """Within how many groups of channels a function mixes; 1 takes all, 0 none."""
    is_convolution = call.name in CONVOLUTIONS or call.name in TRANSPOSED_CONVOLUTIONS
    return int(call.argument(6, "groups", 1)) if is_convolution else 0


def per_axis(value: Any, count: int, default: int) -> list[int]:
    """An argument that is one number for all axes or one for each."""
    if value is None or value == []:
        return [default] * count
    if isinstance(value, int):
        return [value] * count
    values = [int(number) for number in value]
    return values * count if len(values) == 1 else values


def sources_of(call: FunctionCall, shape: tuple[int, ...], out: tuple[int, ...]) -> list[Tensor | None] | None:
    """Per axis of the space, at which (fractional) places of the input each place of the output looks.

    None for an axis that stays as it is, and for a function that is no window over its input.
    """
    name = call.name
    if name in ADAPTIVE_POOLS or name in RESIZES:
        count = ADAPTIVE_POOLS.get(name, len(out) - 2)
        corners = name in RESIZES and bool(call.argument(4, "align_corners", False))
        return [_stretched(old, new, corners) for old, new in zip(shape[-count:], out[-count:], strict=True)]
    if name in POOLS:
        count, place = POOLS[name], 2 if name.startswith("lp") else 1
        kernel = per_axis(call.argument(place, "kernel_size"), count, 1)
        stride = per_axis(call.argument(place + 1, "stride"), count, 0)
        stride = [step or size for step, size in zip(stride, kernel, strict=True)]
        padding = per_axis(call.argument(3, "padding") if place == 1 else 0, count, 0)
        dilation = per_axis(call.argument(4, "dilation") if name.startswith("max") else 1, count, 1)
    elif name in CONVOLUTIONS or name in TRANSPOSED_CONVOLUTIONS:
        count = CONVOLUTIONS.get(name) or TRANSPOSED_CONVOLUTIONS[name]
        kernel = list(call.argument(1, "weight").shape[-count:])
        stride = per_axis(call.argument(3, "stride"), count, 1)
        dilation = per_axis(call.argument(5 if name in CONVOLUTIONS else 7, "dilation"), count, 1)
        padded = call.argument(4, "padding", 0)
        if padded == "same":
            padded = [(size - 1) * gap // 2 for size, gap in zip(kernel, dilation, strict=True)]
        padding = per_axis(None if padded == "valid" else padded, count, 0)
    else:
        return None
    sizes = zip(shape[-count:], out[-count:], kernel, stride, padding, dilation, strict=True)
    return [_window(name in TRANSPOSED_CONVOLUTIONS, *axis) for axis in sizes]


def _window(
    is_transposed: bool, old: int, new: int, kernel: int, stride: int, padding: int, dilation: int
) -> Tensor | None:
    """The centres of windows; of a transposed convolution, from where each place of the output was written."""
    centre = (kernel - 1) * dilation / 2 - padding
    if stride == 1 and centre == 0 and new == old:
        return None
    places = torch.arange(new, dtype=torch.float64)
    return (places - centre) / stride if is_transposed else centre + stride * places


def _stretched(old: int, new: int, corners: bool) -> Tensor | None:
    if old == new:
        return None
    places = torch.arange(new, dtype=torch.float64)
    if corners and new > 1:
        return places * (old - 1) / (new - 1)
    return (places + 0.5) * old / new - 0.5
