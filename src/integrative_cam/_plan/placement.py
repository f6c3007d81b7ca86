"""Where a feature map lies on an input, and what brings its tensor to (batch, channel, *grid)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .positions import NOWHERE, Axis, Field, Positions, coordinates, field_of, spacing

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_LINE = 2.0**-18
"""Coordinates closer than this are one line of a grid."""
_MOST_PARTS = 256
_MOST_CELLS = 2**14
_MOST_DISTANCES = 2**28
_CHUNK = 2**22


@dataclass(frozen=True)
class Placement:
    """The lines of a grid on an input: along each axis of its space, in [0, 1] from its first edge to its last.

    `seen`: from where to where the input was looked at. Beyond the outermost lines, the map goes on up to there; what
    was not looked at, such as what a crop leaves out, gets nothing. `apart`: along which axes each line stands for
    itself, as the frames of a clip do, and nothing lies in between.
    """

    lines: tuple[tuple[float, ...], ...]
    seen: tuple[tuple[float, float], ...]
    apart: tuple[bool, ...]

    @property
    def sizes(self) -> tuple[float, ...]:
        """How many positions a grid of this spacing would have, along each axis of the whole input."""
        return tuple(
            1 / max((line[-1] - line[0]) / (len(line) - 1) if len(line) > 1 else high - low, _LINE)
            for line, (low, high) in zip(self.lines, self.seen, strict=True)
        )


@dataclass(frozen=True)
class OnInput:
    """A feature map's place on one input.

    Attributes:
        axes: of the input, along which the grid's axes run.
        placement: where its lines are; None where they cover the input evenly.
        share: the part of the tensor's paths from this input that passes the grid.
    """

    axes: tuple[int, ...]
    placement: Placement | None
    share: Fraction


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
        owner: the sample of each row, `NOWHERE` for none, where the samples' rows are interleaved.
        empty: the positions of the grid at which there is no entry, of the shape of `order`; None where there are none.
        is_part: other parts of the tensor lie elsewhere, and are feature maps of their own.
        blocks: (axis, length): axes that are taken apart into blocks first, one after the other; `rows` and `columns`
            number the axes that there are then.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    order: Tensor
    start: int | None
    grid: tuple[int, ...]
    batch: int
    per_sample: int
    any_batch: bool
    owner: Tensor | None = None
    empty: Tensor | None = None
    is_part: bool = False
    blocks: tuple[tuple[int, int], ...] = ()

    def __call__(self, values: Tensor) -> Float[Tensor, "batch channel *grid"]:
        """A view where the order allows it, a copy elsewhere."""
        flat = self._by_sample(values)
        if self.start is None:
            mapped = flat[:, self._order_on(values.device)]
        else:
            mapped = flat[:, self.start : self.start + len(self.order)]
        if self.empty is not None:
            mapped = mapped.masked_fill(self.empty.to(values.device, non_blocking=True)[..., None], 0)
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
        moved = self._permuted(values)
        flat = self._by_sample(values).clone()
        sample = torch.arange(len(channel), device=values.device)[:, None] if len(flat) > 1 else 0
        flat[sample, self._order_on(values.device), channel[:, None]] = 0
        moved.copy_(flat.reshape(moved.shape))

    def rest(self, product: Tensor, mapped: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch"] | None:
        """Per sample the sum of `product` over entries without a position; None where all have one."""
        if self.is_part or (product.numel() == mapped.numel() and self.empty is None):
            return None
        sums = self._by_sample(product).sum(-1)
        if self.owner is None:
            total = sums.sum(1)
        else:
            owner = self.owner.to(product.device, non_blocking=True)
            total = sums.new_zeros(self.batch + 1).index_add(0, owner + 1, sums.flatten())[1:]
        return total - mapped.flatten(1).sum(1)

    def _by_sample(self, values: Tensor) -> Float[Tensor, "batch row column"]:
        """(1, all rows, column) where the samples' rows are interleaved."""
        values = self._permuted(values)
        columns = values.shape[len(self.rows) :].numel()
        return values.reshape(-1, self.per_sample, columns)

    def _permuted(self, values: Tensor) -> Tensor:
        for axis, length in self.blocks:
            values = torch.unflatten(values, axis, (-1, length))
        return values.permute(*self.rows, *self.columns)

    def _order_on(self, device: torch.device) -> Tensor:
        return self.order.to(device, non_blocking=True)


