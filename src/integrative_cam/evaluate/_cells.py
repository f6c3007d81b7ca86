"""Maps by cells: squares of pixels, cubes or intervals, as large as the patches that people see.

Pixel by pixel, what is removed lies scattered over the image, to which small networks are fragile whatever is there.
What the network answers when cells are replaced depends on image and target only, so that all methods can share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._maps.blocks import at_least_float32
from .._maps.evidence import expand_like
from ..errors import InputError
from ._perturbation import Baseline, NoisyLinear, blurred, check_images, check_together, filling
from ._probabilities import TargetIndex, at_least_one, target_logits
from ._simplicity import correlation
from ._statistics import ranks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ._shapes import Images, Maps, PerImage

CELL = 16
"""Pixels per side of a cell, unless told otherwise: 196 cells of an image of 224 x 224."""
SETS = 256
"""How many random sets of cells `faithfulness_correlation` keeps."""


def single_cell(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    cells: int = CELL,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> PerImage:
    """Single-cell deletion: does a cell matter as much as the map says? (arXiv:2407.11910, without retraining).

    Spearman's rank correlation, over the cells, of the map's sum in a cell with the fall of the target's logit when
    that cell alone shows the baseline; -1 to 1, higher is better, about 0 for random maps, 0 where nothing differs.
    Signed maps say where evidence against the target lies, so prefer `Explanation.signed_map`.

    The network runs once per cell and once on the whole image. Arguments and errors beside these: see
    `integrative_cam.evaluate` and `insertion_curve`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[3, 2, 1, 0], [0, 0, 0, 0]]))
    >>> maps = torch.tensor([[[0.9, 0.5], [0.2, 0.1]]])
    >>> single_cell(model, torch.ones(1, 1, 2, 2), maps, target_index=0, cells=1, baseline=torch.zeros_like)
    tensor([1.0000])
    """
    check_together(images, maps)
    return single_cell_of(maps, falls_by_cell(model, images, target_index, cells, baseline, batch_size), cells)


def faithfulness_correlation(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    cells: int = CELL,
    sets: int = SETS,
    seed: int = 0,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> PerImage:
    """Does the target's logit follow the map's part in what is kept? (faithfulness correlation, arXiv:2005.00631).

    Pearson's correlation, over random sets of cells that are kept while the others show the baseline, of the map's sum
    in the set with the target's logit, the number of cells partialled out of both: more cells alone say nothing. Each
    cell is in a set with probability 1/2; `seed` draws the same `sets` (at least 3, each a run of the network) for all
    images of a size. -1 to 1; higher is better, about 0 for random maps, 0 where nothing differs. Prefer
    `Explanation.signed_map`. Other arguments: as for `single_cell`.
    """
    check_together(images, maps)
    logits = logits_of_sets(model, images, target_index, cells, sets, seed, baseline, batch_size)
    return faithfulness_correlation_of(maps, logits, cells, seed)


def falls_by_cell(
    model: nn.Module,
    images: Images,
    target_index: TargetIndex,
    cells: int = CELL,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> Float[Tensor, "batch cell"]:
    """How far the target's logit falls when a cell alone shows the baseline; cells row by row."""
    check_images(images)
    fill, numbers = filling(images, baseline), _cell_numbers(images, cells)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        # The point after the last cell is the whole image.
        return fill(image, numbers == expand_like(point, numbers[None]))

    logits = target_logits(model, images, target_index, int(numbers.max()) + 2, perturb, batch_size)
    return logits[:, -1:] - logits[:, :-1]


def single_cell_of(maps: Maps, falls: Float[Tensor, "batch cell"], cells: int = CELL) -> PerImage:
    """`single_cell` of maps for what `falls_by_cell` has measured."""
    return correlation(ranks(cell_sums(maps, cells).flatten(1)), ranks(falls))


