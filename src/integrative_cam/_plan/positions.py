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
