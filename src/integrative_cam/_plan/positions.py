"""Where the entries of a tensor lie on the network's inputs, and what functions do to that.

A position on an input is a sample and a coordinate along each of the input's axes, from 0 at its first edge to 1 at its
last one. A `Field` holds the positions of a tensor's entries in arrays that broadcast to its shape: a feature map of a
CNN needs one short array per axis. Functions that move entries (reshape, flip, roll, cat, windows) are called again
with a number for each position in the entries' place; functions that mix neighbours (convolution, pooling, patch
merging) give the centre of what they mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

Axis = tuple[int, int]
"""An axis of an input: (input, axis)."""
NOWHERE = -1
"""The sample of an entry that lies nowhere, such as a class token's."""
_NO_PLACE = -9.0
_SAME = 1e-6
"""Coordinates closer than this are one."""


@dataclass(frozen=True, eq=False)
class Field:
    """Positions as arrays with as many axes as the tensor, of size 1 along those on which nothing changes.

    Attributes:
        shape: of all arrays together.
        sample: the sample that an entry comes from, or `NOWHERE`.
        at: the coordinate along each axis of an input; NaN where an entry lies at several places or at none.
        seen: per axis of an input, from where to where it was looked at: a crop sees a part.
    """

    shape: tuple[int, ...]
    sample: Tensor
    at: Mapping[Axis, Tensor]
    seen: Mapping[Axis, tuple[float, float]]

    def rows(self, numbers: Tensor) -> tuple[Tensor, dict[Axis, Tensor]]:
        """Sample and coordinates of some entries, by their numbers in row-major order of `shape`."""
        along = coordinates(numbers, self.shape)

        def look(values: Tensor) -> Tensor:
            return values[tuple(i if size > 1 else 0 for i, size in zip(along, values.shape, strict=True))].expand(
                numbers.shape
            )

        return look(self.sample), {axis: look(values) for axis, values in self.at.items()}


def field_of(sample: Tensor, at: Mapping[Axis, Tensor], seen: Mapping[Axis, tuple[float, float]]) -> Field:
    """The field of arrays that broadcast to one another."""
    sizes = [sample.shape, *(values.shape for values in at.values())]
    return Field(tuple(max(along) for along in zip(*sizes, strict=True)), sample, at, seen)


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of a tensor's entries: those of `field`, or entries of it that were moved.

    Attributes:
        shape: the tensor's.
        field: where its entries lie, or lay before they were moved.
        moved: of the tensor's shape, 1 + the number of the entry of `field`, 0 for an entry that lies nowhere. float64,
            which every function takes. None where nothing moved.
    """

    shape: tuple[int, ...]
    field: Field
    moved: Tensor | None = None

    @cached_property
    def index(self) -> Tensor:
        """As `moved`, also where nothing moved."""
        if self.moved is not None:
            return self.moved
        numbers = torch.arange(1, 1 + prod(self.field.shape), dtype=torch.float64).reshape(self.field.shape)
        return torch.where(self.field.sample == NOWHERE, 0, numbers).expand(self.shape)

    @cached_property
    def own(self) -> Field:
        """The field with the tensor's own axes."""
        if self.moved is None:
            return self.field
        index = self.moved
        for axis in range(index.ndim):
            if is_constant(index, axis):
                index = index.narrow(axis, 0, 1)
        there = index > 0
        sample, at = self.field.rows((index - 1).clamp_min(0).long())
        return Field(
            tuple(index.shape),
            compact(torch.where(there, sample, NOWHERE)),
            {axis: compact(torch.where(there, values, torch.nan), there) for axis, values in at.items()},
            self.field.seen,
        )

    def varies(self) -> bool:
        """Whether there is more than one position within a sample."""
        return any(spread(values) > _SAME for values in self.own.at.values())


def seed(shape: tuple[int, ...], of: int) -> Positions:
    """The positions of input number `of`."""
    ndim = len(shape)

    def along(axis: int, values: Tensor) -> Tensor:
        return values.reshape([-1 if other == axis else 1 for other in range(ndim)])

    field = Field(
        shape,
        along(0, torch.arange(shape[0])),
        {
            (of, axis): along(axis, (torch.arange(shape[axis], dtype=torch.float64) + 0.5) / shape[axis])
            for axis in range(1, ndim)
        },
        {(of, axis): (0.0, 1.0) for axis in range(1, ndim)},
    )
    return Positions(shape, field)


