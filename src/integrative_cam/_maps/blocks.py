"""Arithmetic on feature maps in blocks that fit a processor's cache, several times faster there than on whole maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

BLOCK = 2**19
"""Numbers in a block on a CPU: two megabytes of float32."""


def sum_over_blocks(
    reduced: Callable[..., tuple[Tensor, ...]],
    maps: Sequence[Float[Tensor, "batch channel *space"]],
    rho: Float[Tensor, "batch"] | None = None,
) -> tuple[Tensor, ...]:
    """What `reduced` gives per sample, summed over blocks of channels.

    It is called with a block of each of the `maps`, (row, some channels, position), in float32 or better, and with
    the rows of `rho`, if given; maps may differ in space. Other devices than CPUs take whole maps: they would wait
    for many small calls.
    """
    flat = [each.flatten(2) if each.ndim > 2 else each[..., None] for each in maps]
    batch, channels, positions = flat[0].shape
    size = BLOCK if maps[0].device.type == "cpu" else maps[0].numel()
    # Whole samples where one fits, channels of one sample elsewhere: both lie together in memory.
    rows = min(batch, max(1, size // (channels * positions)))
    columns = min(channels, max(1, size // (rows * positions)))
    found = []
    for top in range(0, batch, rows):
        here = slice(top, top + rows)
        per_row = () if rho is None else (rho[here],)
        parts = [
            reduced(*(at_least_float32(each[here, left : left + columns]) for each in flat), *per_row)
            for left in range(0, channels, columns)
        ]
        found.append([reduce(torch.add, each) for each in zip(*parts, strict=True)])
    return tuple(torch.cat(each) if len(each) > 1 else each[0] for each in zip(*found, strict=True))


def per_channel(shift: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel 1"] | None:
    """The one value of each channel; None where they may differ over space."""
    if any(stride and size > 1 for stride, size in zip(shift.stride()[2:], shift.shape[2:], strict=True)):
        return None
    return shift.flatten(2)[..., :1] if shift.ndim > 2 else shift[..., None]


def at_least_float32(values: Tensor) -> Tensor:
    """float32 or better: half precision is widened, float64 stays."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