@dataclass(frozen=True)
class Grid:
    """One grid in a tensor: what brings the tensor there (None where it is that grid already), and its places."""

    fold: Fold | None
    shape: tuple[int, ...]
    on: dict[int, OnInput]


def grids_of(
    positions: Positions,
    spaces: dict[int, tuple[int, ...]],
    shapes: Sequence[tuple[int, ...]],
    batch: int,
    slid: frozenset[Axis] = frozenset(),
    by_data: bool = False,
) -> list[Grid] | None:
    """The grids that a tensor's entries form on the inputs of those shapes, whose spatial axes are `spaces`.

    Windows slid along the axes `slid`; along others, as a clip's time, each position stands for itself. `by_data`:
    positions follow from the images, so that another sample may have others.

    Several where parts of the tensor lie on the same place, as an image and its flipped copy in one batch, or on
    different inputs. An empty list where there is one position only; None where it is not known where entries lie.
    """
    field = positions.own
    grids: list[Grid] = []
    is_known = True
    for of, axes in spaces.items():
        keys = [(of, axis) for axis in axes]
        if not axes or any(key not in field.at for key in keys):
            continue
        only = _only(field, keys)
        regular = _regular(positions, only, keys, batch)
        pixels = [shapes[of][axis] for axis in axes]
        parts = regular if regular is not None else _parts(positions, only, keys, pixels, batch, by_data)
        if parts is None:
            is_known = False
            continue
        apart = tuple(key not in slid for key in keys)
        for grid, lines in parts:
            if not all(apart) and all(len(line) == 1 for line, own in zip(lines, apart, strict=True) if not own):
                continue  # such as a gate of each frame: it does not tell where in the frame
            place = OnInput(axes, _placement(lines, [field.seen[key] for key in keys], apart), Fraction(1, len(parts)))
            twin = next((other for other in grids if of not in other.on and _same(other.fold, grid)), None)
            if twin is None:
                grids.append(Grid(grid, tuple(map(len, lines)), {of: place}))
            else:
                twin.on[of] = place
    if len(grids) > 1:
        grids = [replace(grid, fold=grid.fold and replace(grid.fold, is_part=True)) for grid in grids]
    return grids if grids or is_known else None


def owners_of(positions: Positions | None, batch: int) -> Tensor | None:
    """The samples of a tensor's entries, broadcasting to it; None where that is the first axis or is not known."""
    if positions is None:
        return None
    sample = positions.own.sample
    if (sample == NOWHERE).any():
        return None
    is_first = prod(sample.shape) == sample.shape[0] == positions.shape[0] == batch
    return None if is_first and torch.equal(sample.flatten(), torch.arange(batch)) else sample


Lines = tuple[tuple[float, ...], ...]


def _same(a: Fold | None, b: Fold | None) -> bool:
    if a is None or b is None:
        return a is b
    return (
        (a.rows, a.blocks) == (b.rows, b.blocks)
        and a.grid == b.grid
        and a.order.shape == b.order.shape
        and torch.equal(a.order, b.order)
    )


def _only(field: Field, keys: Sequence[Axis]) -> Field:
    """A field without the axes of other inputs and of channels."""
    return field_of(field.sample, {key: field.at[key] for key in keys}, field.seen)


def _placement(lines: Lines, seen: Sequence[tuple[float, float]], apart: tuple[bool, ...]) -> Placement | None:
    """None where the lines cover the input evenly, to a quarter of their distance."""
    for line, (low, high), is_apart in zip(lines, seen, apart, strict=True):
        off = 0.01 if is_apart else 0.25
        is_even = len(line) == 1 or all(abs(at * len(line) - place - 0.5) <= off for place, at in enumerate(line))
        if low > _LINE or high < 1 - _LINE or not is_even:
            return Placement(lines, tuple(seen), apart)
    return None


