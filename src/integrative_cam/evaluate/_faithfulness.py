"""Does the score follow the map? Pixels shown, hidden or imputed by rank, and images dimmed by their map.

Every probability is the softmax of the model's logits at the target, 0 to 1. Insertion, deletion, the symmetric
relevance gain and ROAD see only the order of a map's values, or of its means over `cells`. Average drop and increase
see the values: a brighter map drops less, and a map of ones drops nothing, so report `area` beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._maps.evidence import expand_like
from ..errors import InputError
from ._cells import cell_means, cells_to_pixels
from ._perturbation import Baseline, Fill, NoisyLinear, blurred, check_together, filling, imputed, order, zeros
from ._probabilities import TargetIndex, at_least_one, target_probabilities

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from ._shapes import Images, Maps, PerImage

SHARES = (0.2, 0.4, 0.6, 0.8)
"""The shares of pixels that ROAD removes: the percentiles 80, 60, 40 and 20 of a map."""


def insertion(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
    cells: int | None = None,
) -> PerImage:
    """Area under `insertion_curve` over the share of pixels, 0 to 1; higher is better (RISE, arXiv:1806.07421)."""
    curve = insertion_curve(model, images, maps, target_index, steps, baseline, batch_size, cells)
    return _area_under(curve, _ranked(maps, cells)[1])


def deletion(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear | None = None,
    batch_size: int = 32,
    cells: int | None = None,
) -> PerImage:
    """Area under `deletion_curve` over the share of pixels, 0 to 1; lower is better (RISE, arXiv:1806.07421)."""
    curve = deletion_curve(model, images, maps, target_index, steps, baseline, batch_size, cells)
    return _area_under(curve, _ranked(maps, cells)[1])


def insertion_curve(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
    cells: int | None = None,
) -> Float[Tensor, "batch point"]:
    """Probability of the target as the baseline turns into the image, highest values of the map first.

    Point k of steps + 1 shows round(k n / steps) of n pixels: point 0 is the baseline, the last one the image. Only the
    order of a map's values counts. With `cells`, n counts cells.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))
    >>> images = torch.ones(1, 1, 2, 2)
    >>> insertion_curve(model, images, images[0], target_index=0, steps=1, baseline=zeros)
    tensor([[0.5000, 0.8808]])

    Arguments and errors beside these: see `integrative_cam.evaluate`.

    Args:
        steps: how many equal parts the pixels are shown in, at least 1.
        baseline: makes of the images what a hidden pixel shows: `zeros`, `mean_of`, `blurred` or any such function;
            or `NoisyLinear`, which imputes hidden pixels from the others and so always keeps one.
    """
    check_together(images, maps)
    ranks, units = _ranked(maps, cells)
    removed = [(max(count, isinstance(baseline, NoisyLinear)), units) for count in _counts(units, steps)]
    return _curve(model, images, ranks, target_index, removed, filling(images, baseline), batch_size)


def deletion_curve(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear | None = None,
    batch_size: int = 32,
    cells: int | None = None,
) -> Float[Tensor, "batch point"]:
    """Probability of the target as the image turns into the baseline, highest values of the map first.

    Point 0 is the image, the last one the baseline. Arguments as for `insertion_curve`; without a baseline, pixels turn
    to zero, and cells to the blurred image, in which a removed cell is no new square with edges of its own.
    """
    check_together(images, maps)
    ranks, units = _ranked(maps, cells)
    baseline = baseline or (zeros if cells is None else blurred)
    removed = [(0, min(count, units - isinstance(baseline, NoisyLinear))) for count in _counts(units, steps)]
    return _curve(model, images, ranks, target_index, removed, filling(images, baseline), batch_size)


def srg(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline = zeros,
    batch_size: int = 32,
    cells: int | None = None,
) -> PerImage:
    """Symmetric relevance gain (arXiv:2401.06654): what deleting the least relevant first keeps of the probability.

    The area under the deletion curve with the lowest values of the map first, minus that with the highest first, -1 to
    1; higher is better, and about 0 for random maps. With one baseline for both it is insertion minus deletion, which
    `ins-del` of `icam evaluate` is by cells, on the blurred image; so the default here is another one.
    Arguments as for `insertion_curve`.
    """
    check_together(images, maps)
    ranks, units = _ranked(maps, cells)
    counts = _counts(units, steps)
    most, least = [(0, count) for count in counts], [(units - count, units) for count in counts]
    curves = _curve(model, images, ranks, target_index, most + least, filling(images, baseline), batch_size)
    most_first, least_first = curves.chunk(2, 1)
    return _area_under(least_first, units) - _area_under(most_first, units)


def average_drop(
    model: nn.Module, images: Images, maps: Maps, target_index: TargetIndex, batch_size: int = 32
) -> PerImage:
    """Share of the target's probability p lost when the image is multiplied by its map (Grad-CAM++, arXiv:1710.11063).

    max(0, p - o) / p with o of `dimmed_probabilities`, 0 to 1; 0 where p is 0. Lower is better.
    """
    return share_lost(*dimmed_probabilities(model, images, maps, target_index, batch_size))


def increase(model: nn.Module, images: Images, maps: Maps, target_index: TargetIndex, batch_size: int = 32) -> PerImage:
    """1 where the image multiplied by its map is the more probable one, else 0; higher is better (arXiv:1710.11063)."""
    return gained(*dimmed_probabilities(model, images, maps, target_index, batch_size))


def dimmed_probabilities(
    model: nn.Module, images: Images, maps: Maps, target_index: TargetIndex, batch_size: int = 32
) -> tuple[PerImage, PerImage]:
    """Probability of the target for the image, and for the image multiplied by its map.

    Images must be normalised, so that 0 is the mean colour, and maps lie in [0, 1].
    """
    check_together(images, maps)
    if maps.min() < 0 or maps.max() > 1:
        raise InputError(
            f"maps must lie in [0, 1] to dim an image, but reach from {maps.min():.4g} to {maps.max():.4g}; "
            "cut them at zero and divide each by its maximum."
        )

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        factor = torch.where(expand_like(point, maps) == 0, 1, maps[image])
        return images[image] * factor[:, None].to(images.dtype)

    whole, dimmed = target_probabilities(model, images, target_index, 2, perturb, batch_size).unbind(1)
    return whole, dimmed


def share_lost(whole: PerImage, dimmed: PerImage) -> PerImage:
    """max(0, whole - dimmed) / whole; 0 where whole is 0."""
    return torch.where(whole > 0, (whole - dimmed).relu() / whole, 0)


def gained(whole: PerImage, dimmed: PerImage) -> PerImage:
    """1 where dimmed is above whole, else 0."""
    return (dimmed > whole).to(whole.dtype)


def road_morf(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    cells: int | None = None,
) -> PerImage:
    """Mean probability of the target with the most relevant pixels imputed: ROAD's MoRF (arXiv:2202.00449).

    For each of `shares`, above 0 and below 1, the round(share n) of n pixels with the highest values of the map, at
    most n - 1, are replaced by `imputed`, so that their absence is no hint itself. Lower is better. `noise` and
    `generator` are those of `imputed`; images have two axes of space. With `cells`, n counts cells.
    """
    return _road(model, images, maps, target_index, shares, noise, generator, batch_size, cells, most=True)


def road_lerf(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    cells: int | None = None,
) -> PerImage:
    """`road_morf` with the least relevant pixels imputed: ROAD's LeRF. Higher is better."""
    return _road(model, images, maps, target_index, shares, noise, generator, batch_size, cells, most=False)


