"""Positions followed through a network's functions: which of `positions` each torch function asks for."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .positions import (
    Axis,
    Field,
    Positions,
    averaged,
    collapsed,
    merged,
    replayed,
    reshaped,
    seed,
    spread,
    spread_to,
    windowed,
)

_RESHAPES = frozenset(
    ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unsafe_view", "ravel")
)
_MOVES = frozenset(
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
_DROPPING = frozenset(
    (
        *("get", "getitem", "select", "narrow", "index_select", "gather", "take_along_dim", "take", "masked_select"),
        *("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "diagonal", "slice", "index", "pad"),
        *("hsplit", "vsplit", "dsplit", "constant_pad_nd", "unsafe_chunk", "unsafe_split"),
    )
)
_JOINS = frozenset(("cat", "concat", "concatenate"))
_ELEMENTWISE = frozenset(
    (
        *(
            "add",
            "radd",
            "iadd",
            "sub",
            "rsub",
            "isub",
            "mul",
            "rmul",
            "imul",
            "multiply",
            "div",
            "truediv",
            "rtruediv",
        ),
        *("itruediv", "divide", "true_divide", "floor_divide", "subtract", "pow", "rpow", "ipow", "float_power", "neg"),
        *("negative", "abs", "absolute", "exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "sqrt", "rsqrt"),
        *("square", "reciprocal", "sin", "cos", "tan", "sinh", "cosh", "asinh", "atan", "atan2", "erf", "erfc", "sinc"),
        *("sign", "sgn", "round", "floor", "ceil", "trunc", "frac", "fmod", "remainder", "lerp", "addcmul", "addcdiv"),
        *("maximum", "minimum", "fmax", "fmin", "where", "masked_fill", "clamp", "clip", "clamp_min", "clamp_max"),
        *("nan_to_num", "clone", "contiguous", "to", "type", "type_as", "float", "half", "double", "bfloat16", "cpu"),
        *(
            "cuda",
            "detach",
            "alias",
            "requires_grad",
            "softmax",
            "log_softmax",
            "softmin",
            "gumbel_softmax",
            "logaddexp",
        ),
        *("normalize", "batch_norm", "native_batch_norm", "instance_norm", "group_norm", "native_group_norm"),
        *("layer_norm", "native_layer_norm", "rms_norm", "local_response_norm", "renorm", "dropout", "dropout1d"),
        *("dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "native_dropout"),
        *("cumsum", "cumprod", "cummax", "logcumsumexp", "tril", "triu", "fake_quantize_per_tensor_affine"),
        *("fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant", "data", "heaviside", "xlogy", "copy"),
        *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid"),
        *("mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign"),
        *("tanh", "tanhshrink", "threshold", "logit", "special_expit", "fill", "positive", "retain_grad"),
    )
)
_REDUCTIONS = frozenset(
    (
        *("mean", "sum", "nanmean", "nansum", "max", "min", "amax", "amin", "prod", "median", "logsumexp", "norm"),
        *("vector_norm", "linalg_vector_norm", "std", "var", "std_mean", "var_mean", "aminmax", "topk", "quantile"),
    )
)
_PER_TOKEN = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_CONTRACTIONS = frozenset(
    ("linear", "matmul", "rmatmul", "bmm", "mm", "baddbmm", "addmm", "addbmm", "einsum", "tensordot", "mv")
)
_ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))
_CONVOLUTIONS = {f"conv{n}d": n for n in (1, 2, 3)}
_TRANSPOSED = {f"conv_transpose{n}d": n for n in (1, 2, 3)}
_POOLS = {f"{mode}_pool{n}d": n for mode in ("max", "avg", "lp") for n in (1, 2, 3)} | {
    f"max_pool{n}d_with_indices": n for n in (1, 2, 3)
}
_ADAPTIVE = {f"adaptive_{mode}_pool{n}d": n for mode in ("max", "avg") for n in (1, 2, 3)} | {
    f"adaptive_max_pool{n}d_with_indices": n for n in (1, 2, 3)
}
_AVERAGES = frozenset(("grid_sample", "grid_sampler", "roi_align", "fold", "col2im", "affine_grid", "ps_roi_align"))
_MOST_COLOURS = 4
_ATTRIBUTE = "_icam_layout"


@dataclass(eq=False)
class Layout:
    """The positions of a tensor's entries, worked out when asked for; None where they are not known."""

    find: Callable[[], Positions | None]
    shape: tuple[int, ...]
    known: dict[Any, Layout] = field(default_factory=dict)
    """Layouts made from this one, by what made them."""

    @cached_property
    def positions(self) -> Positions | None:
        """The positions, if they are known."""
        with torch.no_grad():
            return self.find()