def spread(values: Tensor) -> float:
    """Largest minus smallest coordinate; 0 where there is none."""
    finite = values[values.isfinite()]
    return float(finite.max() - finite.min()) if finite.numel() else 0.0


def coordinates(index: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`torch.unravel_index`, whose check of its arguments imports sympy: a fifth of the time that torch takes."""
    along = []
    for size in reversed(sizes):
        along.append(index % size)
        index = index // size
    return tuple(reversed(along))


def is_constant(index: Tensor, axis: int) -> bool:
    """Whether nothing changes along an axis."""
    if index.shape[axis] == 1 or index.stride(axis) == 0 or not index.numel():
        return index.shape[axis] > 0
    return bool((index == index.narrow(axis, 0, 1)).all())


def compact(values: Tensor, there: Tensor | None = None) -> Tensor:
    """Size 1 along every axis on which all values agree; those that are not `there` agree with any."""
    if not values.is_floating_point():
        for axis in range(values.ndim):
            if is_constant(values, axis):
                values = values.narrow(axis, 0, 1)
        return values
    values = values.nan_to_num(_NO_PLACE)
    if there is not None:
        values = torch.where(there, values, torch.nan)
    for axis in range(values.ndim):
        if values.shape[axis] < 2:
            continue
        if values.stride(axis) == 0:
            values = values.narrow(axis, 0, 1)
            continue
        known = values.isfinite()
        high = torch.where(known, values, -torch.inf).amax(axis, keepdim=True)
        low = torch.where(known, values, torch.inf).amin(axis, keepdim=True)
        if not ((high - low) > _SAME).any():
            values = torch.where(high.isfinite(), high, torch.nan)
    return torch.where(values == _NO_PLACE, torch.nan, values)


def reshaped(positions: Positions, shape: tuple[int, ...]) -> Positions | None:
    """After a reshape."""
    if prod(positions.shape) != prod(shape):
        return None
    return Positions(shape, positions.field, positions.index.reshape(shape))


def spread_to(field: Field | None, shape: tuple[int, ...]) -> Positions | None:
    """A field's positions for a tensor that it broadcasts to; None where it does not."""
    if field is None:
        return None
    missing = len(shape) - len(field.shape)
    sizes = (1,) * missing + field.shape
    if missing < 0 or not all(size in (1, wanted) for size, wanted in zip(sizes, shape, strict=True)):
        return None
    if missing:
        field = Field(
            sizes,
            field.sample[(None,) * missing],
            {axis: values[(None,) * missing] for axis, values in field.at.items()},
            field.seen,
        )
    return Positions(shape, field)


def joined(fields: Sequence[Field]) -> tuple[Field, list[int]]:
    """One field with the entries of several, in a row, and the number of each one's first entry."""
    if all(field is fields[0] for field in fields):
        return fields[0], [0] * len(fields)
    starts, start = [], 0
    for field in fields:
        starts.append(start)
        start += prod(field.shape)
    parts = [field.rows(torch.arange(prod(field.shape))) for field in fields]
    axes = dict.fromkeys(axis for field in fields for axis in field.at)
    blank = [torch.full((prod(field.shape),), torch.nan, dtype=torch.float64) for field in fields]
    return (
        Field(
            (start,),
            torch.cat([sample for sample, _ in parts]),
            {
                axis: torch.cat([at.get(axis, none) for (_, at), none in zip(parts, blank, strict=True)])
                for axis in axes
            },
            _seen_by_any(fields),
        ),
        starts,
    )


def _seen_by_any(fields: Iterable[Field]) -> dict[Axis, tuple[float, float]]:
    seen: dict[Axis, tuple[float, float]] = {}
    for field in fields:
        for axis, (low, high) in field.seen.items():
            least, most = seen.get(axis, (low, high))
            seen[axis] = min(low, least), max(high, most)
    return seen


def replayed(
    call: Callable[[Callable[[int], Tensor]], Any], sources: Sequence[Positions], at: int | None, drops: bool
) -> Positions | None:
    """After a function that moves entries: `call` is given the positions of each source by its number, and calls it.

    `at` picks one of several results; `drops`: entries can get lost, as by a crop.
    """
    field, starts = joined([positions.field for positions in sources])

    def numbers(source: int) -> Tensor:
        index = sources[source].index
        return index if starts[source] == 0 else torch.where(index > 0, index + starts[source], 0)

    try:
        moved = call(numbers)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return None  # a call that positions cannot stand in says nothing about them
    moved = moved if at is None else moved[at]
    if not moved.numel():
        return None
    positions = Positions(tuple(moved.shape), field, moved)
    return _cropped(positions) if drops else positions


def _cropped(positions: Positions) -> Positions:
    """With `seen` reduced to what is left after entries were dropped."""
    own, before = positions.own, positions.field
    seen = dict(before.seen)
    for axis, values in own.at.items():
        all_values = before.at[axis]
        old, new = _range(all_values), _range(values)
        if old is None or new is None or axis not in seen:
            continue
        half = spacing(all_values) / 2
        low, high = seen[axis]
        seen[axis] = (
            max(low, new[0] - half) if new[0] > old[0] + _SAME else low,
            min(high, new[1] + half) if new[1] < old[1] - _SAME else high,
        )
    return replace(positions, field=replace(before, seen=seen))


def _range(values: Tensor) -> tuple[float, float] | None:
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if finite.numel() else None


def spacing(values: Tensor) -> float:
    """The usual distance of neighbouring coordinates; 0 where there is only one."""
    lines = distinct(values)
    return float(lines.diff().median()) if len(lines) > 1 else 0.0


def distinct(values: Tensor) -> Tensor:
    """The coordinates that occur, in ascending order."""
    finite = values[values.isfinite()]
    lines: Tensor = torch.unique((finite / _SAME).round())
    return lines * _SAME


def collapsed(positions: Positions, axis: int) -> tuple[Positions, frozenset[Axis]] | None:
    """Positions after a mixture along one axis, of size 1 there, and the inputs' axes that the mixture took whole.

    What was at several positions lies at their centre, if they are neighbours; those far apart have none. None where
    samples are mixed.
    """
    field = positions.own
    axis %= len(field.shape)
    mixed = _mixed_sample(field.sample, axis)
    if mixed is None:
        return None
    at, whole = {}, set()
    for key, values in field.at.items():
        if values.shape[axis] == 1:
            at[key] = values
            continue
        at[key], took_all = _centre(values, axis)
        if took_all:
            whole.add(key)
    shape = tuple(1 if other == axis else size for other, size in enumerate(positions.shape))
    return Positions(shape, field_of(mixed, at, field.seen)), frozenset(whole)


def _mixed_sample(sample: Tensor, axis: int) -> Tensor | None:
    if sample.shape[axis] == 1:
        return sample
    high = sample.amax(axis, keepdim=True)
    low = torch.where(sample == NOWHERE, high, sample).amin(axis, keepdim=True)
    return high if torch.equal(low, high) else None


def _centre(values: Tensor, axis: int) -> tuple[Tensor, bool]:
    """The centres along an axis, and whether all coordinates that there are were mixed."""
    lines = distinct(values)
    ordered = values.movedim(axis, -1).sort(-1).values  # NaN last
    known = ordered.isfinite()
    count = known.sum(-1)
    steps = ordered.diff(dim=-1)
    different = 1 + (steps > _SAME).sum(-1)
    low = ordered[..., 0]
    high = ordered.gather(-1, (count - 1).clamp_min(0).unsqueeze(-1))[..., 0]
    centre = torch.where(count > 0, (low + high) / 2, torch.nan)
    between = torch.bucketize(high + _SAME, lines) - torch.bucketize(low - _SAME, lines)
    # Two thirds of the lines in between: patches and windows are whole, flipped copies and far views are not.
    centre = torch.where(different * 3 >= between * 2, centre, torch.nan)
    # What saw about all of a view lies nowhere on it: views of an image that differ do not tell such means apart.
    centre = torch.where((different > 2) & (different * 4 >= len(lines) * 3), 0.5, centre)
    return centre.unsqueeze(axis), len(lines) > 1 and bool(((different == len(lines)) | (count == 0)).all())


def merged(left: Positions, right: Positions, shape: tuple[int, ...], exact: bool = False) -> Positions | None:
    """After a function of two tensors, entry by entry. Where they lie at different places, their sum lies at none.

    A tensor that is the same everywhere, such as a gate or a mean over the image, leaves the other's positions. Without
    `exact`, places next to each other are the same.
    """
    ours, theirs = spread_to(left.own, shape), spread_to(right.own, shape)
    if ours is None or theirs is None:
        return ours or theirs
    a, b = ours.field, theirs.field
    sample = _agreed_sample(a.sample, b.sample)
    if sample is None:
        return None
    at = {}
    for axis in dict.fromkeys((*a.at, *b.at)):
        if axis not in a.at or axis not in b.at:
            at[axis] = a.at[axis] if axis in a.at else b.at[axis]
        else:
            at[axis] = _agreed(a.at[axis], b.at[axis], exact)
    return Positions(shape, field_of(sample, at, _seen_by_any((a, b))))


def _agreed_sample(a: Tensor, b: Tensor) -> Tensor | None:
    if a.shape == b.shape and torch.equal(a, b):
        return a
    shape = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]
    a, b = a.expand(shape), b.expand(shape)
    if ((a != b) & (a != NOWHERE) & (b != NOWHERE)).any():
        return None
    return compact(torch.maximum(a, b))