def _regular(
    positions: Positions, field: Field, keys: Sequence[Axis], batch: int
) -> list[tuple[Fold | None, Lines]] | None:
    """The grid of a tensor (batch, channel, *space) whose axes run along those of the input; None for any other."""
    shape = positions.shape
    if len(shape) != 2 + len(keys) or shape[0] != batch or field.shape[1] > 1:
        return None
    if prod(field.sample.shape) != field.sample.shape[0] or not torch.equal(
        field.sample.flatten().expand(batch), torch.arange(batch)
    ):
        return None
    lines = []
    for axis, key in enumerate(keys, 2):
        values = field.at[key]
        if values.numel() != values.shape[axis] or values.shape[axis] != shape[axis]:
            return None
        line = values.flatten()
        if not bool(line.isfinite().all()) or bool((line.diff() <= _LINE).any()):
            return None
        margin = spacing(line) / 2 - _LINE
        if not -margin <= float(line[0]) <= float(line[-1]) <= 1 + margin:
            return None
        lines.append(tuple(line.tolist()))
    return [] if prod(map(len, lines)) < 2 else [(None, tuple(lines))]


def _parts(
    positions: Positions, field: Field, keys: Sequence[Axis], pixels: Sequence[int], batch: int, by_data: bool
) -> list[tuple[Fold | None, Lines]] | None:
    if (block := _block(field)) is not None:
        axis, length, apart = block
        shape = (*positions.shape[:axis], positions.shape[axis] // length, length, *positions.shape[axis + 1 :])
        own = field_of(apart(field.sample), {key: apart(values) for key, values in field.at.items()}, field.seen)
        parts = _parts(Positions(shape, own), own, keys, pixels, batch, by_data)
        first = ((axis, length),)
        return parts and [
            # Blocks behind the axis of the samples are the same in a batch of any size.
            (
                fold and replace(fold, blocks=first + fold.blocks, any_batch=fold.any_batch and axis > fold.rows[0]),
                lines,
            )
            for fold, lines in parts
        ]
    ndim = len(field.shape)
    rows = [axis for axis in range(ndim) if field.shape[axis] > 1]
    columns = [axis for axis in range(ndim) if field.shape[axis] == 1]
    if batch == 1 and positions.shape[0] == 1 and 0 in columns:
        # Of one sample, a first axis of size 1 is the batch axis, as everywhere in torch.
        columns.remove(0)
        rows.insert(0, 0)
    number = torch.arange(prod(field.shape))
    sample, at = field.rows(number)
    values = [at[key] for key in keys]
    there = sample != NOWHERE
    unknown = there & ~torch.stack([value.isfinite() for value in values]).all(0)
    for value in values:
        margin = spacing(value) / 2 - _LINE
        there = there & (value >= -margin) & (value <= 1 + margin)
    if not bool(there.any()):
        return None if bool(unknown.any()) else []
    maker = _Maker(tuple(rows), tuple(columns), field.shape, sample, values, pixels, batch)
    whole = None if by_data else maker.make(there)
    if whole is not None:
        return [] if prod(whole[0].grid) < 2 else [whole]
    copies = maker.copies(there)
    for label in () if by_data else (*map(maker.labels, rows[:1]), copies, *map(maker.labels, rows[1:])):
        if not 1 < int(label.max()) + 1 <= _MOST_PARTS:
            continue
        made = [maker.make(there & (label == part)) for part in range(int(label.max()) + 1)]
        known = [part for part in made if part is not None]
        if len(known) < len(made) or len({lines for _, lines in known if prod(map(len, lines)) == 1}) > 1:
            continue  # single entries at places of their own are no parts of anything
        return [(replace(fold, is_part=True), lines) for fold, lines in known if prod(fold.grid) > 1]
    scattered = None if bool(copies.any()) else maker.scatter(there)
    return None if scattered is None else [scattered]


def _block(field: Field) -> tuple[int, int, Callable[[Tensor], Tensor]] | None:
    """An axis that falls into blocks of a size within which nothing changes, or which are all alike, if there is one.

    The function takes the axis apart, so that one of the two that come of it has size 1.
    """
    for axis, size in enumerate(field.shape):
        lines = [values.double().nan_to_num(NOWHERE).movedim(axis, 0) for values in (field.sample, *field.at.values())]
        lines = [values.reshape(size, -1) for values in lines if values.shape[0] > 1]
        for length in (divisor for divisor in range(2, size // 2 + 1) if size % divisor == 0):
            blocks = [torch.unflatten(values, 0, (-1, length)) for values in lines]
            for still in (0, 1):
                if all(bool((values == values.narrow(still, 0, 1)).all()) for values in blocks):
                    return axis, length, partial(_apart, axis, length, still)
    return None


def _apart(axis: int, length: int, still: int, values: Tensor) -> Tensor:
    """An axis as (block, place in the block), where nothing changes along one of the two."""
    if values.shape[axis] == 1:
        return values.unsqueeze(axis)
    return torch.unflatten(values, axis, (-1, length)).narrow(axis + still, 0, 1)


@dataclass(frozen=True)
class _Maker:
    """Makes folds of a tensor's rows, whose samples and coordinates are known."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    shape: tuple[int, ...]
    sample: Tensor
    values: list[Tensor]
    pixels: Sequence[int]
    batch: int

    def labels(self, axis: int) -> Tensor:
        """Which part of its sample an entry belongs to: its place along an axis, or among those of its sample."""
        along = coordinates(torch.arange(len(self.sample)), self.shape)[axis]
        first = self.sample.reshape(self.shape).movedim(axis, 0).reshape(self.shape[axis], -1).amax(1)
        return _numbered(first)[along]

    def copies(self, there: Tensor) -> Tensor:
        """How many entries before this one lie at the same place of the same sample."""
        places = [self.sample.double(), *((value.nan_to_num(NOWHERE) / _LINE).round() for value in self.values)]
        _, place = torch.unique(torch.stack(places), dim=1, return_inverse=True)
        return torch.where(there, _numbered(torch.where(there, place, -1)), 0)

    def make(self, there: Tensor) -> tuple[Fold, Lines] | None:
        """The fold of some entries, if those of each sample make up the same full grid."""
        chosen = there.nonzero()[:, 0]
        if not len(chosen):
            return None
        ranked = _gridded(self.sample[chosen], [value[chosen] for value in self.values])
        if ranked is None or int(self.sample[chosen].max()) + 1 != self.batch:
            return None
        rank, lines = ranked
        grid = tuple(map(len, lines))
        order = chosen[rank.argsort()].reshape(self.batch, -1)
        return self._fold(order, grid, None), lines

    def _fold(self, order: Tensor, grid: tuple[int, ...], empty: Tensor | None) -> Fold:
        rows, batch, total, positions = list(self.rows), self.batch, len(self.sample), order.shape[1]
        sizes = [self.shape[axis] for axis in rows]
        along = coordinates(order, sizes) if batch > 1 else ()
        sample = torch.arange(batch)[:, None].expand(batch, positions)
        flat_order = order
        for at, place in enumerate(along):
            if sizes[at] == batch and torch.equal(place, sample):
                # An axis of its own tells the samples apart: it comes first.
                rest = [axis for axis in range(len(rows)) if axis != at]
                within = _raveled([along[axis] for axis in rest], [sizes[axis] for axis in rest], order)
                flat_order = within + sample * (total // batch)
                rows = [rows[at], *(rows[axis] for axis in rest)]
                break
        per_sample = total // batch
        columns = self.columns
        if total % batch or not torch.equal(flat_order, flat_order[:1] + sample * per_sample):
            owner = self.sample
            return Fold(tuple(rows), columns, order, None, grid, batch, total, False, owner, empty)
        within = flat_order[0]
        start = int(within[0])
        follow = empty is None and torch.equal(within, start + torch.arange(positions))
        any_batch = batch > 1 or (bool(rows) and rows[0] == 0 and self.shape[0] == 1)
        if empty is not None:
            empty = empty[0]
        return Fold(
            tuple(rows), columns, within, start if follow else None, grid, batch, per_sample, any_batch, None, empty
        )

    def scatter(self, there: Tensor) -> tuple[Fold, Lines] | None:
        """The grid of the pixels over entries that lie on none, as of a turned or warped image, or on another one for
        each sample: each of its positions takes the nearest entry.
        """
        points = []
        for sample in range(self.batch):
            chosen = (there & (self.sample == sample)).nonzero()[:, 0]
            if len(chosen) < 2:
                return None
            points.append((chosen, torch.stack([value[chosen] for value in self.values], 1)))
        everywhere = torch.cat([place for _, place in points])
        extent = everywhere.amax(0) - everywhere.amin(0)
        moving = [axis for axis, size in enumerate(extent.tolist()) if size > _LINE]
        if not moving:
            return None
        shrink = max(1.0, (prod(self.pixels) / _MOST_CELLS) ** (1 / len(self.pixels)))
        sizes = [max(1, round(size / shrink)) if axis in moving else 1 for axis, size in enumerate(self.pixels)]
        lines = [
            (torch.arange(size, dtype=torch.float64) + 0.5) / size if axis in moving else everywhere[:1, axis]
            for axis, size in enumerate(sizes)
        ]
        if prod(sizes) * max(len(places) for _, places in points) > _MOST_DISTANCES:
            return None
        targets = torch.stack([axis.flatten() for axis in torch.meshgrid(*lines, indexing="ij")], 1)
        order, empty = [], []
        for chosen, places in points:
            distances, nearest = [], []
            reach = places.amax(0) - places.amin(0)
            own_step = float((reach[moving].prod() / len(places)) ** (1 / len(moving)))
            for block in torch.split(targets, max(1, _CHUNK // len(places))):
                least, which = torch.cdist(block, places, compute_mode="donot_use_mm_for_euclid_dist").min(1)
                distances.append(least)
                nearest.append(which)
            order.append(chosen[torch.cat(nearest)])
            empty.append(torch.cat(distances) > 0.6 * len(moving) ** 0.5 * own_step)
        fold = self._fold(torch.stack(order), tuple(sizes), torch.stack(empty))
        return fold, tuple(tuple(line.tolist()) for line in lines)


def _numbered(values: Tensor) -> Tensor:
    """0, 1, 2, ... for those of equal value, in their order."""
    order = values.argsort(stable=True)
    ordered, place = values[order], torch.arange(len(values))
    start = torch.where(ordered.diff(prepend=ordered[:1] - 1) != 0, place, 0).cummax(0).values
    return torch.empty_like(place).scatter(0, order, place - start)


def _gridded(sample: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, Lines] | None:
    """Sample * positions + place of each point, and the grid, if every sample's points make up the same full grid."""
    rank = sample.long()
    lines = []
    for along in values:
        steps, place = torch.unique((along / _LINE).round(), return_inverse=True)
        if len(steps) > 1 and float(steps.diff().min()) <= 1:
            return None
        lines.append(tuple((steps * _LINE).tolist()))
        rank = rank * len(steps) + place
    samples = int(sample.max()) + 1
    if len(rank) != samples * prod(map(len, lines)) or rank.bincount().amax() > 1:
        return None
    return rank, tuple(lines)


def _raveled(along: Sequence[Tensor], sizes: Sequence[int], like: Tensor) -> Tensor:
    """Row-major linear index of coordinates; zeros of the shape of `like` where there are none."""
    index = torch.zeros_like(like)
    for place, size in zip(along, sizes, strict=True):
        index = index * size + place
    return index