def road_combined(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    cells: int | None = None,
) -> PerImage:
    """(`road_lerf` - `road_morf`) / 2, from -1/2 to 1/2; higher is better, and about 0 for random maps."""
    most = road_morf(model, images, maps, target_index, shares, noise, generator, batch_size, cells)
    least = road_lerf(model, images, maps, target_index, shares, noise, generator, batch_size, cells)
    return (least - most) / 2


def _road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target_index: TargetIndex,
    shares: Sequence[float],
    noise: float,
    generator: torch.Generator | None,
    batch_size: int,
    cells: int | None,
    most: bool,
) -> PerImage:
    check_together(images, maps, dims=2)
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares must hold at least one number above 0 and below 1, but got {shares!r}.")
    ranks, units = _ranked(maps, cells)
    counts = [min(round(share * units), units - 1) for share in shares]
    removed = [(0, count) if most else (units - count, units) for count in counts]

    def fill(image: Tensor, gone: Tensor) -> Tensor:
        return imputed(images[image], gone, noise, generator)

    return _curve(model, images, ranks, target_index, removed, fill, batch_size).mean(1)


def _ranked(maps: Tensor, cells: int | None) -> tuple[Int[Tensor, "batch *space"], int]:
    """Each pixel's rank by the map, from 0 for the highest, or its cell's; and how many pixels or cells there are."""
    values = maps if cells is None else cell_means(maps, cells)
    ranks = order(values).argsort(1).reshape(values.shape)
    return ranks if cells is None else cells_to_pixels(ranks, cells, maps.shape[1:]), values[0].numel()


def _curve(
    model: nn.Module,
    images: Tensor,
    ranks: Int[Tensor, "batch *space"],
    target_index: TargetIndex,
    removed: Sequence[tuple[int, int]],
    fill: Fill,
    batch_size: int,
) -> Float[Tensor, "batch point"]:
    """The target's probability at each point, where the pixels of the ranks [first, last) are removed."""
    first, last = torch.tensor(removed, device=images.device).unbind(1)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        rank = ranks[image]
        return fill(image, (rank >= expand_like(first[point], rank)) & (rank < expand_like(last[point], rank)))

    return target_probabilities(model, images, target_index, len(removed), perturb, batch_size)


def _counts(units: int, steps: int) -> list[int]:
    at_least_one("steps", steps)
    return [round(step * units / steps) for step in range(steps + 1)]


def _area_under(curve: Float[Tensor, "batch point"], units: int) -> PerImage:
    # The true shares: pixels need not divide evenly into steps.
    shares = torch.tensor(_counts(units, curve.shape[1] - 1), dtype=curve.dtype, device=curve.device) / units
    return torch.trapezoid(curve, shares, dim=1)
