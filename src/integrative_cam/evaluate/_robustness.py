"""Infidelity and max-sensitivity (arXiv:1901.09392), computed by captum on our maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._maps.blocks import at_least_float32
from ..errors import InputError, OutputError, import_extra
from ..explanation import Explanation
from ..integrations._attribution import Attribution, spread_over_channels
from ..methods._registry import Explainer
from ._perturbation import check_images
from ._probabilities import TargetIndex, at_least_one, class_logits, left_as_it_was

if TYPE_CHECKING:
    from jaxtyping import Float

    from ._shapes import Images, PerImage

Perturbation = Callable[[Tensor, torch.Generator], Tensor]
"""Takes one image (channel, *space) and a generator on the CPU, and gives what is subtracted from the image."""


def removed_square(image: Float[Tensor, "channel *space"], generator: torch.Generator) -> Float[Tensor, "..."]:
    """The image inside a square (a cube in 3 dimensions) at a random place, else 0: the square turns to 0.

    Its side is a quarter of the shortest axis, at least 1 pixel.
    """
    space = image.shape[1:]
    side = max(1, min(space) // 4)
    inside = torch.zeros_like(image)
    at = [int(torch.randint(length - side + 1, (), generator=generator)) for length in space]
    square = (slice(None), *(slice(start, start + side) for start in at))
    inside[square] = image[square]
    return inside


def noise(image: Float[Tensor, "channel *space"], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Normal noise with a standard deviation of 0.2, in the images' unit."""
    return 0.2 * torch.randn(image.shape, generator=generator).to(image)


def infidelity(
    model: nn.Module,
    images: Images,
    method: Explainer,
    target_index: TargetIndex,
    perturbation: Perturbation = removed_square,
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 32,
) -> PerImage:
    """How far the map's own account of a perturbation I is from what it does to the score; lower is better.

    The mean of (beta <I, attribution> - (S(x) - S(x - I)))^2 over draws of I, with the signed map spread over the
    channels as attribution (`integrations.Attribution`) and S the target's logit; in squared logits, 0 at best. A map
    has no unit, so beta is the factor that fits it best (captum's `normalize`); it may be negative, and is 0 for a
    blank map. Images are normalised, so that 0 is the mean colour. Other arguments: see `integrative_cam.evaluate`.

    Args:
        perturbation: draws I; `removed_square`, `noise` or any such callable.
        samples: draws per image, at least 1.
        seed: of the draws, which are the same for images of one size, whatever the batch or `batch_size`.

    Raises:
        MissingExtraError: captum is not installed.
    """
    metric = import_extra("captum.metrics", "infidelity", "peers").infidelity
    sampling = _sampling(images, samples, batch_size)
    explanation = method(model, images, target_index)
    attributions = spread_over_channels(explanation.signed_map, images)

    def perturb(generator: torch.Generator, copies: Tensor) -> tuple[Tensor, Tensor]:
        removed = torch.stack([perturbation(copy, generator) for copy in copies])
        return removed, copies - removed

    def measure(image: Tensor, attribution: Tensor, index: int) -> Tensor:
        draw = partial(perturb, torch.Generator().manual_seed(seed))
        scores = partial(_scores, model, index)
        return metric(scores, draw, image[None].detach(), attribution[None], normalize=True, **sampling)  # type: ignore[no-any-return]

    with left_as_it_was(model, images.device):
        return torch.cat(list(map(measure, images, attributions, _classes(explanation))))


def max_sensitivity(
    model: nn.Module,
    images: Images,
    method: Explainer,
    target_index: TargetIndex,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 32,
) -> PerImage:
    """How far the map moves, at most, when uniform noise is added to the image; lower is better.

    The largest |map(x + noise) - map(x)| / |map(x)| over draws of noise in [-radius, radius], in the images' unit, with
    the signed map of the same class (`Explanation.signed_map`) and Euclidean norms; a blank map(x) is divided by 1.
    `radius` is above 0, by default captum's; other arguments and errors as for `infidelity`.
    """
    metric = import_extra("captum.metrics", "sensitivity_max", "peers").sensitivity_max
    sampling = _sampling(images, samples, batch_size)
    if not 0 < radius < float("inf"):
        raise InputError(f"radius must be a finite number above 0, but got {radius!r}.")

    def shake(generator: torch.Generator, copies: Tensor) -> Tensor:
        drawn = torch.stack([torch.rand(copy.shape, generator=generator) for copy in copies])
        return copies + radius * (2 * drawn.to(copies) - 1)

    def measure(image: Tensor, index: int) -> Tensor:
        draw = partial(shake, torch.Generator().manual_seed(seed))
        return metric(Attribution(model, method).attribute, image[None].detach(), draw, target=index, **sampling)  # type: ignore[no-any-return]

    return torch.cat(list(map(measure, images, _classes(method(model, images, target_index)))))


def _classes(explanation: Explanation) -> list[int]:
    if explanation.target is None:
        raise InputError("target_index must be one class index, or one per image, but the method explained no class.")
    return explanation.target.tolist()


def _scores(model: nn.Module, index: int, images: Tensor) -> Float[Tensor, "job"]:
    scores = at_least_float32(class_logits(model, images)[0])[:, index]
    if not scores.isfinite().all():
        raise OutputError("The score of a perturbed image is NaN or infinite; run the model in float32.")
    return scores


def _sampling(images: Tensor, samples: int, batch_size: int) -> dict[str, int]:
    """The checked arguments that captum's two metrics share."""
    check_images(images)
    at_least_one("samples", samples)
    at_least_one("batch_size", batch_size)
    return {"n_perturb_samples": samples, "max_examples_per_batch": min(batch_size, samples)}
