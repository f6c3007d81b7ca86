"""Where each entry of a tensor lies on the image's grid, and what is done to a tensor is done to positions.

Positions are the same in all channels, cost little, and are found when a feature map wants to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


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
    """Brings a tensor to (batch, channel, *grid).

    Attributes:
        rows: the tensor's axes that tell positions and samples apart, samples first where `any_batch`.
        columns: its other axes, which become the channels.
        order: the row of each position, (positions,) within the rows of one sample; (batch, positions) among all rows
            where the samples' rows are interleaved.
        start: the first of `order` where the rows follow one another, so that no copy is needed; else None.
        grid: the spatial shape.
        batch: samples in the tensor it was worked out from.
        any_batch: it serves other batch sizes too: where the samples lie was certain, not a guess from one sample.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    order: Tensor
    start: int | None
    grid: tuple[int, ...]
    batch: int
    per_sample: int
    any_batch: bool

    def __call__(self, values: Tensor) -> Float[Tensor, "batch channel *grid"]:
        """A view where the order allows it, a copy elsewhere."""
        flat = self._by_sample(values)
        if self.start is None:
            mapped = flat[:, self._order_on(values.device)]
        else:
            mapped = flat[:, self.start : self.start + len(self.order)]
        return mapped.reshape(-1, *self.grid, flat.shape[-1]).movedim(-1, 1)

    def serves(self, shape: tuple[int, ...], planned: tuple[int, ...], batch: int) -> bool:
        """Whether it brings a tensor of this shape and batch to the grid, worked out from one of shape `planned`."""
        if batch == self.batch:
            return shape == planned
        if not self.any_batch or len(shape) != len(planned):
            return False
        samples = self.rows[0]
        return all(
            size * self.batch == old * batch if axis == samples else size == old
            for axis, (size, old) in enumerate(zip(shape, planned, strict=True))
        )

    def silence(self, values: Tensor, channel: Int[Tensor, "batch"]) -> None:
        """Set one channel of each sample to zero, in place, at all positions of its grid."""
        moved = values.permute(*self.rows, *self.columns)
        flat = self._by_sample(values).clone()
        sample = torch.arange(len(channel), device=values.device)[:, None] if len(flat) > 1 else 0
        flat[sample, self._order_on(values.device), channel[:, None]] = 0
        moved.copy_(flat.reshape(moved.shape))

    def rest(self, product: Tensor, mapped: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch"] | None:
        """Per sample the sum of `product` over entries without a position; None where all have one."""
        if product.numel() == mapped.numel() or self.order.ndim > 1:
            return None
        return self._by_sample(product).sum((1, 2)) - mapped.flatten(1).sum(1)

    def _by_sample(self, values: Tensor) -> Float[Tensor, "batch row column"]:
        """(1, all rows, column) where the samples' rows are interleaved."""
        values = values.permute(*self.rows, *self.columns)
        columns = values.shape[len(self.rows) :].numel()
        return values.reshape(-1, self.per_sample, columns)

    def _order_on(self, device: torch.device) -> Tensor:
        return self.order.to(device, non_blocking=True)


def unknown() -> Positions | None:
    return None


def seed(shape: tuple[int, ...], channel: int) -> Positions:
    sizes = list(shape)
    sizes.pop(channel)
    index = torch.arange(1, 1 + torch.Size(sizes).numel(), dtype=torch.float64).reshape(sizes)
    return Positions(index.unsqueeze(channel).expand(shape), tuple(sizes[1:]))


def is_picture(layout: Layout) -> bool:
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


def reshaped(layout: Layout, shape: tuple[int, ...]) -> Positions | None:
    found = layout.positions
    if found is None or found.index.numel() != torch.Size(shape).numel():
        return None
    return Positions(found.index.reshape(shape), found.grid)


def spread(found: Positions | None, shape: tuple[int, ...]) -> Positions | None:
    if found is None:
        return None
    sizes = (1,) * (len(shape) - found.index.ndim) + tuple(found.index.shape)
    fits = len(sizes) == len(shape) and all(size in (1, wanted) for size, wanted in zip(sizes, shape, strict=True))
    return Positions(found.index.expand(shape), found.grid) if fits else None


def halved(layout: Layout, shape: tuple[int, ...]) -> Positions | None:
    found = layout.positions
    return None if found is None else Positions(found.index[tuple(map(slice, shape))], found.grid)


def replayed(
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


def product(left: Layout | None, right: Layout | None, shape: tuple[int, ...]) -> Positions | None:
    """Rows of the product are where the left factor's rows are; or columns where the right factor's are."""
    for factor, axis in ((left, -1), (right, -2)):
        found = None if factor is None else factor.positions
        if found is not None and found.index.ndim > 1 and _constant(found.index, axis) and bool(found.index.any()):
            return spread(Positions(found.index.narrow(axis, 0, 1), found.grid), shape)
    return None


def _constant(index: Tensor, axis: int) -> bool:
    if index.shape[axis] == 1 or index.stride(axis) == 0:
        return True
    return bool((index == index.narrow(axis, 0, 1)).all())


def collapsed(found: Positions | None, axis: int = -1) -> Positions | None:
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
        for axis_of in _coordinates(place, found.grid)
    ]
    coarse = _gridded(sample.amax(-1)[count > 0], [centre[count > 0] for centre in centres])
    if coarse is None:
        return None
    ranks, grid = coarse
    moved = torch.zeros(count.shape, dtype=torch.float64)
    moved[count > 0] = 1 + ranks.double()
    return Positions(moved.unsqueeze(axis), grid)


def _coordinates(index: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`torch.unravel_index`, whose check of its arguments imports sympy: a fifth of the time that torch takes."""
    along = []
    for size in reversed(sizes):
        along.append(index % size)
        index = index // size
    return tuple(reversed(along))


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
    columns = [axis for axis in range(index.ndim) if _constant(index, axis)]
    rows = [axis for axis in range(index.ndim) if axis not in columns]
    for axis in columns:
        index = index.narrow(axis, 0, 1)
    flat = index.reshape(-1).long()
    there = flat.nonzero()[:, 0]
    size = torch.Size(found.grid).numel()
    place = flat[there] - 1
    ranked = _gridded(place // size, _coordinates(place % size, found.grid))
    if ranked is None:
        return None
    rank, grid = ranked
    positions = torch.Size(grid).numel()
    if positions < 2:
        return None
    order = there[rank.argsort()].reshape(-1, positions)
    batch = len(order)
    if batch == 1 and found.index.shape[0] == 1 and 0 in columns:
        # Of one sample, a first axis of size 1 is the batch axis, as everywhere in torch.
        columns.remove(0)
        rows.insert(0, 0)
    sizes = [index.shape[axis] for axis in rows]
    coordinates = _coordinates(order, sizes) if batch > 1 else ()
    sample = torch.arange(batch)[:, None].expand(batch, positions)
    for at, along in enumerate(coordinates):
        if sizes[at] == batch and torch.equal(along, sample):
            # An axis of its own tells the samples apart: it comes first.
            rest = [axis for axis in range(len(rows)) if axis != at]
            order = _raveled([coordinates[axis] for axis in rest], [sizes[axis] for axis in rest], order) + sample * (
                len(flat) // batch
            )
            rows = [rows[at], *(rows[axis] for axis in rest)]
            break
    per_sample = len(flat) // batch
    if len(flat) % batch or not torch.equal(order, order[:1] + sample * per_sample):
        return Fold(tuple(rows), tuple(columns), order, None, grid, batch, len(flat), any_batch=False)
    within = order[0]
    start = int(within[0])
    follow = torch.equal(within, start + torch.arange(positions))
    any_batch = batch > 1 or (rows[0] == 0 and sizes[0] == 1)
    return Fold(tuple(rows), tuple(columns), within, start if follow else None, grid, batch, per_sample, any_batch)


def _raveled(coordinates: Sequence[Tensor], sizes: Sequence[int], like: Tensor) -> Tensor:
    """Row-major linear index of coordinates; zeros of the shape of `like` where there are none."""
    index = torch.zeros_like(like)
    for along, size in zip(coordinates, sizes, strict=True):
        index = index * size + along
    return index
