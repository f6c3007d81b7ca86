"""Nonlinearities under every name and in every form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def _half_in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, : x.shape[1] // 2].relu_()
    return x


def _assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


def _assigned_half(x: Tensor) -> Tensor:
    x = x + 0
    half = x.shape[1] // 2
    x[:, :half] = F.relu(x[:, :half])
    return x


class _Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (x > 0)


def _maxout(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 2)).amax(2)


def _gated_halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    return left * torch.sigmoid(right)


KNOWN: dict[str, Callable[[], Activation]] = {
    "relu": lambda: F.relu,
    "nn.ReLU": nn.ReLU,
    "nn.ReLU in place": lambda: nn.ReLU(inplace=True),
    "gelu": lambda: F.gelu,
    "silu": nn.SiLU,
    "elu": lambda: F.elu,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}
UNNAMED: dict[str, Callable[[], Activation]] = {
    "maximum(x, 0)": lambda: lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max(x, 0)": lambda: lambda x: torch.max(x, torch.zeros(())),
    "fmax(x, 0)": lambda: lambda x: torch.fmax(x, torch.zeros_like(x)),
    "where(x > 0, x, 0)": lambda: lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "x * (x > 0)": lambda: lambda x: x * (x > 0),
    "x * (x > 0).float()": lambda: lambda x: (x > 0).float() * x,
    "clamp(min=0)": lambda: lambda x: x.clamp(min=0),
    "clip(0, 6)": lambda: lambda x: torch.clip(x, 0, 6),
    "clamp_(min=0)": lambda: lambda x: x.clone().clamp_(min=0),
    "(x + abs(x)) / 2": lambda: lambda x: (x + x.abs()) / 2,
    "masked_fill": lambda: lambda x: x.masked_fill(x < 0, 0),
    "x[x < 0] = 0": lambda: _assigned,
    "relu_ on half of the channels": lambda: _half_in_place,
    "relu assigned to half of the channels": lambda: _assigned_half,
    "leaky by where": lambda: lambda x: torch.where(x > 0, x, 0.1 * x),
    "leaky by maximum": lambda: lambda x: torch.maximum(x, 0.1 * x),
    "F.threshold": lambda: lambda x: F.threshold(x, 0, 0),
    "own autograd.Function relu": lambda: _Custom.apply,  # type: ignore[no-untyped-call]
    "x * sigmoid(x)": lambda: lambda x: x * torch.sigmoid(x),
    "x * tanh(softplus(x))": lambda: lambda x: x * torch.tanh(F.softplus(x)),
    "gelu by erf": lambda: lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
}
HALVING: dict[str, Callable[[], Activation]] = {
    "maxout": lambda: _maxout,
    "maximum of halves": lambda: lambda x: torch.maximum(*x.chunk(2, 1)),
    "glu": lambda: lambda x: F.glu(x, 1),
    "gated halves": lambda: _gated_halves,
    "max_pool over channels": lambda: (
        lambda x: F.max_pool3d(x[:, None], (2, 1, 1)).squeeze(1) if x.ndim == 4 else _maxout(x)
    ),
}
"""These take twice the channels that they give."""
