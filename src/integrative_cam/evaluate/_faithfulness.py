"""Does the score follow the map? Pixels shown, hidden or imputed by rank, and images dimmed by their map.

Every probability is the softmax of the model's logits at the target, 0 to 1. Insertion, deletion and ROAD see only the
order of a map's values. Average drop and increase see the values: a brighter map drops less, and a map of ones drops
nothing, so report `area` beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._maps.evidence import expand_like
from ..errors import InputError
from ._perturbation import Baseline, NoisyLinear, blurred, check_together, imputed, order, zeros
from ._probabilities import TargetIndex, at_least_one, target_probabilities

if TYPE_CHECKING:
    from jaxtyping import Float

    from ._shapes import Images, Maps, PerImage

Fill = Callable[[Tensor, Tensor], Tensor]
"""Takes numbers of images, (job,), and where pixels are removed, (job, *space); gives these images without them."""

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
) -> PerImage:
    """Area under `insertion_curve` over the share of pixels, 0 to 1; higher is better (RISE, arXiv:1806.07421)."""
    return _area_under(insertion_curve(model, images, maps, target_index, steps, baseline, batch_size), maps)


def deletion(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = zeros,
    batch_size: int = 32,
) -> PerImage:
    """Area under `deletion_curve` over the share of pixels, 0 to 1; lower is better (RISE, arXiv:1806.07421)."""
    return _area_under(deletion_curve(model, images, maps, target_index, steps, baseline, batch_size), maps)


def insertion_curve(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> Float[Tensor, "batch point"]:
    """Probability of the target as the baseline turns into the image, highest values of the map first.

    Point k of steps + 1 shows round(k n / steps) of n pixels: point 0 is the baseline, the last one the image. Only the
    order of a map's values counts.

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
    shown, fill = _replacement(images, maps, steps, baseline, inserting=True)
    return _curve(model, images, maps, target_index, shown, fill, batch_size, keep=True)


def deletion_curve(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = zeros,
    batch_size: int = 32,
) -> Float[Tensor, "batch point"]:
    """Probability of the target as the image turns into the baseline, highest values of the map first.

    Point 0 is the image, the last one the baseline. Arguments as for `insertion_curve`.
    """
    hidden, fill = _replacement(images, maps, steps, baseline, inserting=False)
    return _curve(model, images, maps, target_index, hidden, fill, batch_size, keep=False)


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
) -> PerImage:
    """Mean probability of the target with the most relevant pixels imputed: ROAD's MoRF (arXiv:2202.00449).

    For each of `shares`, above 0 and below 1, the round(share n) of n pixels with the highest values of the map, at
    most n - 1, are replaced by `imputed`, so that their absence is no hint itself. Lower is better. `noise` and
    `generator` are those of `imputed`; images have two axes of space.
    """
    removed, fill = _removed(images, maps, shares), _imputation(images, noise, generator)
    return _curve(model, images, maps, target_index, removed, fill, batch_size, keep=False).mean(1)


def road_lerf(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> PerImage:
    """`road_morf` with the least relevant pixels imputed: ROAD's LeRF. Higher is better."""
    kept = [maps[0].numel() - count for count in _removed(images, maps, shares)]
    fill = _imputation(images, noise, generator)
    return _curve(model, images, maps, target_index, kept, fill, batch_size, keep=True).mean(1)


def road_combined(
    model: nn.Module,
    images: Images,
    maps: Maps,
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> PerImage:
    """(`road_lerf` - `road_morf`) / 2, from -1/2 to 1/2; higher is better, and about 0 for random maps."""
    most = road_morf(model, images, maps, target_index, shares, noise, generator, batch_size)
    least = road_lerf(model, images, maps, target_index, shares, noise, generator, batch_size)
    return (least - most) / 2


def _removed(images: Tensor, maps: Tensor, shares: Sequence[float]) -> list[int]:
    """How many pixels ROAD removes."""
    check_together(images, maps, dims=2)
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares must hold at least one number above 0 and below 1, but got {shares!r}.")
    pixels = maps[0].numel()
    return [min(round(share * pixels), pixels - 1) for share in shares]


def _imputation(images: Tensor, noise: float, generator: torch.Generator | None) -> Fill:
    return lambda image, removed: imputed(images[image], removed, noise, generator)


def _replacement(
    images: Tensor, maps: Tensor, steps: int, baseline: Baseline | NoisyLinear, inserting: bool
) -> tuple[list[int], Fill]:
    """How many pixels are touched at each point of a curve, and what replaces hidden ones."""
    check_together(images, maps)
    at_least_one("steps", steps)
    pixels = maps[0].numel()
    counts = _counts(pixels, steps)
    if isinstance(baseline, NoisyLinear):
        counts = [max(count, 1) if inserting else min(count, pixels - 1) for count in counts]
        return counts, lambda image, removed: baseline(images[image], removed)
    with torch.no_grad():
        background = baseline(images)
    if not isinstance(background, Tensor) or background.shape != images.shape or background.dtype != images.dtype:
        came = f"{background.dtype} of {tuple(background.shape)}" if isinstance(background, Tensor) else background
        raise InputError(f"baseline must give images again, {images.dtype} of {tuple(images.shape)}, but gave {came}.")
    return counts, lambda image, removed: torch.where(removed[:, None], background[image], images[image])


def _curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target_index: TargetIndex,
    counts: Sequence[int],
    fill: Fill,
    batch_size: int,
    keep: bool,
) -> Float[Tensor, "batch point"]:
    """The target's probability at each k, with the highest counts[k] pixels removed or, to `keep` them, all others."""
    ranks = order(maps).argsort(1).reshape(maps.shape)
    limits = torch.tensor(counts, device=images.device)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        highest = ranks[image] < expand_like(limits[point], ranks)
        return fill(image, ~highest if keep else highest)

    return target_probabilities(model, images, target_index, len(counts), perturb, batch_size)


def _counts(pixels: int, steps: int) -> list[int]:
    return [round(step * pixels / steps) for step in range(steps + 1)]


def _area_under(curve: Float[Tensor, "batch point"], maps: Tensor) -> PerImage:
    # The true shares: pixels need not divide evenly into steps.
    pixels = maps[0].numel()
    shares = torch.tensor(_counts(pixels, curve.shape[1] - 1), dtype=curve.dtype, device=curve.device) / pixels
    return torch.trapezoid(curve, shares, dim=1)
