"""ROAD: remove and debias (arXiv:2202.00449). Pixels are imputed by rank, so that their absence is no hint itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._maps.evidence import expand_like
from ..errors import InputError
from ._perturbation import check_together, imputed, order
from ._probabilities import TargetIndex, target_probabilities

if TYPE_CHECKING:
    from jaxtyping import Float

SHARES = (0.2, 0.4, 0.6, 0.8)
"""The shares of pixels that ROAD removes: the percentiles 80, 60, 40 and 20 of a map."""


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
    return _road(model, images, maps, target_index, shares, noise, generator, batch_size, most=True)


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
    return _road(model, images, maps, target_index, shares, noise, generator, batch_size, most=False)


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


def _road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target_index: TargetIndex,
    shares: Sequence[float],
    noise: float,
    generator: torch.Generator | None,
    batch_size: int,
    most: bool,
) -> Tensor:
    check_together(images, maps, dims=2)
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares must hold at least one number above 0 and below 1, but got {shares!r}.")
    pixels = maps[0].numel()
    first = order(maps) if most else order(maps).flip(1)
    ranks = first.argsort(1).reshape(maps.shape)
    counts = torch.tensor([min(round(share * pixels), pixels - 1) for share in shares], device=images.device)

    def perturb(image: Tensor, point: Tensor) -> Tensor:
        return imputed(images[image], ranks[image] < expand_like(counts[point], ranks), noise, generator)

    return target_probabilities(model, images, target_index, len(shares), perturb, batch_size).mean(1)
