"""Positions followed through a network's functions: tokens, windows, heads and attention.

What a function does to positions is found by doing it to positions: a reshape, a roll or a concatenation is called
again with each entry's position in the entry's place. That is put off until a feature map wants to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from .positions import (
    Layout,
    Positions,
    collapsed,
    halved,
    is_picture,
    product,
    replayed,
    reshaped,
    seed,
    spread,
    unknown,
)

_RESHAPES = (
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unsafe_view"),
)
_MOVES = (
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "adjoint", "rot90", "get"),
    *("expand", "expand_as", "repeat", "tile", "repeat_interleave", "roll", "flip", "unfold", "im2col", "getitem"),
    *("select", "narrow", "index_select", "gather", "take_along_dim", "masked_select", "pixel_shuffle"),
    *("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "pixel_unshuffle", "channel_shuffle"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "pad", "constant_pad_nd"),
)
_PER_TOKEN = ("linear", "lstm", "gru", "rnn_tanh", "rnn_relu")
_PRODUCTS = {"matmul": (0, 1), "rmatmul": (1, 0), "bmm": (0, 1), "mm": (0, 1), "baddbmm": (1, 2), "addmm": (1, 2)}
_IMAGES = (
    *(f"conv{n}d" for n in (1, 2, 3)),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
    *(f"{mode}_pool{n}d" for mode in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *("interpolate", "fold", "col2im", "grid_sample"),
)
_ATTRIBUTE = "_icam_layout"


class Follower:
    """Gives the outputs of torch's functions their layouts, for a batch of so many samples.

    `is_data` says whether a tensor of indices was computed from the network's inputs. `used_data`: some position
    depends on such indices, so that another input would have other positions.
    """

    def __init__(self, batch: int, is_data: Callable[[Tensor], bool]) -> None:
        self.batch = batch
        self.used_data = False
        self._is_data = is_data
        self._regular: dict[tuple[int, ...], Layout] = {}
        self._latest: dict[tuple[int, ...], Layout] = {}

    def layout(self, tensor: Tensor) -> Layout:
        """The tensor's layout; of one that no seen function made, (batch, channel, *space)."""
        return layout_of(tensor) or self.regular(tuple(tensor.shape))

    def regular(self, shape: tuple[int, ...]) -> Layout:
        """The layout (batch, channel, *space) of such a shape, if it can have one."""
        if shape not in self._regular:
            fits = len(shape) > 2 and shape[0] == self.batch
            self._regular[shape] = Layout((lambda: seed(shape, 1)) if fits else unknown, shape, regular=fits)
        return self._regular[shape]

    def follow(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Give what `func`, called `name`, returned its layout, where its arguments have any."""
        outputs = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple | list) else []
        outputs = [each for each in outputs if isinstance(each, Tensor)]
        if not outputs or not any(each.requires_grad for each in outputs):
            return
        given = [(each, layout_of(each)) for each in _tensors(args, kwargs)]
        if all(layout is None for _, layout in given):
            return
        for at, each in enumerate(outputs):
            if each.requires_grad:
                layout = self._made(func, name, args, kwargs, given, each, at if each is not out else None)
                setattr(each, _ATTRIBUTE, layout)
                self._latest[layout.shape] = layout

    def enter(self, tensor: Tensor) -> None:
        """Give an input of the network its layout."""
        if tensor.ndim > 2:
            shape = tuple(tensor.shape)
            setattr(tensor, _ATTRIBUTE, Layout(lambda: seed(shape, 1), shape, regular=True, given=True))

    def _made(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Sequence[tuple[Tensor, Layout | None]],
        out: Tensor,
        at: int | None,
    ) -> Layout:
        shape = tuple(out.shape)
        layouts = [layout for _, layout in given if layout is not None]
        first = layouts[0]
        if name in _RESHAPES:
            return self._derived(first, (shape,), shape, lambda: reshaped(first, shape))
        if name in _MOVES:
            return self._moved(func, name, args, kwargs, given, shape, at)
        if first.given and name in ("layer_norm", *_PER_TOKEN):
            return Layout(lambda: self._embedded(first, shape), shape)
        if name in _PER_TOKEN:
            key = ("token", shape)
            return self._derived(first, key, shape, lambda: spread(collapsed(first.positions), shape), mixes=True)
        if name in _PRODUCTS or name == "scaled_dot_product_attention":
            of = {id(tensor): layout for tensor, layout in given}
            left, right = (of.get(id(args[place])) for place in _PRODUCTS.get(name, (0, 1)))
            if name == "scaled_dot_product_attention":
                right = None
            least = left or right or first
            return self._derived(
                least, ("product", shape, id(left), id(right)), shape, lambda: product(left, right, shape)
            )
        if name == "einsum":
            return self._derived(first, ("einsum", shape), shape, unknown)
        same = [layout for layout in layouts if layout.shape == shape]
        if same:
            return min(same, key=lambda layout: layout.depth)
        if name == "glu":
            return self._derived(first, ("glu", shape), shape, lambda: halved(first, shape))
        regular = len(shape) > 2 and len(shape) == len(first.shape) and shape[0] == self.batch
        if regular and first.regular:
            return self.regular(shape)
        if regular and name in _IMAGES and (first.given or first.positions is None or is_picture(first)):
            return self.regular(shape)
        if name in _IMAGES and shape[0] == first.shape[0] and shape[2:] == first.shape[2:]:
            return self._derived(first, ("image", shape), shape, lambda: spread(collapsed(first.positions, 1), shape))
        return self._derived(first, (name, shape), shape, unknown)

    def _embedded(self, given: Layout, shape: tuple[int, ...]) -> Positions | None:
        """Of an input's feature vectors: its patches, if they were cut before, or else a sequence."""
        cut = collapsed(given.positions) if given.depth else None
        return spread(cut, shape) or (seed(shape, -1) if len(shape) > 2 and shape[0] == self.batch else None)

    def _derived(
        self,
        parent: Layout,
        key: Any,
        shape: tuple[int, ...],
        find: Callable[[], Positions | None],
        mixes: bool = False,
    ) -> Layout:
        """The layout that `find` gives. Where a function's effect is unknown, that of the latest tensor of the shape:
        a Fourier transform there and back, for instance. `mixes`: a parent with positions decides alone.
        """
        if key in parent.known:
            return parent.known[key]
        latest = self._latest.get(shape)

        def found() -> Positions | None:
            own = find()
            if own is not None or latest is None or (mixes and parent.positions is not None):
                return own
            return latest.positions

        parent.known[key] = Layout(found, shape, given=parent.given and not mixes, depth=parent.depth + 1)
        return parent.known[key]

    def _moved(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Sequence[tuple[Tensor, Layout | None]],
        shape: tuple[int, ...],
        at: int | None,
    ) -> Layout:
        layouts = {id(tensor): layout for tensor, layout in given if layout is not None}
        if name in ("cat", "concat", "concatenate") and all(each is None or each.regular for _, each in given):
            axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if axis in (1, 1 - len(shape)):
                return self.regular(shape)
        first = next(iter(layouts.values()))

        def stand_in(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) in layouts:
                    return layouts[id(value)]
                return tuple(value.shape) if value.is_floating_point() else value.detach().cpu()
            return type(value)(map(stand_in, value)) if type(value) in (list, tuple) else value

        replay = stand_in(args), {each: stand_in(value) for each, value in kwargs.items()}
        by_data = any(not tensor.is_floating_point() and self._is_data(tensor) for tensor, _ in given)

        def find() -> Positions | None:
            self.used_data |= by_data
            return replayed(func, name, *replay, at)

        tensors = any(isinstance(each, Tensor) and id(each) not in layouts for each, _ in given)
        key: tuple[Any, ...] = (name, at, shape, repr(_plain(args)), repr(_plain(tuple(kwargs.values()))))
        if tensors or len(layouts) > 1:
            key = (*key, object())
        return self._derived(first, key, shape, find)


def layout_of(tensor: Tensor) -> Layout | None:
    """The layout that a tensor was given."""
    return getattr(tensor, _ATTRIBUTE, None)


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (each for each in value if isinstance(each, Tensor))


def _plain(value: Any) -> Any:
    """`value` without tensors, to compare calls by."""
    if isinstance(value, Tensor):
        return "tensor"
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
