"""Means over images with their uncertainty, paired comparisons, ranks of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._maps.blocks import at_least_float32
from ..errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

_DRAWS = 2**22
"""Numbers drawn at once: bounds the memory for many images."""


@dataclass(frozen=True)
class Interval:
    """A mean over `n` images and the interval that holds it at the level asked for."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Float[Tensor, "image"], resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean and its percentile bootstrap interval: images drawn with replacement `resamples` times.

    The same for the same seed, on every device; the global random state stays as it is.

    >>> bootstrap_mean(torch.tensor([0.25, 0.25, 0.25]))
    Interval(mean=0.25, low=0.25, high=0.25, n=3)

    Args:
        values: one per image.
        resamples: how often the images are drawn again, at least 1.
        level: how often such an interval should hold the true mean, above 0 and below 1.
        seed: of the draws.

    Raises:
        InputError: values are empty, not finite or not one per image; resamples or level is out of range.
    """
    _check("values", values)
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, but got {resamples!r}.")
    if not 0 < level < 1:
        raise InputError(f"level must be above 0 and below 1, such as 0.95, but got {level!r}.")
    numbers = values.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    means = []
    at_once = max(1, _DRAWS // len(numbers))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = torch.randint(len(numbers), (rows, len(numbers)), generator=generator)
        means.append(numbers[drawn].mean(1))
    tail = (1 - level) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(numbers.mean().item(), low, high, len(numbers))


def paired_difference(
    left: Float[Tensor, "image"],
    right: Float[Tensor, "image"],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`bootstrap_mean` of left - right, image by image, so that the images' own difficulty cancels.

    >>> paired_difference(torch.tensor([0.5, 0.75]), torch.tensor([0.25, 0.5]))
    Interval(mean=0.25, low=0.25, high=0.25, n=2)

    Raises:
        InputError: left and right differ in length, or as for `bootstrap_mean`.
    """
    return bootstrap_mean(_difference(left, right), resamples, level, seed)


def win_rate(
    left: Float[Tensor, "image"],
    right: Float[Tensor, "image"],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Share of the images on which left is larger than right, equal values counted half, as `bootstrap_mean`.

    Negate both where lower is better.

    >>> win_rate(torch.tensor([0.5, 0.75]), torch.tensor([0.25, 0.5])).mean
    1.0

    Raises:
        InputError: as for `paired_difference`.
    """
    return bootstrap_mean((1 + _difference(left, right).sign()) / 2, resamples, level, seed)


def mean_rank(table: Float[Tensor, "case method"]) -> Float[Tensor, "method"]:
    """Each method's rank, 1 for the largest value of a row, averaged over the rows; equal values share their ranks.

    Negate the rows in which lower is better.

    >>> mean_rank(torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.5, 0.5]]))
    tensor([1.0000, 2.7500, 2.2500], dtype=torch.float64)

    Raises:
        InputError: table is not (case, method), is empty or not finite.
    """
    if table.ndim != 2 or table.numel() == 0 or not table.isfinite().all():
        raise InputError(
            "table must hold finite values, one row per case and one column per method, "
            f"but got shape {tuple(table.shape)}{'' if table.isfinite().all() else ' with NaN or infinite values'}."
        )
    return ranks(-table).double().mean(0)


def ranks(values: Float[Tensor, "case position"]) -> Float[Tensor, "case position"]:
    """The rank of each value in its row, from 1 for the smallest; equal values share the mean of their ranks."""
    values = values.contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).to(at_least_float32(values).dtype) / 2


def _difference(left: Tensor, right: Tensor) -> Float[Tensor, "image"]:
    _check("left", left)
    _check("right", right)
    if len(left) != len(right):
        raise InputError(
            f"left and right must hold the same images in the same order, but have {len(left)} and {len(right)} values."
        )
    return left.detach().cpu().double() - right.detach().cpu().double()


def _check(argument: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or values.ndim != 1 or len(values) == 0:
        came = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{argument} must be a tensor with one value per image, shape (n,), n >= 1, but got {came}.")
    if not values.isfinite().all():
        raise InputError(f"{argument} hold NaN or infinite values; leave such images out and say how many.")
