"""Where each entry of a tensor lies on the image's grid, followed through tokens, windows, heads and attention.

What a function does to positions is found by doing it to positions: a reshape, a roll or a concatenation is called
again with each entry's position in the entry's place. That costs little, since positions are the same in all
channels, and is put off until a feature map wants to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

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


@dataclass(frozen=True)
class Positions:
    """`index`, of the tensor's shape: 1 + sample * positions + place, row by row in `grid`; 0 where there is none.

    float64, which every function takes, on the CPU. Of no position are class tokens, registers and padding.
    """

    index: Tensor
    grid: tuple[int, ...]


@dataclass(eq=False)
class Layout:
    """The positions of a tensor's entries, found when asked for; None where they are unknown or mixed.

    `regular`: (batch, channel, *space), row by row. `given`: that of an input, or of one with its axes moved, whose
    channels may be others than they seem. `depth`: functions since the layout was last known outright.
    """

    find: Callable[[], Positions | None]
    shape: tuple[int, ...]
    regular: bool = False
    given: bool = False
    depth: int = 0
    known: dict[Any, Layout] = field(default_factory=dict)
    """Layouts made from this one, by what made them."""

    @cached_property
    def positions(self) -> Positions | None:
        """The positions; None where they are unknown, or mixed as by a mean over the image."""
        with torch.no_grad():
            return self.find()

    @cached_property
    def fold(self) -> Fold | None:
        """What brings a tensor of this layout to (batch, channel, *space); None where nothing does."""
        found = self.positions
        return None if found is None else _fold(found)


@dataclass(frozen=True)
class Fold:
    """Brings a tensor to (batch, channel, *grid): what is at one position of a sample, in a column.

    `rows`, `columns`: the tensor's axes that tell positions apart, and those that do not. `order`: the row of each
    position of each sample.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    order: Tensor
    batch: int
    grid: tuple[int, ...]
    start: int | None
    """Where the first position of each sample stands among its rows, if all follow in order."""

    def __call__(self, values: Tensor) -> Float[Tensor, "batch channel *grid"]:
        """A view where the order allows it, a copy elsewhere."""
        values = values.permute(*self.rows, *self.columns)
        rows = values.shape[: len(self.rows)].numel()
        if self.start is None:
            found = values.reshape(rows, -1)[self.order.to(values.device)]
        else:
            size = len(self.order) // self.batch
            found = values.reshape(self.batch, rows // self.batch, -1)[:, self.start : self.start + size]
        return found.reshape(self.batch, *self.grid, -1).movedim(-1, 1)

    def silence(self, values: Tensor, channel: Int[Tensor, "batch"]) -> None:
        """Set one channel of each sample to zero, in place, at all positions of its grid."""
        moved = values.permute(*self.rows, *self.columns)
        flat = moved.reshape(moved.shape[: len(self.rows)].numel(), -1).clone()
        flat[self.order.to(values.device).reshape(self.batch, -1), channel[:, None]] = 0
        moved.copy_(flat.reshape(moved.shape))

    def rest(self, product: Tensor, mapped: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch"] | None:
        """Per sample the sum of `product` over entries without a position; None where all have one."""
        if product.numel() == mapped.numel() or len(product) % self.batch:
            return None
        return product.reshape(self.batch, -1).sum(1) - mapped.flatten(1).sum(1)


class Follower:
    """Gives the outputs of torch's functions their layouts, for a batch of so many samples."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._regular: dict[tuple[int, ...], Layout] = {}
        self._latest: dict[tuple[int, ...], Layout] = {}

    def layout(self, tensor: Tensor) -> Layout:
        """The tensor's layout; of one that no seen function made, (batch, channel, *space)."""
        return layout_of(tensor) or self.regular(tuple(tensor.shape))

    def regular(self, shape: tuple[int, ...]) -> Layout:
        """The layout (batch, channel, *space) of such a shape, if it can have one."""
        if shape not in self._regular:
            fits = len(shape) > 2 and shape[0] == self.batch
            self._regular[shape] = Layout((lambda: _seed(shape, 1)) if fits else _none, shape, regular=fits)
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
            setattr(tensor, _ATTRIBUTE, Layout(lambda: _seed(shape, 1), shape, regular=True, given=True))

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
            return self._derived(first, (shape,), shape, lambda: _reshaped(first, shape))
        if name in _MOVES:
            return self._moved(func, name, args, kwargs, given, shape, at)
        if first.given and name in ("layer_norm", *_PER_TOKEN):
            return Layout(lambda: self._embedded(first, shape), shape)
        if name in _PER_TOKEN:
            key = ("token", shape)
            return self._derived(first, key, shape, lambda: _spread(_collapsed(first.positions), shape), mixes=True)
        if name in _PRODUCTS or name == "scaled_dot_product_attention":
            of = {id(tensor): layout for tensor, layout in given}
            left, right = (of.get(id(args[place])) for place in _PRODUCTS.get(name, (0, 1)))
            if name == "scaled_dot_product_attention":
                right = None
            least = left or right or first
            return self._derived(
                least, ("product", shape, id(left), id(right)), shape, lambda: _product(left, right, shape)
            )
        if name == "einsum":
            return self._derived(first, ("einsum", shape), shape, _none)
        same = [layout for layout in layouts if layout.shape == shape]
        if same:
            return min(same, key=lambda layout: layout.depth)
        if name == "glu":
            return self._derived(first, ("glu", shape), shape, lambda: _halved(first, shape))
        regular = len(shape) > 2 and len(shape) == len(first.shape) and shape[0] == self.batch
        if regular and first.regular:
            return self.regular(shape)
        if regular and name in _IMAGES and (first.given or first.positions is None or _is_picture(first)):
            return self.regular(shape)
        if name in _IMAGES and shape[0] == first.shape[0] and shape[2:] == first.shape[2:]:
            return self._derived(first, ("image", shape), shape, lambda: _spread(_collapsed(first.positions, 1), shape))
        return self._derived(first, (name, shape), shape, _none)

    def _embedded(self, given: Layout, shape: tuple[int, ...]) -> Positions | None:
        """Of an input's feature vectors: its patches, if they were cut before, or else a sequence."""
        cut = _collapsed(given.positions) if given.depth else None
        return _spread(cut, shape) or (_seed(shape, -1) if len(shape) > 2 and shape[0] == self.batch else None)

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
        tensors = any(isinstance(each, Tensor) and id(each) not in layouts for each, _ in given)
        key: tuple[Any, ...] = (name, at, shape, repr(_plain(args)), repr(_plain(tuple(kwargs.values()))))
        if tensors or len(layouts) > 1:
            key = (*key, object())
        return self._derived(first, key, shape, lambda: _replayed(func, name, *replay, at))


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


def _none() -> Positions | None:
    return None


def _seed(shape: tuple[int, ...], channel: int) -> Positions:
    sizes = list(shape)
    sizes.pop(channel)
    index = torch.arange(1, 1 + torch.Size(sizes).numel(), dtype=torch.float64).reshape(sizes)
    return Positions(index.unsqueeze(channel).expand(shape), tuple(sizes[1:]))


def _is_picture(layout: Layout) -> bool:
    """Whether the axes are the grid's own: padded, cropped, every second position, or patches folded into channels."""
    found = layout.positions
    if found is None or len(found.grid) != found.index.ndim - 2:
        return False
    index = torch.where(found.index > 0, found.index, torch.inf).amin(1)[0] - 1
    inside = index.isfinite().nonzero()
    if not len(inside):
        return False
    low, high = inside.amin(0).tolist(), inside.amax(0).tolist()
    index = index[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))]
    if not index.isfinite().all():
        return False
    for axis, size in reversed(list(enumerate(found.grid))):
        coordinate, index = index % size, index.div(size, rounding_mode="floor")
        line = coordinate.movedim(axis, -1)[(0,) * (index.ndim - 1)]
        shape = [-1 if other == axis else 1 for other in range(index.ndim)]
        if (line.diff() <= 0).any() or (coordinate != line.reshape(shape)).any():
            return False
    return True


