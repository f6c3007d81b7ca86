"""Does the score follow the map? Pixels shown, hidden or imputed by rank, and images dimmed by their map.

Every probability is the softmax of the model's logits at the target. Insertion, deletion and ROAD see only the
order of a map's values. Average drop and increase see the values: a brighter map drops less, and a map of ones
drops nothing, so report `simplicity.area` beside them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError, OutputError
from ..guard import evaluation, preserved_buffers, preserved_randomness
from ..targets import class_scores, logits_of
from ..trace import wide
from .perturbation import Baseline, blurred, check_images, check_together, imputed, order, zeros

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TargetIndex = int | Sequence[int] | Tensor
"""A class index for all images, or one per image."""

SHARES = (0.2, 0.4, 0.6, 0.8)
"""The shares of pixels that ROAD removes: the percentiles 80, 60, 40 and 20 of a map."""

Perturb = Callable[[Tensor, Tensor], Tensor]
"""Takes the numbers of images and of points on their curves, (job,) each, and gives what the model is to see."""


def insertion(
    model: nn.Module,
    images: Float[Tensor, "batch channel *space"],
    maps: Float[Tensor, "batch *space"],
    target_index: TargetIndex,
    steps: int = 20,
    baseline: Baseline = blurred,
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
    baseline: Baseline = zeros,
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
    baseline: Baseline = blurred,
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
        baseline: makes of the images what a hidden pixel shows; see `perturbation`.
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
    baseline: Baseline = zeros,
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
    whole, dimmed = dimmed_probabilities(model, images, maps, target_index, batch_size)
    return torch.where(whole > 0, (whole - dimmed).relu() / whole, 0)


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
    whole, dimmed = dimmed_probabilities(model, images, maps, target_index, batch_size)
    return (dimmed > whole).to(whole.dtype)


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
        factor = torch.where(_like(point, maps) == 0, 1, maps[image])
        return images[image] * factor[:, None].to(images.dtype)

    found = _probabilities(model, images, target_index, 2, perturb, batch_size)
    return found[:, 0], found[:, 1]


def road_morf(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    maps: Float[Tensor, "batch height width"],
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """Probability of the target with the most relevant pixels imputed: ROAD's MoRF (arXiv:2202.00449).

    For each of `shares` the round(share n) of n pixels with the highest values of the map, at most n - 1, are
    replaced by `perturbation.imputed`; the probabilities, 0 to 1, are averaged over the shares. Lower is better.

    Args:
        model: returns logits; run in evaluation mode and left as it was.
        images: (batch, channel, height, width), as the model takes them.
        maps: (batch, height, width), of the images' size; only their order counts.
        target_index: the class, for all images or for each.
        shares: of pixels removed, each above 0 and below 1.
        noise: see `perturbation.imputed`.
        generator: see `perturbation.imputed`.
        batch_size: how many images are imputed and seen by the model at once, at least 1.

    Raises:
        InputError: an argument cannot be used as given, or the model has fewer than two classes.
        OutputError, TargetError: the model's output has no logits, is not finite, or has several values per class.
    """
    check_together(images, maps, dims=2)
    return _road(model, images, order(maps), target_index, shares, noise, generator, batch_size)


def road_lerf(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    maps: Float[Tensor, "batch height width"],
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """The same with the least relevant pixels imputed: ROAD's LeRF. Higher is better."""
    check_together(images, maps, dims=2)
    return _road(model, images, order(maps).flip(1), target_index, shares, noise, generator, batch_size)


def road_combined(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    maps: Float[Tensor, "batch height width"],
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "batch"]:
    """(`road_lerf` - `road_morf`) / 2, from -1/2 to 1/2; higher is better, and about 0 for random maps."""
    most = road_morf(model, images, maps, target_index, shares, noise, generator, batch_size)
    least = road_lerf(model, images, maps, target_index, shares, noise, generator, batch_size)
    return (least - most) / 2


def _replacement_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target_index: TargetIndex,
    steps: int,
    baseline: Baseline,
    batch_size: int,
    inserting: bool,
) -> Tensor:
    check_together(images, maps)
    _at_least_one("steps", steps)
    with torch.no_grad():
        background = baseline(images)
    if not isinstance(background, Tensor) or background.shape != images.shape or background.dtype != images.dtype:
        came = f"{background.dtype} of {tuple(background.shape)}" if isinstance(background, Tensor) else background
        raise InputError(f"baseline must give images again, {images.dtype} of {tuple(images.shape)}, but gave {came}.")
    ranks = order(maps).argsort(1).reshape(maps.shape)
    counts = torch.tensor(_counts(maps[0].numel(), steps), device=images.device)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        touched = ranks[image] < _like(counts[point], ranks)
        shown = touched if inserting else ~touched
        return torch.where(shown[:, None], images[image], background[image])

    return _probabilities(model, images, target_index, steps + 1, perturb, batch_size)


