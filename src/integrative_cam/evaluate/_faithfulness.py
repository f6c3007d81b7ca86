"""Does the score follow the map? Pixels shown or hidden by rank, and images dimmed by their map.

Every probability is the softmax of the model's logits at the target. Insertion and deletion see only the
order of a map's values. Average drop and increase see the values: a brighter map drops less, and a map of ones
drops nothing, so report `simplicity.area` beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._maps.evidence import expand_like
from ..errors import InputError
from ._perturbation import Baseline, NoisyLinear, blurred, check_together, order, zeros
from ._probabilities import TargetIndex, at_least_one, target_probabilities

if TYPE_CHECKING:
    from jaxtyping import Float


def insertion(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """Area under `insertion_curve` over the share of pixels, 0 to 1; higher is better (RISE, arXiv:1806.07421)."""
    curve = insertion_curve(model, images, maps, target_index, steps, baseline, batch_size)
    return _area_under(curve, maps[0].numel())


def deletion(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = zeros,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """Area under `deletion_curve` over the share of pixels, 0 to 1; lower is better (RISE, arXiv:1806.07421)."""
    curve = deletion_curve(model, images, maps, target_index, steps, baseline, batch_size)
    return _area_under(curve, maps[0].numel())


def insertion_curve(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = blurred,
    batch_size: int = 32,
) -> Float[Tensor, "batch point"]:
    """Probability of the target as the baseline turns into the image, highest values of the map first.

    Point k of steps + 1 shows round(k n / steps) of n pixels: point 0 is the baseline, the last one the image.

    Args:
        model: returns logits; run in evaluation mode and left as it was.
        images: (batch, channel, *space), as the model takes them.
        maps: (batch, *space), of the images' size; only their order counts.
        target_index: the class, for all images or for each.
        steps: how many equal parts the pixels are shown in, at least 1.
        baseline: makes of the images what a hidden pixel shows; see `perturbation`. `NoisyLinear` needs one to
            start from: the highest of the map stays when inserting, the lowest when deleting.
        batch_size: how many images the model sees at once, at least 1.

    Raises:
        InputError: an argument cannot be used as given, or the model has fewer than two classes.
        OutputError, TargetError: the model's output has no logits, is not finite, or has several values per class.
    """
    return _replacement_curve(model, images, maps, target_index, steps, baseline, batch_size, inserting=True)


def deletion_curve(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline | NoisyLinear = zeros,
    batch_size: int = 32,
) -> Float[Tensor, "batch point"]:
    """Probability of the target as the image turns into the baseline, highest values of the map first.

    Point 0 is the image, the last one the baseline. Arguments and errors as for `insertion_curve`.
    """
    return _replacement_curve(model, images, maps, target_index, steps, baseline, batch_size, inserting=False)


def average_drop(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """Share of the target's probability p lost when the image is multiplied by its map (arXiv:1710.11063).

    max(0, p - o) / p with o of `dimmed_probabilities`, 0 to 1; 0 where p is 0. Lower is better. Arguments and
    errors as there.
    """
    return share_lost(*dimmed_probabilities(model, images, maps, target_index, batch_size))


def increase(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """1 where the image multiplied by its map is the more probable one, else 0 (arXiv:1710.11063).

    Higher is better. Arguments and errors as for `dimmed_probabilities`.
    """
    return gained(*dimmed_probabilities(model, images, maps, target_index, batch_size))


def dimmed_probabilities(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    batch_size: int = 32,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Probability of the target for the image, and for the image multiplied by its map, both as the model takes them.

    Args:
        model: returns logits; run in evaluation mode and left as it was.
        images: (batch, channel, *space), normalised, so that 0 is the mean colour.
        maps: (batch, *space), of the images' size, in [0, 1].
        target_index: the class, for all images or for each.
        batch_size: how many images the model sees at once, at least 1.

    Raises:
        InputError: an argument cannot be used as given, or the model has fewer than two classes.
        OutputError, TargetError: the model's output has no logits, is not finite, or has several values per class.
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

    found = target_probabilities(model, images, target_index, 2, perturb, batch_size)
    return found[:, 0], found[:, 1]


def share_lost(whole: Float[Tensor, "batch"], dimmed: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """max(0, whole - dimmed) / whole; 0 where whole is 0."""
    return torch.where(whole > 0, (whole - dimmed).relu() / whole, 0)


def gained(whole: Float[Tensor, "batch"], dimmed: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """1 where dimmed is above whole, else 0."""
    return (dimmed > whole).to(whole.dtype)


def _replacement_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target_index: TargetIndex,
    steps: int,
    baseline: Baseline | NoisyLinear,
    batch_size: int,
    inserting: bool,
) -> Tensor:
    check_together(images, maps)
    at_least_one("steps", steps)
    ranks = order(maps).argsort(1).reshape(maps.shape)
    counts = torch.tensor(_counts(maps[0].numel(), steps), device=images.device)
    if isinstance(baseline, NoisyLinear):
        counts = counts.clamp_min(1) if inserting else counts.clamp_max(maps[0].numel() - 1)
    else:
        background = _background(baseline, images)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        touched = ranks[image] < expand_like(counts[point], ranks)
        removed = ~touched if inserting else touched
        if isinstance(baseline, NoisyLinear):
            return baseline(images[image], removed)
        return torch.where(removed[:, None], background[image], images[image])

    return target_probabilities(model, images, target_index, steps + 1, perturb, batch_size)


def _background(baseline: Baseline, images: Tensor) -> Tensor:
    with torch.no_grad():
        background = baseline(images)
    if not isinstance(background, Tensor) or background.shape != images.shape or background.dtype != images.dtype:
        came = f"{background.dtype} of {tuple(background.shape)}" if isinstance(background, Tensor) else background
        raise InputError(f"baseline must give images again, {images.dtype} of {tuple(images.shape)}, but gave {came}.")
    return background


def _counts(pixels: int, steps: int) -> list[int]:
    return [round(step * pixels / steps) for step in range(steps + 1)]


def _area_under(curve: Float[Tensor, "batch point"], pixels: int) -> Float[Tensor, "batch"]:
    # The true shares: pixels need not divide evenly into steps.
    shares = torch.tensor(_counts(pixels, curve.shape[1] - 1), dtype=curve.dtype, device=curve.device) / pixels
    return torch.trapezoid(curve, shares, dim=1)
