"""Pixels that are the weighted mean of their neighbours: conjugate gradients with a multigrid preconditioner."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

TOLERANCE = 1e-6
"""The error at which an image and channel counts as solved: its energy norm, as a multigrid cycle estimates it, over
the largest deviation of a kept pixel from the kept pixels' mean. Each pixel's error is about as large or smaller, in
float32 a few times larger: in two dimensions, the energy norm bounds it up to the root of a logarithm."""


class _Level(NamedTuple):
    taken: Float[Tensor, "batch 1 height width"]  # 1 where a pixel is unknown
    degree: Float[Tensor, "1 1 height width"]  # sum of the weights inside the image, the pixel's own included
    inverse: Float[Tensor, "batch 1 height width"]  # of the diagonal


@torch.no_grad()
def harmonic(
    images: Float[Tensor, "batch channel height width"], missing: Bool[Tensor, "batch 1 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """The images with each missing pixel the mean of its neighbours, weighted [1 2 1] by [1 2 1].

    Neighbours outside of the image are left out; at least one pixel of each image is kept. The result of an image does
    not depend on the others. No gradient flows.
    """
    taken = missing.to(images.dtype)
    # Deviations from the mean: a constant stays a constant, and large offsets cost no precision.
    mean = _total(images * (1 - taken)) / _total(1 - taken)
    known = (images - mean) * (1 - taken)
    largest = known.abs().amax((2, 3), keepdim=True)
    known /= torch.where(largest > 0, largest, 1)
    levels = _levels(taken)
    solution = torch.zeros_like(known)
    residual = taken * _neighbours(known)
    direction = torch.zeros_like(known)
    energy = torch.ones_like(mean)
    open_ = torch.ones_like(mean, dtype=torch.bool)
    # Exact arithmetic ends after one step per unknown; the goal is met after about ten.
    for _ in range(missing[0].numel() + 1):
        error = _cycle(levels, residual)
        previous, energy = energy, _total(residual * error)
        # What has converged stands still, so that no image depends on the rest of the batch.
        open_ &= energy > TOLERANCE**2
        if not open_.any():
            break
        direction.mul_(torch.where(open_, energy / previous, 0)).add_(error)
        image = _applied(levels[0], direction)
        step = torch.where(open_, energy / _total(direction * image), 0)
        solution.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
    return torch.where(missing, solution * largest + mean, images)


def _levels(taken: Float[Tensor, "batch 1 height width"]) -> list[_Level]:
    """The same equations on ever coarser grids; a coarse pixel is unknown where the four it stands for are."""
    levels = []
    while True:
        degree = _neighbours(torch.ones_like(taken[:1]))
        levels.append(_Level(taken, degree, taken / (degree - 4)))
        if max(taken.shape[2:]) <= 2:
            return levels
        taken = 1 - F.max_pool2d(1 - taken, 2, ceil_mode=True)


def _cycle(levels: list[_Level], residual: Tensor) -> Tensor:
    """The error behind a residual, nearly: a V-cycle, one Jacobi step before and one after.

    Symmetric, as conjugate gradients ask: `_coarser` and `_finer` are each other's transpose.
    """
    level, *coarse = levels
    error = level.inverse * residual
    if coarse:
        below = _coarser(residual - _applied(level, error)).mul_(coarse[0].taken)
        height, width = residual.shape[2:]
        error.addcmul_(level.taken, _finer(_cycle(coarse, below))[..., :height, :width])
    return error.addcmul_(level.inverse, residual - _applied(level, error))


def _applied(level: _Level, values: Tensor) -> Tensor:
    return (level.degree * values).sub_(_neighbours(values)).mul_(level.taken)


def _neighbours(values: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
    """2 of the direct, 1 of the diagonal neighbours and 4 of the pixel itself, whose 4 in `degree` cancel them."""
    padded = F.pad(values, (1, 1, 1, 1))
    rows = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    return (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1], alpha=2)


def _coarser(
    values: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch channel half_height half_width"]:
    """[1 3 3 1] by [1 3 3 1], over 16, at every second pixel; the border repeated, a missing last one zero."""
    height, width = values.shape[2:]
    padded = F.pad(F.pad(values, (0, width % 2, 0, height % 2)), (1, 1, 1, 1), "replicate")
    rows = (
        (padded[..., 1:-1:2, :] + padded[..., 2::2, :]).mul_(3).add_(padded[..., :-2:2, :]).add_(padded[..., 3::2, :])
    )
    both = (rows[..., 1:-1:2] + rows[..., 2::2]).mul_(3).add_(rows[..., :-2:2]).add_(rows[..., 3::2])
    return both.div_(16)


def _finer(
    values: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch channel twice_height twice_width"]:
    """Linear interpolation to twice the size, pixel centres aligned, the border repeated: `_coarser`'s transpose."""
    padded = F.pad(values, (1, 1, 1, 1), "replicate")
    batch, channels, height, width = values.shape
    # Written straight to their places: interpolate and stack take several times as long.
    columns = values.new_empty(batch, channels, height + 2, width, 2)
    torch.add(padded[..., :-2], padded[..., 1:-1], alpha=3, out=columns[..., 0])
    torch.add(padded[..., 2:], padded[..., 1:-1], alpha=3, out=columns[..., 1])
    wide = columns.flatten(3)
    both = values.new_empty(batch, channels, height, 2, 2 * width)
    torch.add(wide[..., :-2, :], wide[..., 1:-1, :], alpha=3, out=both[..., 0, :])
    torch.add(wide[..., 2:, :], wide[..., 1:-1, :], alpha=3, out=both[..., 1, :])
    return both.flatten(2, 3).div_(16)


def _total(values: Tensor) -> Tensor:
    return values.sum((2, 3), keepdim=True)