def _road(
    model: nn.Module,
    images: Tensor,
    positions: Int[Tensor, "batch position"],
    target_index: TargetIndex,
    shares: Sequence[float],
    noise: float,
    generator: torch.Generator | None,
    batch_size: int,
) -> Tensor:
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares must hold at least one number above 0 and below 1, but got {shares!r}.")
    pixels = positions.shape[1]
    ranks = positions.argsort(1).reshape(len(images), *images.shape[2:])
    counts = torch.tensor([min(round(share * pixels), pixels - 1) for share in shares], device=images.device)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        return imputed(images[image], ranks[image] < _like(counts[point], ranks), noise, generator)

    return _probabilities(model, images, target_index, len(shares), perturb, batch_size).mean(1)


def _counts(pixels: int, steps: int) -> list[int]:
    return [round(step * pixels / steps) for step in range(steps + 1)]


def _area_under(curve: Float[Tensor, "batch point"], pixels: int) -> Float[Tensor, "batch"]:
    # The true shares: pixels need not divide evenly into steps.
    shares = torch.tensor(_counts(pixels, curve.shape[1] - 1), dtype=curve.dtype, device=curve.device) / pixels
    return torch.trapezoid(curve, shares, dim=1)


def _probabilities(
    model: nn.Module, images: Tensor, target_index: TargetIndex, points: int, perturb: Perturb, batch_size: int
) -> Float[Tensor, "batch point"]:
    """The target's probability at each point of each image's curve, at most `batch_size` of them at once."""
    check_images(images)
    _at_least_one("batch_size", batch_size)
    index = _indices(target_index, len(images)).to(images.device)
    jobs = torch.arange(len(images) * points, device=images.device)
    found = []
    with torch.no_grad(), _left_as_it_was(model, images.device):
        for chunk in torch.split(jobs, batch_size):
            image = chunk // points
            logits = class_scores(logits_of(model(perturb(image, chunk % points))), "target_index")
            found.append(_probability(wide(logits), index[image]))
    return torch.cat(found).reshape(len(images), points)


def _probability(logits: Float[Tensor, "job classes"], index: Int[Tensor, "job"]) -> Float[Tensor, "job"]:
    if len(logits) != len(index):
        raise OutputError(
            f"The model's output has {len(logits)} rows for {len(index)} images; its first axis must be the batch."
        )
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(
            "model gives one value per image, whose softmax is always 1; wrap it so that it returns two logits, "
            "such as torch.cat([-logit, logit], 1) / 2."
        )
    outside = index[(index < 0) | (index >= classes)]
    if len(outside):
        raise InputError(
            f"target_index {outside[0].item()} is out of range: the model has {classes} outputs, 0 to {classes - 1}."
        )
    if not logits.isfinite().all():
        raise OutputError("The model's output holds NaN or infinite values for a perturbed image; run it in float32.")
    return logits.softmax(1).gather(1, index[:, None])[:, 0]


@contextmanager
def _left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with evaluation(model), preserved_randomness(device), preserved_buffers(model):
            yield
    finally:
        for buffer, value in before:
            # Only where the network wrote to it: a gradient still to come may need it untouched.
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _indices(target_index: TargetIndex, batch: int) -> Int[Tensor, "batch"]:
    wanted = f"target_index must be one class index, or one per image, integers of shape ({batch},)"
    if isinstance(target_index, Tensor):
        if target_index.is_floating_point() or target_index.is_complex() or target_index.dtype == torch.bool:
            raise InputError(f"{wanted}, but got {target_index.dtype}.")
        target_index = target_index.tolist()
    given: list[Any] = list(target_index) if isinstance(target_index, Sequence) else [target_index] * batch
    try:
        indices = [operator.index(each) for each in given]
    except TypeError:
        raise InputError(f"{wanted}, but got {target_index!r}.") from None
    if any(isinstance(each, bool) for each in given):
        raise InputError(f"{wanted}, but got {target_index!r}.")
    if len(indices) != batch:
        raise InputError(f"{wanted}, but got {len(indices)} of them for {batch} images.")
    return torch.tensor(indices)


def _at_least_one(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{argument} must be a whole number of at least 1, but got {value!r}.")


def _like(per_job: Tensor, values: Tensor) -> Tensor:
    """(job,) shaped to broadcast over (job, *space)."""
    return per_job.reshape(-1, *[1] * (values.ndim - 1))