def _agreed(a: Tensor, b: Tensor, exact: bool) -> Tensor:
    if a.shape == b.shape and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)):
        return a
    if prod(b.shape[1:]) == 1 < prod(a.shape[1:]) or b.numel() == 1 < a.numel():
        return a
    if prod(a.shape[1:]) == 1 < prod(b.shape[1:]) or a.numel() == 1 < b.numel():
        return b
    step = max(spacing(a), spacing(b))
    shape = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]
    left, right = a.expand(shape), b.expand(shape)
    near = (left - right).abs() <= (0 if exact else step) + _SAME
    if not step and (near.all() or not exact):  # frames that are added
        return compact((left + right) / 2)
    if not bool((near | left.isnan() | right.isnan()).all()):
        return torch.full_like(a[(slice(0, 1),) * a.ndim], torch.nan)
    agreed = torch.where(left.isnan(), right, left)
    return a if agreed.shape == a.shape and not a.isnan().any() else compact(agreed)


def resampled(values: Tensor, axis: int, source: Tensor) -> Tensor:
    """Coordinates read off at fractional places `source` along an axis; beyond its ends the line goes on."""
    if values.shape[axis] == 1:
        return values
    line = extrapolated(values.movedim(axis, -1))
    before = source.floor().clamp(0, line.shape[-1] - 2).long()
    part = source - before
    low, high = line[..., before], line[..., before + 1]
    step = high - low
    jump = step.abs() > 1.5 * torch.nan_to_num(line.diff(dim=-1).abs().median(-1, keepdim=True).values) + _SAME
    part = torch.where(jump & (part > 0) & (part < 1), part.round(), part)
    return (low + part * step).movedim(-1, axis)


