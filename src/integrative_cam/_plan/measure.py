"""Where a feature map lies that no known function made: the input gradient of slices of it says where they look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .positions import Axis, Positions, field_of, spread_to

_LEAST_MOVE = 0.3
"""Of the way between two slices on an input that is covered evenly."""
_LOCAL = 0.2
"""Standard deviation of a local response, in widths of the input."""
_UNIFORM = 12**-0.5
"""Standard deviation of a uniform response."""
_AROUND = 0.25
"""Share of a response within 3/4 of its standard deviation, at least; a uniform one has .43, two points have none."""
_CLOSE = 0.06
"""Of the input: as far as a slice may lie off the line through the others."""


def measured(output: Tensor, leaves: Sequence[Tensor], spaces: dict[int, tuple[int, ...]]) -> Positions | None:
    """The positions of (batch, channel, *space) or (batch, length, channel), from three slices along each of its axes.

    The gradient of a slice with random signs is large where the slice looks. Its centre must move from slice to slice,
    and must not be spread over the whole input. None where it does not, or where the axes of an input stay without an
    axis that moves along them although slices are local there (tokens in a row, for one).
    """
    batch = len(leaves[0])
    if output.ndim < 3 or output.shape[0] != batch or not output.requires_grad:
        return None
    axes = list(range(2, output.ndim)) if output.ndim > 3 else [1, 2]
    moves: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    generator = torch.Generator().manual_seed(0)
    of_leaves = [of for of, axes_of in spaces.items() if axes_of]
    for axis in axes:
        size = output.shape[axis]
        if size < 2:
            continue
        for place in _probes(size):
            part = output.select(axis, place)
            signs = torch.randint(2, part.shape, generator=generator).to(part) * 2 - 1
            with torch.enable_grad():
                gradients = torch.autograd.grad(
                    (part * signs).sum(), [leaves[of] for of in of_leaves], retain_graph=True, allow_unused=True
                )
            of, gradient = next(
                ((of, g) for of, g in zip(of_leaves, gradients, strict=True) if g is not None and bool(g.any())),
                (None, None),
            )
            if of is None or gradient is None:
                return None  # no input, or a dead slice
            moves.setdefault(axis, []).append((of, *_centre(gradient, spaces[of])))
    return _fitted(output, moves, spaces)


def _probes(size: int) -> list[int]:
    """Where slices are taken along an axis: near its ends and in the middle."""
    return sorted({size // 8, size // 2, size - 1 - size // 8})


def _centre(gradient: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where the gradient's energy lies along each axis of the space, and its standard deviation.

    The latter is infinite where little lies right around the centre, as of a slice that looks at two places.
    """
    energy = gradient.detach().double().square().cpu()
    centres, widths = [], []
    for axis in axes:
        share = energy.sum([other for other in range(energy.ndim) if other != axis])
        share = share / share.sum()
        along = (torch.arange(len(share), dtype=torch.float64) + 0.5) / len(share)
        centre = (share * along).sum()
        width = (share * (along - centre) ** 2).sum().sqrt()
        near = (along - centre).abs() <= (0.75 * width).clamp_min(1 / len(share))
        centres.append(centre)
        is_one = (share[near].sum() >= _AROUND) | (width >= _LOCAL)
        widths.append(torch.where(is_one, width, torch.inf))
    return torch.stack(centres), torch.stack(widths)


def _fitted(
    output: Tensor, moves: dict[int, list[tuple[int, Tensor, Tensor]]], spaces: dict[int, tuple[int, ...]]
) -> Positions | None:
    used = {of for slices in moves.values() for of, _, _ in slices}
    if len(used) != 1:
        return None
    (of,) = used
    space, shape = spaces[of], output.shape
    at: dict[Axis, Tensor] = {}
    for number, axis_of_input in enumerate(space):
        value = torch.full((1,) * output.ndim, 0.5, dtype=torch.float64)
        is_moved = is_local = False
        for axis, slices in moves.items():
            size, probes = shape[axis], _probes(shape[axis])
            centres = [float(centre[number]) for _, centre, _ in slices]
            widths = [float(width[number]) for _, _, width in slices]
            way = (centres[-1] - centres[0]) / (probes[-1] - probes[0])
            is_still = abs(way) < _LEAST_MOVE / size
            line = torch.arange(size, dtype=torch.float64) - probes[0]
            line = centres[0] + line * (0 if is_still else way)
            off = max(abs(float(line[probe]) - centre) for probe, centre in zip(probes, centres, strict=True))
            if off > _CLOSE or max(widths) >= (_UNIFORM if is_still else _LOCAL) * 1.25:
                return None
            is_local |= min(widths) < _LOCAL
            if is_still:
                continue
            if is_moved:
                return None
            is_moved = True
            middle = sum(centres) / len(centres)
            line = middle + (torch.arange(size, dtype=torch.float64) - sum(probes) / len(probes)) * way
            value = line.reshape([-1 if other == axis else 1 for other in range(output.ndim)])
        if is_local and not is_moved:
            return None
        at[of, axis_of_input] = value
    if all(value.numel() == 1 for value in at.values()):
        return None
    batch = shape[0]
    sample = torch.arange(batch).reshape(-1, *[1] * (output.ndim - 1))
    field = field_of(sample, at, dict.fromkeys(at, (0.0, 1.0)))
    return spread_to(field, tuple(shape))