def _reshaped(layout: Layout, shape: tuple[int, ...]) -> Positions | None:
    found = layout.positions
    if found is None or found.index.numel() != torch.Size(shape).numel():
        return None
    return Positions(found.index.reshape(shape), found.grid)


def _spread(found: Positions | None, shape: tuple[int, ...]) -> Positions | None:
    if found is None:
        return None
    sizes = (1,) * (len(shape) - found.index.ndim) + tuple(found.index.shape)
    fits = len(sizes) == len(shape) and all(size in (1, wanted) for size, wanted in zip(sizes, shape, strict=True))
    return Positions(found.index.expand(shape), found.grid) if fits else None


def _halved(layout: Layout, shape: tuple[int, ...]) -> Positions | None:
    found = layout.positions
    return None if found is None else Positions(found.index[tuple(map(slice, shape))], found.grid)


def _replayed(
    func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any], at: int | None
) -> Positions | None:
    grids = set()

    def position(value: Any) -> Any:
        if isinstance(value, Layout):
            if value.positions is None:
                raise ValueError("unknown positions")
            grids.add(value.positions.grid)
            return value.positions.index
        return type(value)(map(position, value)) if type(value) in (list, tuple) else value

    places = list(args)
    if name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack"):
        # What no position is known of, such as a class token, has none.
        places[0] = [torch.zeros(each, dtype=torch.float64) if isinstance(each, tuple) else each for each in places[0]]
    if name == "pad":
        places, kwargs = [*places[:2]], {each: value for each, value in kwargs.items() if each == "pad"}
    try:
        moved = func(*map(position, places), **{each: position(value) for each, value in kwargs.items()})
        (grid,) = grids
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # a call that positions cannot stand in says nothing about them
    return Positions(moved if at is None else moved[at], grid)