def _evened(values: Tensor, axis: int, before: Tensor) -> Tensor:
    """An even grid over the whole input in place of one that is at most half of the earlier positions' distance off.

    A 3x3 convolution of stride 2 looks at places 0, 2, 4, and its outputs stand for (0, 1), (2, 3), (4, 5).
    """
    size = values.shape[axis]
    if size < 2 or values.numel() != size or before.numel() != before.shape[axis]:
        return values
    even = (torch.arange(size, dtype=values.dtype) + 0.5) / size
    line, slack = values.flatten(), spacing(before) / 2 + _SAME
    for grid in (even, even.flip(0)):
        if bool(((line - grid).abs() <= slack).all()):
            return grid.reshape(values.shape)
    return values


def extrapolated(line: Tensor) -> Tensor:
    """With the NaN before the first and after the last known value of each line, (..., place), filled in."""
    known = line.isfinite()
    if bool(known.all()) or not bool(known.any()):
        return line
    place = torch.arange(line.shape[-1]).expand(line.shape)
    first = torch.where(known, place, line.shape[-1]).amin(-1, keepdim=True).clamp_max(line.shape[-1] - 1)
    last = torch.where(known, place, -1).amax(-1, keepdim=True).clamp_min(0)

    def value(at: Tensor) -> Tensor:
        return line.gather(-1, at.clamp(0, line.shape[-1] - 1))

    start = (value(first + 1) - value(first)).nan_to_num(0)
    end = (value(last) - value(last - 1)).nan_to_num(0)
    line = torch.where(place < first, value(first) + (place - first) * start, line)
    return torch.where(place > last, value(last) + (place - last) * end, line)


