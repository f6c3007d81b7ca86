"""Operators of torch's dispatcher as calls of ordinary torch functions, which the capture of taps recognises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

OP = "op"
"""The key of a node's `meta` under which loaders put the name of its operation: "Mul" of ONNX, "mul" of torch."""

LINEAR_MAP = "linear_map"
"""The name for `find_function` of the product with a layer's weight, (input features, output features)."""


class Scope(nn.Module):
    """Takes the place of a module of the graph, so that functions called in it are named after it."""

    def forward(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call the function that `find_function` knows by that name."""
        return _function(function)(*arguments, **options)


def replace_by_call(module: fx.GraphModule, node: fx.Node, path: str, name: str, *args: Any, **kwargs: Any) -> fx.Node:
    """Put a call of a function in the place of `node`, named after the module of that path; "" is the whole."""
    with module.graph.inserting_before(node):
        if path:
            try:
                module.get_submodule(path).__class__ = Scope  # an empty shell around its parameters
            except AttributeError:
                module.add_submodule(path, Scope())
            call = module.graph.call_module(path, (name, *args), kwargs)
        else:
            call = module.graph.call_function(_function(name), args, kwargs)
    call.meta = {**node.meta, OP: name}
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    return call


def find_function(name: str) -> Callable[..., Any] | None:
    """The function that takes the arguments of the aten operator "name" or "name.overload"; None where there is none.

    It is one of torch's, or calls one.
    """
    if name in _OWN:
        return _OWN[name]
    # Made from the operators' schemas: names and orders of arguments are the same, unlike in functions written in
    # Python, which serve activations that are no operator of their own, such as softsign.
    homes = (torch._C._nn, torch._C._VariableFunctions, torch._C.TensorBase, F)
    return next((getattr(home, name) for home in homes if hasattr(home, name)), None)


def _function(name: str) -> Callable[..., Any]:
    function = find_function(name)
    assert function is not None, name
    return function


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    axes = weight.ndim - 2
    if transposed:
        backwards = getattr(F, f"conv_transpose{axes}d")
        return backwards(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return getattr(F, f"conv{axes}d")(input, weight, bias, stride, padding, dilation, groups)


def _norm(function: Callable[..., Tensor], order: Sequence[int], outputs: int = 1) -> Callable[..., Any]:
    """A norm with the arguments of its operator: `order` has the place of each of the function's among them.

    Of several outputs, the others are statistics that only a backward pass would use.
    """

    def call(*args: Any) -> Any:
        result = function(*[args[place] for place in order if place < len(args)])
        return result if outputs == 1 else (result, *[None] * (outputs - 1))

    return call


def _batch_norm_without_statistics(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> Any:
    return F.batch_norm(input, None, None, weight, bias, training, momentum, eps), None, None


def _batch_norm_in_evaluation(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Any:
    return F.batch_norm(input, mean, var, weight, bias, False, momentum, eps), None, None


def _softmax(input: Tensor, dim: int, *_: Any) -> Tensor:
    return torch.softmax(input, dim)


def _log_softmax(input: Tensor, dim: int, *_: Any) -> Tensor:
    return torch.log_softmax(input, dim)


def _logsigmoid(input: Tensor) -> Any:
    return F.logsigmoid(input), None


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    """`weight` has the axes of the input."""
    return F.prelu(input, weight.flatten())


def _alias(input: Tensor) -> Tensor:
    return input


def _addmm(input: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if input.ndim == 1 and beta == alpha == 1 and _is_weight(right):
        return F.linear(left, right.t(), input)
    return torch.addmm(input, left, right, beta=beta, alpha=alpha)


def _linear_map(input: Tensor, weight: Tensor) -> Tensor:
    return F.linear(input, weight.t())


def _mm(left: Tensor, right: Tensor) -> Tensor:
    return _linear_map(left, right) if _is_weight(right) else torch.matmul(left, right)


def _is_weight(factor: Tensor) -> bool:
    """Whether it is a layer's weight, transposed."""
    return isinstance(factor._base, nn.Parameter)


def _slice(input: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    index = [slice(None)] * (dim % input.ndim) + [slice(start, end, step)]
    return input[tuple(index)]


def _index(input: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return input[tuple(slice(None) if index is None else index for index in indices)]


def _to(input: Tensor, *args: Any, **options: Any) -> Tensor:
    given = {key: value for key, value in options.items() if key in ("dtype", "device") and value is not None}
    return input.to(*args, **given) if args or given else input


def _max_pool(axes: int) -> Callable[..., Any]:
    def max_pool_with_indices(*args: Any) -> Any:
        return getattr(F, f"max_pool{axes}d")(*args), None

    return max_pool_with_indices


def _resize(mode: str) -> Callable[..., Tensor]:
    def resize(input: Tensor, size: Sequence[int] | None, *args: Any) -> Tensor:
        """`args`: whether corners are aligned, for modes that interpolate, and the factors."""
        aligned = args[0] if len(args) > 1 else None
        antialias = mode.endswith("_aa")
        return F.interpolate(input, size, args[-1], mode.removesuffix("_aa"), aligned, antialias=antialias)

    return resize


def _pad(mode: str) -> Callable[..., Tensor]:
    def pad(input: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
        return F.pad(input, pad, mode, value)

    return pad


def _grid_sample(input: Tensor, grid: Tensor, interpolation: int, padding: int, aligned: bool) -> Tensor:
    modes = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    return F.grid_sample(input, grid, modes[0][interpolation], modes[1][padding], aligned)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
    given = dict(zip(("dropout_p", "is_causal"), args, strict=False))
    return F.scaled_dot_product_attention(query, key, value, **given, **options), None


_OWN: Mapping[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "batch_norm": _norm(F.batch_norm, (0, 3, 4, 1, 2, 5, 6, 7)),
    "instance_norm": _norm(F.instance_norm, (0, 3, 4, 1, 2, 5, 6, 7)),
    "group_norm": _norm(F.group_norm, (0, 1, 2, 3, 4)),
    "layer_norm": _norm(F.layer_norm, (0, 1, 2, 3, 4)),
    "native_batch_norm": _norm(F.batch_norm, (0, 3, 4, 1, 2, 5, 6, 7), 3),
    "_native_batch_norm_legit": _norm(F.batch_norm, (0, 3, 4, 1, 2, 5, 6, 7), 3),
    "_native_batch_norm_legit.no_stats": _batch_norm_without_statistics,
    "_native_batch_norm_legit_no_training": _batch_norm_in_evaluation,
    "native_group_norm": _norm(F.group_norm, (0, 6, 1, 2, 7), 3),
    "native_layer_norm": _norm(F.layer_norm, (0, 1, 2, 3, 4), 3),
    "_fused_rms_norm": _norm(F.rms_norm, (0, 1, 2, 3), 2),
    "addmm": _addmm,
    "mm": _mm,
    LINEAR_MAP: _linear_map,
    "slice": _slice,
    "index": _index,
    "to": _to,
    "_to_copy": _to,
    "_unsafe_view": torch.Tensor.reshape,
    "_unsafe_index": _index,
    "alias": _alias,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "log_sigmoid_forward": _logsigmoid,
    "_prelu_kernel": _prelu,
    "constant_pad_nd": _pad("constant"),
    "_adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "_adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "max_pool2d_with_indices": _max_pool(2),
    "max_pool3d_with_indices": _max_pool(3),
    "grid_sampler": _grid_sample,
    "grid_sampler_2d": _grid_sample,
    "grid_sampler_3d": _grid_sample,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    **{
        f"{operator}{axes}d{aa}.vec": _resize(mode + aa)
        for operator, mode, axes, aa in (
            *(("upsample_nearest", "nearest", axes, "") for axes in (1, 2, 3)),
            *(("_upsample_nearest_exact", "nearest-exact", axes, "") for axes in (1, 2, 3)),
            *(("upsample_linear", "linear", 1, ""), ("upsample_trilinear", "trilinear", 3, "")),
            *(("upsample_bilinear", "bilinear", 2, ""), ("upsample_bicubic", "bicubic", 2, "")),
            *(("_upsample_bilinear", "bilinear", 2, "_aa"), ("_upsample_bicubic", "bicubic", 2, "_aa")),
        )
    },
    **{
        f"{operator}_pad{axes}d": _pad(mode)
        for operator, mode in (("reflection", "reflect"), ("replication", "replicate"))
        for axes in (1, 2, 3)
    },
}