@dataclass(frozen=True)
class _Call:
    """A call of a torch function: what `Follower` looks at."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[tuple[Tensor, Layout], ...]
    """The tensors among the arguments that have a layout."""

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.kwargs.get(name, self.args[place] if len(self.args) > place else default)

    def layout(self, tensor: Any) -> Layout | None:
        return next((layout for source, layout in self.sources if source is tensor), None)


class Follower:
    """Gives the outputs of torch's functions their layouts, and learns which axis of an input holds its channels.

    `is_data` says whether a tensor was computed from the network's inputs. `used_data`: some position depends on such
    values, so that another input would have other positions.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], is_data: Callable[[Tensor], bool]) -> None:
        self.used_data = False
        self._shapes = shapes
        self._is_data = is_data
        self._channels: set[Axis] = set()
        self._convolved: set[Axis] = set()  # windows slid along these
        self._layers: set[int] = set()  # inputs that a layer with weights saw
        self._space: dict[int, tuple[int, ...]] = {}
        self._layouts: list[Layout] = []
        self._by_node: dict[Any, tuple[GradientEdge, Layout]] = {}

    def enter(self, tensor: Tensor, of: int) -> None:
        """Give an input of the network its layout."""
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            self._layouts.append(Layout(lambda: seed(shape, of), shape))
            setattr(tensor, _ATTRIBUTE, self._layouts[-1])

    def follow_unseen(self, tensor: Tensor) -> None:
        """Give what an unseen function returned the layout of what went into it, if it works entry by entry."""
        node = tensor.grad_fn if layout_of(tensor) is None else None
        for source, _ in () if node is None else node.next_functions:
            entry = self._by_node.get(source)
            if entry is None or entry[1].shape != tuple(tensor.shape):
                continue
            edge, layout = entry
            for axis in range(tensor.ndim):
                if tensor.shape[axis] > 1 and not _is_local(tensor, edge, axis):
                    return
            setattr(tensor, _ATTRIBUTE, layout)
            return

    def finish(self) -> None:
        """After the run, let go of all tensors: the autograd graph would keep itself alive through them."""
        for layout in self._layouts:
            layout.find = _unknown
            layout.known.clear()
        self._by_node.clear()

    @property
    def slid(self) -> frozenset[Axis]:
        """The inputs' axes along which windows slid, so that neighbours are seen together."""
        return frozenset(self._convolved)

    def space(self, of: int, is_final: bool = True) -> tuple[int, ...]:
        """The axes of an input that its map has: all but the batch's and the channels'.

        The channels' is the one that the first layer mixes whole. Where layers mixed none, it is the first axis of
        size 1, if there is one, and before any layer the second axis, as everywhere in torch. The answer stays once it
        was final.
        """
        if of not in self._space:
            shape = self._shapes[of]
            axes = range(1, len(shape))
            channels = {axis for axis in axes if (of, axis) in self._channels}
            if not channels and len(shape) > 2:
                single = (axis for axis in axes if shape[axis] == 1)
                channels = {next(single, self._second(of)) if of in self._layers else 1}
            space = tuple(axis for axis in axes if axis not in channels)
            if not is_final:
                return space
            self._space[of] = space
        return self._space[of]

    def _second(self, of: int) -> int:
        """The second axis as the channels', unless windows slid along it or layers left its many places apart."""
        is_frames = of in self._layers and self._shapes[of][1] > _MOST_COLOURS
        return 0 if (of, 1) in self._convolved or is_frames else 1

    def is_over_channels(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a maximum is one over channels: positions do not change along its axes, but there are several."""
        source = args[0] if args else kwargs.get("input")
        layout = layout_of(source) if isinstance(source, Tensor) else None
        if not isinstance(source, Tensor) or layout is None or source.ndim < 3 or layout.positions is None:
            return False
        if "pool" in name:
            kernel = _per_axis(kwargs.get("kernel_size", args[1] if len(args) > 1 else 1), int(name[-2]), 1)
            axes = tuple(axis for axis, size in enumerate(kernel, source.ndim - len(kernel)) if size > 1)
        else:
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            dims = (dims,) if isinstance(dims, int) else dims
            if not isinstance(dims, tuple | list):
                return False
            axes = tuple(dim % source.ndim for dim in dims)
        field = layout.positions.own
        space = {(of, axis) for of in range(len(self._shapes)) for axis in self.space(of, is_final=False)}
        still = all(values.shape[axis] == 1 for key, values in field.at.items() if key in space for axis in axes)
        return still and any(spread(values) > 0 for key, values in field.at.items() if key in space)

    def follow(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Give what `func`, called `name`, returned its layout, where its arguments have any."""
        sources = tuple(
            (tensor, layout)
            for tensor in _tensors(args, kwargs)
            if (layout := getattr(tensor, _ATTRIBUTE, None)) is not None
        )
        if not sources:
            return
        call = _Call(func, name, args, kwargs, sources)
        if name == "setitem":
            setattr(args[0], _ATTRIBUTE, self._set(call, args[0], _on_cpu(args[1]), args[2]))
            return
        if name == "copy" and args[0]._base is not None and args[0]._base.is_contiguous():
            base, view = args[0]._base, args[0]
            window = view.size(), view.stride(), view.storage_offset() - base.storage_offset()
            setattr(base, _ATTRIBUTE, self._set(call, base, window, args[1]))
        outputs = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple | list) else []
        for at, tensor in enumerate(outputs):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                shape = tuple(tensor.shape)
                is_empty = not tensor.numel()
                layout = (
                    Layout(_unknown, shape) if is_empty else self._made(call, shape, at if tensor is not out else None)
                )
                self._layouts.append(layout)
                setattr(tensor, _ATTRIBUTE, layout)
                if tensor.grad_fn is not None:
                    self._by_node[tensor.grad_fn] = torch.autograd.graph.get_gradient_edge(tensor), layout

    def _made(self, call: _Call, shape: tuple[int, ...], at: int | None) -> Layout:
        name, first = call.name, call.sources[0][1]
        if name in _RESHAPES:
            return self._derived(
                first, shape, shape, lambda: None if first.positions is None else reshaped(first.positions, shape)
            )
        if name in _JOINS and (layout := self._joined(call, shape)) is not None:
            return layout
        if name in _MOVES:
            return self._moved(call, shape, at)
        if name in _CONTRACTIONS:
            return self._contracted(call, shape)
        if name in _ELEMENTWISE or (name == "glu" and len(call.sources) == 1):
            return self._elementwise(call, shape)
        if name in _REDUCTIONS:
            return self._reduced(call, shape)
        if name in _ATTENTION or name in _PER_TOKEN:
            return self._derived(first, (name, shape), shape, lambda: self._mixed(first, -1, shape))
        if (sources := _geometry(call, first.shape, shape)) is not None:
            groups = _groups(call)
            key = (name, shape, groups, repr(sources))
            return self._derived(first, key, shape, lambda: self._windowed(first, sources, shape, groups))
        if name in _AVERAGES and call.args and call.args[0] is call.sources[0][0]:
            return self._averaged(call, shape)
        return Layout(_unknown, shape)

    def _derived(
        self, parent: Layout, key: Any, shape: tuple[int, ...], find: Callable[[], Positions | None]
    ) -> Layout:
        if key not in parent.known:
            parent.known[key] = Layout(find, shape)
        return parent.known[key]

    def _mixed(self, layout: Layout, axis: int, shape: tuple[int, ...]) -> Positions | None:
        """After a mixture of channels along one axis, for a tensor of that shape."""
        if layout.positions is None:
            return None
        mixed = collapsed(layout.positions, axis)
        if mixed is None:
            return None
        self._mixes_channels(mixed[1])
        return spread_to(mixed[0], shape)

    def _mixes_channels(self, axes: frozenset[Axis]) -> None:
        self._channels |= {axis for axis in axes if axis[0] not in self._space}

    def _windowed(
        self, layout: Layout, sources: Sequence[Tensor | None], shape: tuple[int, ...], groups: int
    ) -> Positions | None:
        if layout.positions is None:
            return None
        own = layout.positions.own
        new, whole = windowed(layout.positions, sources, shape, groups)
        if groups:
            self._layers |= {of for of, _ in own.at}
        first = len(shape) - len(sources)
        for key, values in own.at.items():
            if any(size > 1 for size in values.shape[first:]):
                self._convolved.add(key)
        self._mixes_channels(whole)
        return new

    def _elementwise(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        layouts = list(dict.fromkeys(layout for _, layout in call.sources))
        whole = [layout for layout in layouts if layout.shape == shape]
        if call.name == "glu":
            return self._halved(call, layouts[0], shape)
        if len(layouts) == 1 and layouts[0].shape == shape:
            return layouts[0]
        if len(whole) == 1:
            # What is broadcast, such as a gate, has fewer positions.
            return whole[0]
        if len(whole) > 1:
            layouts = whole
        key = ("together", shape, *map(id, layouts[1:]))

        def find() -> Positions | None:
            known = [layout.positions for layout in layouts if layout.positions is not None]
            if not known:
                return None
            start = spread_to(known[0].own, shape)
            return reduce(lambda a, b: None if a is None else merged(a, b, shape), known[1:], start)

        return self._derived(layouts[0], key, shape, find)

    def _halved(self, call: _Call, layout: Layout, shape: tuple[int, ...]) -> Layout:
        dim = call.argument(1, "dim", -1) % len(shape)

        def find() -> Positions | None:
            if layout.positions is None:
                return None
            return replayed(lambda index: index(0).narrow(dim, 0, shape[dim]), [layout.positions], None, False)

        return self._derived(layout, ("glu", dim), shape, find)

    def _reduced(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        source, first = call.sources[0]
        if call.name in ("max", "min") and len(list(_tensors(call.args, call.kwargs))) > 1:
            return self._elementwise(call, shape)
        if len(call.sources) > 1:
            return Layout(_unknown, shape)
        dims = call.argument(2 if call.name in ("norm", "vector_norm", "linalg_vector_norm", "quantile") else 1, "dim")
        dims = dims if call.name != "topk" else call.argument(2, "dim", -1)
        dims = call.kwargs.get("axis", dims)
        ndim = source.ndim
        if isinstance(dims, int) and not isinstance(dims, bool):
            axes: tuple[int, ...] = (dims % ndim,)
        elif isinstance(dims, tuple | list) and dims:
            axes = tuple(dim % ndim for dim in dims)
        else:
            axes = tuple(range(ndim))

        def find() -> Positions | None:
            positions = first.positions
            for axis in axes:
                mixed = None if positions is None else collapsed(positions, axis)
                if mixed is None or positions is None:
                    return None
                positions = spread_to(
                    mixed[0], tuple(1 if other == axis else size for other, size in enumerate(positions.shape))
                )
            if positions is None or positions.shape == shape:
                return positions
            if len(shape) == len(positions.shape):  # topk
                return spread_to(positions.own, shape)
            return reshaped(positions, shape)

        return self._derived(first, (call.name, axes, shape), shape, find)

    def _contracted(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        terms = _terms(call)
        if terms is None:
            return Layout(_unknown, shape)
        operands, result = terms
        layouts = [call.layout(tensor) for tensor, _ in operands]
        key = (call.name, shape, tuple(letters for _, letters in operands), result, *map(id, layouts))
        fixed = [(tensor.detach(), letters) for (tensor, letters), of in zip(operands, layouts, strict=True) if not of]
        varying = [(layout, letters) for layout, (_, letters) in zip(layouts, operands, strict=True) if layout]
        if not varying:
            return Layout(_unknown, shape)

        def find() -> Positions | None:
            options = [self._contract(layout, letters, result, fixed, shape) for layout, letters in varying]
            known = [positions for positions in options if positions is not None]
            return next((positions for positions in known if positions.varies()), known[0] if known else None)

        return self._derived(varying[0][0], key, shape, find)

    def _contract(
        self,
        layout: Layout,
        letters: str,
        result: str,
        fixed: Sequence[tuple[Tensor, str]],
        shape: tuple[int, ...],
    ) -> Positions | None:
        """Where the result lies by one operand: it keeps that one's rows, and mixes what is summed over."""
        positions = layout.positions
        if positions is None or len(letters) != len(positions.shape):
            return None
        self._layers |= {of for of, _ in positions.own.at}
        for axis, letter in enumerate(letters):
            if letter in result:
                continue
            moved = self._permuted(positions, axis, letter, letters, result, fixed)
            if moved is not None:
                positions, letters = moved
                continue
            mixed = collapsed(positions, axis)
            if mixed is None:
                return None
            self._mixes_channels(mixed[1])
            positions = spread_to(mixed[0], tuple(1 if at == axis else n for at, n in enumerate(positions.shape)))
            if positions is None:
                return None
        field, sizes = positions.own, []
        order = [letters.index(letter) for letter in result if letter in letters]
        rest = [axis for axis in range(len(letters)) if axis not in order]

        def arrange(values: Tensor) -> Tensor:
            values = values.permute(*rest, *order)[(0,) * len(rest)]
            for at, letter in enumerate(result):
                if letter not in letters:
                    values = values.unsqueeze(at)
            return values

        if any(field.shape[axis] > 1 for axis in rest):
            return None
        at = {axis: arrange(values) for axis, values in field.at.items()}
        sample = arrange(field.sample)
        sizes = [sample.shape, *(values.shape for values in at.values())]
        own_shape = tuple(max(along) for along in zip(*sizes, strict=True))
        return spread_to(Field(own_shape, sample, at, field.seen), shape)

    def _permuted(
        self,
        positions: Positions,
        axis: int,
        letter: str,
        letters: str,
        result: str,
        fixed: Sequence[tuple[Tensor, str]],
    ) -> tuple[Positions, str] | None:
        """A square matrix that takes each place mostly from one other, as a permutation or the neighbours of a graph.

        Places that vary along `letter` lie along the matrix's other letter then.
        """
        size = positions.shape[axis]
        field = positions.own
        if not any(spread(values) > 0 and values.shape[axis] > 1 for values in field.at.values()):
            return None
        for matrix, names in fixed:
            new = [name for name in names if name in result and name not in letters]
            if letter not in names or len(new) != 1 or matrix.shape[names.index(new[0])] != size:
                continue
            kept = (names.index(letter), names.index(new[0]))
            magnitude = matrix.abs().double().cpu()
            for other in reversed(range(matrix.ndim)):
                if other not in kept:
                    magnitude = magnitude.sum(other)
            magnitude = magnitude if kept[0] < kept[1] else magnitude.T
            peak, source = magnitude.max(0)
            if not bool((peak >= 2 * magnitude.mean(0)).all()):
                return None
            self.used_data |= not torch.equal(source, torch.arange(size))
            moved = replayed(partial(_selected, axis, source), [positions], None, False)
            if moved is None:
                return None
            return moved, letters[:axis] + new[0] + letters[axis + 1 :]
        return None

    def _averaged(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        first = call.sources[0][1]
        rest = [_on_cpu(value) for value in call.args[1:]]
        named = {
            name: _on_cpu(value) for name, value in call.kwargs.items() if name not in ("input", "mode", "padding_mode")
        }
        if call.name == "grid_sample":
            rest = rest[:1]
            named.setdefault("align_corners", call.argument(4, "align_corners", False) or False)

        def find() -> Positions | None:
            self.used_data = True
            positions = first.positions
            if positions is None:
                return None
            if call.name not in ("fold", "col2im"):
                positions = self._mixed(first, 1, positions.shape)
            if positions is None:
                return None
            mean = averaged(positions, lambda values: call.func(values, *rest, **named))
            return None if mean is None else spread_to(mean.own, shape)

        return Layout(find, shape)

    def _joined(self, call: _Call, shape: tuple[int, ...]) -> Layout | None:
        """Feature maps joined along their channels lie where each of them does."""
        tensors = call.argument(0, "tensors")
        layouts = [call.layout(tensor) for tensor in tensors]
        dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
        if not isinstance(dim, int) or any(tensor.ndim != len(shape) for tensor in tensors):
            return None
        dim %= len(shape)
        known = [layout for layout in layouts if layout is not None]
        if dim == 0 or any(
            layout is None and tensor.shape[dim] == 1 for layout, tensor in zip(layouts, tensors, strict=True)
        ):
            return None

        def find() -> Positions | None:
            certain = [self._without_channels(layout.positions, dim) for layout in known if layout.positions]
            if not certain:
                return None
            if any(field.shape[dim] > 1 for field in certain):
                return self._moved(call, shape, None).positions
            pieces = [spread_to(field, shape) for field in certain]
            joint = pieces[0]
            for piece in pieces[1:]:
                joint = None if joint is None or piece is None else merged(joint, piece, shape, exact=True)
            if joint is None or any(values.isnan().any() for values in joint.own.at.values()):
                return self._moved(call, shape, None).positions
            return joint

        key = ("cat", dim, shape, *map(id, layouts[1:]))
        return self._derived(known[0], key, shape, find)

    def _without_channels(self, positions: Positions, dim: int) -> Field:
        """The field, without the coordinates along an input's channels where nothing else changes along an axis."""
        field = positions.own
        changing = {key for key, values in field.at.items() if values.shape[dim] > 1}
        if not changing or any(axis in self.space(of, is_final=False) for of, axis in changing):
            return field
        mixed = collapsed(positions, dim)
        if mixed is None:
            return field
        self._mixes_channels(mixed[1])
        return mixed[0]

    def _set(self, call: _Call, target: Tensor, index: Any, written: Any) -> Layout:
        """The layout of a tensor that entries were written to, at an index or in a window of memory."""
        shape = tuple(target.shape)
        before, value = layout_of(target), call.layout(written)
        if isinstance(written, Tensor) and not written.numel() and before is not None:
            return before
        positions_of_value = None if value is None else value.positions
        positions_before = None if before is None else before.positions
        if (value is not None and positions_of_value is None) or (before is not None and positions_before is None):
            return Layout(_unknown, shape)
        self.used_data |= any(self._is_data(tensor) for tensor in _tensors((call.args[1],), {}))

        def write(numbers: Callable[[int], Tensor]) -> Tensor:
            which = iter(range(2))
            old = torch.zeros(shape, dtype=torch.float64)
            if before is not None:
                old.copy_(numbers(next(which)))
            new = 0.0 if value is None else numbers(next(which))
            if call.name == "copy":
                old.as_strided(*index).copy_(torch.as_tensor(new))
            else:
                old[index] = new
            return old

        sources = [positions for positions in (positions_before, positions_of_value) if positions is not None]
        with torch.no_grad():
            made = replayed(write, sources, None, False)
        if value is None and positions_before is not None:
            made = positions_before  # constants written into a feature map leave it where it lies
        return Layout(lambda: made, shape)

    def _moved(self, call: _Call, shape: tuple[int, ...], at: int | None) -> Layout:
        layouts = {id(tensor): layout for tensor, layout in call.sources}
        order = list(dict.fromkeys(layout for _, layout in call.sources))
        number = {id(layout): place for place, layout in enumerate(order)}
        name = call.name

        def stand_in(value: Any) -> Any:
            """A call's argument without the tensors, which would live on with the layout."""
            if isinstance(value, Tensor):
                if id(value) in layouts:
                    return layouts[id(value)]
                return _Blank(tuple(value.shape)) if value.is_floating_point() else value.detach().cpu()
            return type(value)(map(stand_in, value)) if type(value) in (list, tuple) else value

        args, kwargs = stand_in(call.args), {key: stand_in(value) for key, value in call.kwargs.items()}
        if name == "pad":
            args, kwargs = args[:2], {key: value for key, value in kwargs.items() if key == "pad"}
        by_data = any(not t.is_floating_point() and self._is_data(t) for t in _tensors(call.args, call.kwargs))

        def find() -> Positions | None:
            self.used_data |= by_data
            sources = [layout.positions for layout in order]
            known = [positions for positions in sources if positions is not None]
            if len(known) < len(sources):
                return None

            def run(numbers: Callable[[int], Tensor]) -> Any:
                def put(value: Any) -> Any:
                    if isinstance(value, Layout):
                        return numbers(number[id(value)])
                    if isinstance(value, _Blank):
                        return torch.zeros(value.shape, dtype=torch.float64)
                    return type(value)(map(put, value)) if type(value) in (list, tuple) else value

                return call_function(*map(put, args), **{key: put(value) for key, value in kwargs.items()})

            return replayed(run, known, at, name in _DROPPING)

        call_function = call.func
        tensors = any(
            isinstance(value, Tensor) and id(value) not in layouts for value in _tensors(call.args, call.kwargs)
        )
        key: tuple[Any, ...] = (name, at, shape, repr(_plain(call.args)), repr(_plain(tuple(call.kwargs.values()))))
        if tensors or len(order) > 1:
            key = (*key, object())
        return self._derived(order[0], key, shape, find)


@dataclass(frozen=True)
class _Blank:
    """Stands for a tensor whose entries lie nowhere."""

    shape: tuple[int, ...]


def _is_local(tensor: Tensor, source: GradientEdge, axis: int) -> bool:
    """Whether a slice of a tensor depends on the same slice of its source alone."""
    place = tensor.shape[axis] // 8
    with torch.enable_grad():
        part = tensor.select(axis, place)
        (gradient,) = torch.autograd.grad(part.square().sum() + part.sum(), [source], retain_graph=True)
    lines = gradient.detach().abs().movedim(axis, 0).flatten(1).sum(1)
    return bool(lines[place] > 0) and bool(lines.sum() == lines[place])


def _unknown() -> Positions | None:
    return None


def layout_of(tensor: Tensor) -> Layout | None:
    """The layout that a tensor was given."""
    return getattr(tensor, _ATTRIBUTE, None)


def give(tensor: Tensor, layout: Layout) -> None:
    """Give a tensor a layout that was found in another way."""
    setattr(tensor, _ATTRIBUTE, layout)


def _selected(axis: int, source: Tensor, index: Callable[[int], Tensor]) -> Tensor:
    return index(0).index_select(axis, source)


def _groups(call: _Call) -> int:
    """Within how many groups of channels a function mixes; 1 takes all, 0 none."""
    if call.name in _CONVOLUTIONS:
        return int(call.argument(6, "groups", 1))
    if call.name in _TRANSPOSED:
        return int(call.argument(6, "groups", 1))
    return 0


def _per_axis(value: Any, count: int, default: int) -> list[int]:
    if value is None or value == []:
        return [default] * count
    if isinstance(value, int):
        return [value] * count
    values = [int(each) for each in value]
    return values * count if len(values) == 1 else values


def _geometry(call: _Call, shape: tuple[int, ...], out: tuple[int, ...]) -> list[Tensor | None] | None:
    """Per axis of the space, at which (fractional) places of the input each place of the output looks."""
    name = call.name
    if name in _CONVOLUTIONS or name in _TRANSPOSED:
        count = (_CONVOLUTIONS | _TRANSPOSED)[name]
        weight = call.argument(1, "weight")
        kernel = list(weight.shape[-count:])
        stride = _per_axis(call.argument(3, "stride"), count, 1)
        if name in _CONVOLUTIONS:
            dilation = _per_axis(call.argument(5, "dilation"), count, 1)
            padding = call.argument(4, "padding", 0)
            if padding == "same":
                padding = [(size - 1) * gap // 2 for size, gap in zip(kernel, dilation, strict=True)]
            before = _per_axis(None if padding == "valid" else padding, count, 0)
            return [
                _looked_at(old, new, *sizes)
                for old, new, *sizes in zip(shape[-count:], out[-count:], kernel, stride, before, dilation, strict=True)
            ]
        before = _per_axis(call.argument(4, "padding"), count, 0)
        dilation = _per_axis(call.argument(7, "dilation"), count, 1)
        return [
            _written_from(old, new, *sizes)
            for old, new, *sizes in zip(shape[-count:], out[-count:], kernel, stride, before, dilation, strict=True)
        ]
    if name in _POOLS:
        count = _POOLS[name]
        place = 2 if name.startswith("lp") else 1
        kernel = _per_axis(call.argument(place, "kernel_size"), count, 1)
        stride = _per_axis(call.argument(place + 1, "stride"), count, 0)
        stride = [step or size for step, size in zip(stride, kernel, strict=True)]
        before = _per_axis(call.argument(3, "padding") if place == 1 else 0, count, 0)
        dilation = _per_axis(call.argument(4, "dilation") if name.startswith("max") else 1, count, 1)
        return [
            _looked_at(old, new, *sizes)
            for old, new, *sizes in zip(shape[-count:], out[-count:], kernel, stride, before, dilation, strict=True)
        ]
    if name in _ADAPTIVE:
        count = _ADAPTIVE[name]
    elif name in ("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"):
        count = len(out) - 2
    else:
        return None
    corners = bool(call.argument(4, "align_corners", False)) if name not in _ADAPTIVE else False
    return [_stretched(old, new, corners) for old, new in zip(shape[-count:], out[-count:], strict=True)]


def _looked_at(old: int, new: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor | None:
    centre = (kernel - 1) * dilation / 2 - padding
    if stride == 1 and centre == 0 and new == old:
        return None
    return centre + stride * torch.arange(new, dtype=torch.float64)


def _written_from(old: int, new: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor | None:
    centre = (kernel - 1) * dilation / 2 - padding
    if stride == 1 and centre == 0 and new == old:
        return None
    return (torch.arange(new, dtype=torch.float64) - centre) / stride


def _stretched(old: int, new: int, corners: bool) -> Tensor | None:
    if old == new:
        return None
    places = torch.arange(new, dtype=torch.float64)
    if corners and new > 1:
        return places * (old - 1) / (new - 1)
    return (places + 0.5) * old / new - 0.5


def _terms(call: _Call) -> tuple[list[tuple[Tensor, str]], str] | None:
    """A sum of products as einsum writes it: its operands with a letter per axis, and the letters of the result."""
    name, letters = call.name, string.ascii_letters
    if name == "einsum":
        equation = call.args[0]
        operands = call.args[1:] if len(call.args) > 2 or isinstance(call.args[1], Tensor) else tuple(call.args[1])
        return _parsed(equation, operands) if isinstance(equation, str) else None
    if name == "linear":
        x, weight = call.argument(0, "input"), call.argument(1, "weight")
        rows = letters[: x.ndim - 1]
        if weight.ndim != 2:
            return None
        return [(x, rows + "Y"), (weight, "ZY")], rows + "Z"
    if name in ("baddbmm", "addmm", "addbmm"):
        a, b = call.argument(1, "batch1"), call.argument(2, "batch2")
    elif name == "rmatmul":
        b, a = call.args[:2]
    elif name == "tensordot":
        a, b = call.argument(0, "a"), call.argument(1, "b")
        dims = call.argument(2, "dims", 2)
        if isinstance(dims, int):
            dims = list(range(a.ndim - dims, a.ndim)), list(range(dims))
        if not isinstance(dims, tuple | list) or len(dims) != 2:
            return None
        left, right = (
            [axis % t.ndim for axis in (d if isinstance(d, tuple | list) else [d])]
            for t, d in zip((a, b), dims, strict=True)
        )
        of_a = list(letters[: a.ndim])
        of_b = list(letters[a.ndim : a.ndim + b.ndim])
        for i, j in zip(left, right, strict=True):
            of_b[j] = of_a[i]
        rest = [name for i, name in enumerate(of_a) if i not in left]
        rest += [name for j, name in enumerate(of_b) if j not in right]
        return [(a, "".join(of_a)), (b, "".join(of_b))], "".join(rest)
    else:
        a, b = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or min(a.ndim, b.ndim) < 2:
        return None
    depth = max(a.ndim, b.ndim) - 2
    rows = letters[:depth]
    if any(1 in pair and pair[0] != pair[1] for pair in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False)):
        return _broadcast_terms(a, b, rows)
    return [(a, rows[depth - a.ndim + 2 :] + "XY"), (b, rows[depth - b.ndim + 2 :] + "YZ")], rows + "XZ"


def _broadcast_terms(a: Tensor, b: Tensor, rows: str) -> tuple[list[tuple[Tensor, str]], str]:
    """As `_terms` for a matrix product whose leading axes of size 1 are broadcast: these get letters of their own."""
    spare = iter(string.ascii_lowercase[::-1])
    named = []
    for tensor, end in ((a, "XY"), (b, "YZ")):
        own = rows[len(rows) - tensor.ndim + 2 :]
        named.append(
            "".join(next(spare) if size == 1 else name for name, size in zip(own, tensor.shape, strict=False)) + end
        )
    return [(a, named[0]), (b, named[1])], rows + "XZ"


def _parsed(equation: str, operands: Sequence[Tensor]) -> tuple[list[tuple[Tensor, str]], str] | None:
    equation = equation.replace(" ", "")
    terms, _, result = equation.partition("->")
    names = terms.split(",")
    if len(names) != len(operands) or "->" not in equation:
        return None
    depth = max(
        (t.ndim - len(n.replace("...", "")) for t, n in zip(operands, names, strict=True) if "..." in n), default=0
    )
    spare = "".join(letter for letter in string.ascii_uppercase if letter not in equation)[:depth]
    named = []
    for tensor, name in zip(operands, names, strict=True):
        own = tensor.ndim - len(name.replace("...", ""))
        name = name.replace("...", spare[depth - own :] if own else "")
        if len(name) != tensor.ndim or len(set(name)) != len(name):
            return None
        named.append((tensor, name))
    return named, result.replace("...", spare)


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def _plain(value: Any) -> Any:
    """`value` without tensors, to compare calls by."""
    if isinstance(value, Tensor):
        return "tensor"
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