def _product(left: Layout | None, right: Layout | None, shape: tuple[int, ...]) -> Positions | None:
    """Rows of the product are where the left factor's rows are; or columns where the right factor's are."""
    for factor, axis in ((left, -1), (right, -2)):
        found = None if factor is None else factor.positions
        if found is not None and found.index.ndim > 1 and _constant(found.index, axis) and bool(found.index.any()):
            return _spread(Positions(found.index.narrow(axis, 0, 1), found.grid), shape)
    return None


def _constant(index: Tensor, axis: int) -> bool:
    if index.shape[axis] == 1 or index.stride(axis) == 0:
        return True
    return bool((index == index.narrow(axis, 0, 1)).all())


def _collapsed(found: Positions | None, axis: int = -1) -> Positions | None:
    """Positions after a mixture along one axis: what was at several becomes one position of a coarser grid."""
    if found is None:
        return None
    if _constant(found.index, axis):
        return Positions(found.index.narrow(axis, 0, 1), found.grid)
    index = found.index.movedim(axis, -1).long()
    size = torch.Size(found.grid).numel()
    there = index > 0
    count = there.sum(-1)
    sample = torch.where(there, (index - 1) // size, 0)
    if not torch.equal(sample.sum(-1), sample.amax(-1) * count):
        return None
    place = (index - 1).clamp_min(0) % size
    centres = [
        torch.where(there, axis_of, 0).sum(-1).double() / count.clamp_min(1)
        for axis_of in torch.unravel_index(place, found.grid)
    ]
    coarse = _gridded(sample.amax(-1)[count > 0], [centre[count > 0] for centre in centres])
    if coarse is None:
        return None
    ranks, grid = coarse
    moved = torch.zeros(count.shape, dtype=torch.float64)
    moved[count > 0] = 1 + ranks.double()
    return Positions(moved.unsqueeze(axis), grid)


def _gridded(sample: Tensor, coordinates: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]] | None:
    """Sample * positions + place of each point, and the grid, if every sample's points make up the same full grid."""
    rank = sample.long()
    grid = []
    for along in coordinates:
        lines, place = torch.unique((along * 1024).round(), return_inverse=True)
        grid.append(len(lines))
        rank = rank * len(lines) + place
    samples = int(sample.max()) + 1 if len(sample) else 0
    if not samples or len(rank) != samples * torch.Size(grid).numel() or rank.bincount().amax() > 1:
        return None
    return rank, tuple(grid)


def _fold(found: Positions) -> Fold | None:
    index = found.index
    columns = tuple(axis for axis in range(index.ndim) if _constant(index, axis))
    rows = tuple(axis for axis in range(index.ndim) if axis not in columns)
    for axis in columns:
        index = index.narrow(axis, 0, 1)
    flat = index.reshape(-1).long()
    there = flat.nonzero()[:, 0]
    size = torch.Size(found.grid).numel()
    place = flat[there] - 1
    ranked = _gridded(place // size, torch.unravel_index(place % size, found.grid))
    if ranked is None:
        return None
    rank, grid = ranked
    order = there[rank.argsort()]
    positions = torch.Size(grid).numel()
    if positions < 2:
        return None
    batch = len(order) // positions
    return Fold(rows, columns, order, batch, grid, _start(order.reshape(batch, positions), len(flat)))


def _start(order: Tensor, rows: int) -> int | None:
    batch, positions = order.shape
    if rows % batch:
        return None
    start = int(order[0, 0])
    expected = start + torch.arange(positions) + torch.arange(batch)[:, None] * (rows // batch)
    return start if torch.equal(order, expected) else None
