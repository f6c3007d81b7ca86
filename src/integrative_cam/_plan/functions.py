"""Torch's functions by what they do: which are layers, which move entries, which mix them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FunctionCall:
    """A call of a torch function."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or name."""
        return self.kwargs.get(name, self.args[place] if len(self.args) > place else default)


_DIMENSIONS = (1, 2, 3)
CONVOLUTIONS: Mapping[str, int] = {f"conv{n}d": n for n in _DIMENSIONS}
"""Functions and the number of their spatial axes."""
TRANSPOSED_CONVOLUTIONS: Mapping[str, int] = {f"conv_transpose{n}d": n for n in _DIMENSIONS}
POOLS: Mapping[str, int] = {f"{mode}_pool{n}d": n for mode in ("max", "avg", "lp") for n in _DIMENSIONS} | {
    f"max_pool{n}d_with_indices": n for n in _DIMENSIONS
}
ADAPTIVE_POOLS: Mapping[str, int] = {f"adaptive_{mode}_pool{n}d": n for mode in ("max", "avg") for n in _DIMENSIONS} | {
    f"adaptive_max_pool{n}d_with_indices": n for n in _DIMENSIONS
}
RESIZES = frozenset(("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"))

ACTIVATIONS = (
    *("celu", "clamp", "clamp_min", "clip", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish"),
    *("hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid"),
    *("silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold"),
)
NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")
KINDS: Mapping[str, str] = {
    **dict.fromkeys(ACTIVATIONS, "activation"),
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS), "conv"),
    **dict.fromkeys(("linear", "addmm", "matmul", "bmm", "baddbmm"), "linear"),
    **dict.fromkeys(NORMS, "norm"),
    **{f"{mode}_pool{n}d": "pool" for mode in ("max", "avg", "adaptive_avg", "adaptive_max") for n in _DIMENSIONS},
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "cat"), "merge"),
}
"""The kind of layer that a function is. Two kinds are worked out from how a function is called: "piece" is a
nonlinearity that others are written with, "gate" an activation that is a factor of another."""

CHOICES = frozenset(("maximum", "minimum", "fmax", "fmin"))
PIECES = frozenset(
    ("abs", "absolute", "square", "exp", "expm1", "erf", "sin", "cos", "pow", "log", "log1p", "sqrt", "atan")
)
GATES = frozenset(("sigmoid", "hardsigmoid", "tanh", "hardtanh", "relu6", "clamp", "erf"))
COMBINATIONS = frozenset(
    (
        *("add", "radd", "iadd", "sub", "rsub", "mul", "rmul", "imul", "div", "truediv", "neg", "clone", "contiguous"),
        *("to", "type_as", "float", "clip", "clamp", "where", "maximum", "minimum", "dropout"),
    )
)
"""What joins the pieces of an activation."""
PRODUCTS = frozenset(("mul", "rmul", "imul"))
FACTORS = PRODUCTS | frozenset(("multiply", "div", "truediv", "itruediv", "divide", "true_divide", "xlogy"))

RESHAPES = frozenset(
    ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unsafe_view", "ravel")
)
MOVES = frozenset(
    (
        *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "adjoint", "rot90", "get"),
        *("mT", "mH", "T", "H", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "roll"),
        *("flip", "fliplr", "flipud", "unfold", "im2col", "getitem", "select", "narrow", "index_select", "gather"),
        *("take_along_dim", "take", "masked_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "diagonal"),
        *("split", "split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind", "unsafe_chunk"),
        *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "pad", "constant_pad_nd", "setitem"),
        *("scatter", "index_put", "index_copy", "select_scatter", "slice_scatter", "masked_scatter", "block_diag"),
        *("index_fill", "where_index", "atleast_3d", "atleast_2d", "as_strided", "slice", "index", "unsafe_split"),
    )
)
DROPPING = frozenset(
    (
        *("get", "getitem", "select", "narrow", "index_select", "gather", "take_along_dim", "take", "masked_select"),
        *("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "diagonal", "slice", "index", "pad"),
        *("hsplit", "vsplit", "dsplit", "constant_pad_nd", "unsafe_chunk", "unsafe_split"),
    )
)
JOINS = frozenset(("cat", "concat", "concatenate"))
ELEMENTWISE = frozenset((*ACTIVATIONS, *NORMS, *CHOICES, *PIECES, *COMBINATIONS)) - {"glu"} | frozenset(
    (
        *("isub", "multiply", "rtruediv", "itruediv", "divide", "true_divide", "floor_divide", "subtract", "rpow"),
        *("ipow", "float_power", "negative", "exp2", "log2", "log10", "rsqrt", "reciprocal", "tan", "sinh", "cosh"),
        *("asinh", "atan2", "erfc", "sinc", "sign", "sgn", "round", "floor", "ceil", "trunc", "frac", "fmod"),
        *("remainder", "lerp", "addcmul", "addcdiv", "masked_fill", "clamp_max", "nan_to_num", "type", "half"),
        *("double", "bfloat16", "cpu", "cuda", "detach", "alias", "requires_grad", "softmax", "log_softmax"),
        *("softmin", "gumbel_softmax", "logaddexp", "normalize", "native_batch_norm", "native_group_norm"),
        *("native_layer_norm", "local_response_norm", "renorm", "dropout1d", "dropout2d", "dropout3d"),
        *("alpha_dropout", "feature_alpha_dropout", "feature_dropout", "native_dropout", "cumsum", "cumprod"),
        *("cummax", "logcumsumexp", "tril", "triu", "fake_quantize_per_tensor_affine", "data", "heaviside", "xlogy"),
        *("fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant", "copy", "logit", "special_expit"),
        *("fill", "positive", "retain_grad"),
    )
)
REDUCTIONS = frozenset(
    (
        *("mean", "sum", "nanmean", "nansum", "max", "min", "amax", "amin", "prod", "median", "logsumexp", "norm"),
        *("vector_norm", "linalg_vector_norm", "std", "var", "std_mean", "var_mean", "aminmax", "topk", "quantile"),
    )
)
PER_TOKEN = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
CONTRACTIONS = frozenset(
    ("linear", "matmul", "rmatmul", "bmm", "mm", "baddbmm", "addmm", "addbmm", "einsum", "tensordot", "mv")
)
ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))
AVERAGES = frozenset(("grid_sample", "grid_sampler", "roi_align", "fold", "col2im", "affine_grid", "ps_roi_align"))
BREAKS = frozenset(("softmax", "log_softmax", "batch_norm", "layer_norm", "group_norm", "instance_norm"))
CONSTANT = frozenset(f"{fill}_like" for fill in ("zeros", "ones", "full", "empty")) | {
    f"new_{fill}" for fill in ("zeros", "ones", "full", "empty", "tensor")
}
RANDOM = frozenset(
    (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli"),
        *("multinomial", "normal", "poisson", "uniform", "random", "exponential", "dropout", "feature_dropout"),
    )
)