def logits_of_sets(
    model: nn.Module,
    images: Images,
    target_index: TargetIndex,
    cells: int = CELL,
    sets: int = SETS,
    seed: int = 0,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> Float[Tensor, "batch set"]:
    """The target's logit when a random set of cells is kept and all others show the baseline."""
    check_images(images)
    if sets < 3:
        raise InputError(f"sets must be at least 3 to have a partial correlation, but got {sets!r}.")
    fill, numbers = filling(images, baseline), _cell_numbers(images, cells)
    kept = _random_sets(sets, int(numbers.max()) + 1, seed).to(images.device)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        return fill(image, ~kept[point][:, numbers])

    return target_logits(model, images, target_index, sets, perturb, batch_size)


def faithfulness_correlation_of(
    maps: Maps, logits: Float[Tensor, "batch set"], cells: int = CELL, seed: int = 0
) -> PerImage:
    """`faithfulness_correlation` of maps for what `logits_of_sets` has measured with the same seed."""
    sums = cell_sums(maps, cells).flatten(1)
    kept = _random_sets(logits.shape[1], sums.shape[1], seed).to(sums)
    number = kept.sum(1)
    # Centred first: parts of cells that are all alike are then exactly 0, and not what rounding leaves.
    return correlation(_without(_centred(sums) @ kept.T, number), _without(logits.to(sums), number))


def cell_sums(maps: Maps, cells: int) -> Float[Tensor, "batch *cell"]:
    """The map's sum in each cell; cells at the far edges are smaller where the size is no multiple of `cells`."""
    check_cells(cells, maps.shape[1:])
    sums = at_least_float32(maps)
    for axis in range(1, maps.ndim):
        beyond = -maps.shape[axis] % cells
        padding = [0, 0] * (maps.ndim - 1 - axis) + [0, beyond]
        padded = F.pad(sums, padding)
        sums = padded.reshape(*padded.shape[:axis], -1, cells, *padded.shape[axis + 1 :]).sum(axis + 1)
    return sums


def cell_means(maps: Maps, cells: int) -> Float[Tensor, "batch *cell"]:
    """The map's mean in each cell."""
    return cell_sums(maps, cells) / cell_sums(torch.ones_like(maps[:1]), cells)


def cells_to_pixels(values: Tensor, cells: int, size: Sequence[int]) -> Tensor:
    """Values (batch, *cell) of cells at each of their pixels, (batch, *size)."""
    for axis, length in enumerate(size, 1):
        values = values.repeat_interleave(cells, axis).narrow(axis, 0, length)
    return values


def check_cells(cells: int, size: Sequence[int]) -> None:
    """Raise InputError unless an image of this size has at least two cells."""
    at_least_one("cells", cells)
    if cells >= max(size):
        raise InputError(
            f"cells must be smaller than the image, {' x '.join(map(str, size))} pixels, so that there are cells to "
            f"compare, but got {cells}."
        )


def _cell_numbers(images: Images, cells: int) -> Tensor:
    """The number of each pixel's cell, (*space), from 0, row by row."""
    size = images.shape[2:]
    check_cells(cells, size)
    grid = [-(-length // cells) for length in size]
    numbers = torch.arange(torch.Size(grid).numel(), device=images.device).reshape(1, *grid)
    return cells_to_pixels(numbers, cells, size)[0]


def _random_sets(sets: int, cells: int, seed: int) -> Bool[Tensor, "set cell"]:
    # On the CPU: the same on every device.
    return torch.rand(sets, cells, generator=torch.Generator().manual_seed(seed)) < 0.5


def _without(values: Float[Tensor, "batch set"], number: Float[Tensor, "set"]) -> Float[Tensor, "batch set"]:
    """What is left of the values once the best line in `number` is taken off."""
    centred, line = _centred(values), number - number.mean()
    square = line.square().sum()
    slope = (centred @ line) / torch.where(square > 0, square, 1)
    return centred - slope[:, None] * line


def _centred(values: Float[Tensor, "batch place"]) -> Float[Tensor, "batch place"]:
    """Mean 0; exactly 0 where all are equal, since the mean of equal numbers may miss them by a rounding error."""
    constant = values.amax(1, keepdim=True) == values.amin(1, keepdim=True)
    return torch.where(constant, 0, values - values.mean(1, keepdim=True))