def windowed(
    positions: Positions, sources: Sequence[Tensor | None], out: tuple[int, ...], groups: int
) -> tuple[Positions | None, frozenset[Axis]]:
    """After a convolution or pooling of (batch, channel, *space), or (channel, *space), to shape `out`.

    Output place i along an axis of the space looks at place source[i]; a source of None leaves the axis as it is.
    Channels are mixed within `groups`; axes of an input that were mixed whole are returned too.
    """
    first = len(out) - len(sources)  # of the axes of the space
    channel = first - 1
    field, whole = positions.own, frozenset[Axis]()
    if field.shape[channel] > 1 and groups:
        mixed = collapsed(positions, channel)
        if 1 < groups < positions.shape[channel] or (groups > 1 and mixed is None):
            # Samples, frames or views side by side in the channels, each with kernels of its own.
            split = (*positions.shape[:channel], groups, positions.shape[channel] // groups, *positions.shape[first:])
            grouped = reshaped(positions, split)
            mixed = None if grouped is None else collapsed(grouped, channel + 1)
            mixed = None if mixed is None else (_without_axis(mixed[0], channel + 1), mixed[1])
        if mixed is None:
            return None, whole
        field, whole = mixed[0].field, mixed[1]
    elif all(source is None for source in sources) and out == positions.shape:
        return positions, whole
    sample = field.sample
    for axis in range(first, len(field.shape)):
        # What a function padded lies where the lines go on to.
        joint = _mixed_sample(sample, axis)
        if joint is None:
            return None, whole
        sample = joint
    at = {}
    for key, values in field.at.items():
        for axis, source in enumerate(sources, first):
            if source is not None:
                values = _evened(resampled(values, axis, source), axis, values)
        at[key] = values

    def of_channels(values: Tensor) -> Tensor:
        # (groups) to (channels): every channel of a group lies where its group does.
        size = values.shape[channel]
        return values if size == 1 else values.repeat_interleave(out[channel] // size, channel)

    new = field_of(of_channels(sample), {key: of_channels(values) for key, values in at.items()}, field.seen)
    return spread_to(new, out), whole


def _without_axis(positions: Positions, axis: int) -> Positions:
    """Without an axis of size 1."""
    field = positions.own
    at = {key: values.squeeze(axis) for key, values in field.at.items()}
    shape = (*positions.shape[:axis], *positions.shape[axis + 1 :])
    return Positions(shape, field_of(field.sample.squeeze(axis), at, field.seen))


def averaged(positions: Positions, call: Callable[[Tensor], Any]) -> Positions | None:
    """After a function that averages entries with weights >= 0: it is called with the coordinates in their place.

    What gets less than half of its weight from known places lies nowhere.
    """
    field = positions.own
    sample = field.sample.double().expand(positions.shape)
    there = (sample != NOWHERE).double()

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        known = there * values.isfinite()
        total = call((values.nan_to_num(0) * known).contiguous())
        weight = call(known.contiguous())
        return torch.where(weight > 0.5, total / weight.clamp_min(_SAME), torch.nan), weight

    try:
        samples, weight = mean(sample)
        at = {axis: mean(values.expand(positions.shape))[0] for axis, values in field.at.items()}
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return None
    whole = samples.round()
    if ((samples - whole).abs() > 1e-3).any():
        return None
    own = torch.where((weight > 0.5) & whole.isfinite(), whole.nan_to_num(0), NOWHERE).long()
    shape = tuple(own.shape)
    return _cropped_to(Positions(shape, Field(shape, compact(own), {a: compact(v) for a, v in at.items()}, field.seen)))


def _cropped_to(positions: Positions) -> Positions:
    """With `seen` reduced to what the entries lie on, for a region or a warped view."""
    seen = dict(positions.field.seen)
    for axis, values in positions.field.at.items():
        found = _range(values)
        if found is not None and spread(values) > _SAME:
            margin = spacing(values)
            seen[axis] = max(seen[axis][0], found[0] - margin), min(seen[axis][1], found[1] + margin)
    return replace(positions, field=replace(positions.field, seen=seen))
