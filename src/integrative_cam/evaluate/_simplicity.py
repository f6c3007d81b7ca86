"""How much of the image a map covers, how rough it is, how it holds up; and the means of these with faithfulness.

Maps are (batch, *space) and finite, or InputError is raised; each function returns one value per image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._maps.blocks import at_least_float32
from .._maps.evidence import expand_like
from .._maps.fusion import by_magnitude
from ..errors import InputError
from ._perturbation import check_maps

if TYPE_CHECKING:
    from jaxtyping import Float

    from ._shapes import Maps, PerImage


def complexity(maps: Maps) -> PerImage:
    """mean|map|, 0 to 1 for maps in [0, 1]; lower is simpler (ADCC, arXiv:2104.10252).

    >>> complexity(torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]))
    tensor([0.5000])
    """
    check_maps(maps)
    return at_least_float32(maps).abs().flatten(1).mean(1)


def area(maps: Maps) -> PerImage:
    """Share of the positions above half of the map's maximum, 0 to 1; a blank map has 0, a constant one 1.

    >>> area(torch.tensor([[[0.0, 1.0], [0.5, 0.75]]]))
    tensor([0.5000])
    """
    check_maps(maps)
    flat = at_least_float32(maps).flatten(1)
    half = flat.amax(1, keepdim=True) / 2
    return (flat > half).to(flat.dtype).mean(1)


def total_variation(maps: Maps) -> PerImage:
    """Mean of |difference| over all pairs of direct neighbours, at the map's own size; a single position has 0.

    It depends on the resolution: compare maps of one size only.

    >>> total_variation(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]))
    tensor([0.5000])
    """
    check_maps(maps)
    values = at_least_float32(maps)
    steps = [values.diff(dim=axis).abs().flatten(1) for axis in range(1, values.ndim)]
    pairs = torch.cat(steps, 1)
    return pairs.sum(1) / max(pairs.shape[1], 1)


def coherency(maps: Maps, maps_of_masked_images: Maps) -> PerImage:
    """(r + 1) / 2, r the Pearson correlation of a map and the map of its image multiplied by it (arXiv:2104.10252).

    0 to 1; higher is better. Where either map is constant there is no r and 0 is taken, which gives 1/2: a flat
    map earns nothing for staying flat.

    >>> coherency(torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3))
    tensor([0.5000])
    """
    check_maps(maps)
    check_maps(maps_of_masked_images)
    check_alike("maps", maps, "maps_of_masked_images", maps_of_masked_images)
    return (correlation(maps, maps_of_masked_images) + 1) / 2


def correlation(left: Float[Tensor, "batch ..."], right: Float[Tensor, "batch ..."]) -> PerImage:
    """Pearson's correlation of each row of `left` with that of `right`, -1 to 1; 0 where either is constant."""
    return (_standardised(left) * _standardised(right)).sum(1).clamp(-1, 1)


def adcc(drop: PerImage, coherency: PerImage, complexity: PerImage) -> PerImage:
    """Harmonic mean of coherency, 1 - complexity and 1 - average drop, 0 to 1; higher is better (arXiv:2104.10252).

    0 where a part is 0.

    >>> adcc(drop=torch.tensor([0.5]), coherency=torch.tensor([0.5]), complexity=torch.tensor([0.5]))
    tensor([0.5000])

    Raises:
        InputError: lengths differ, or a part lies outside of [0, 1].
    """
    for name, values in {"drop": drop, "coherency": coherency, "complexity": complexity}.items():
        _check_part(name, values, drop, 0, 1)
    return _harmonic_mean(coherency, 1 - complexity, 1 - drop)


def arcc(road: PerImage, coherency: PerImage, complexity: PerImage) -> PerImage:
    """Harmonic mean of coherency, 1 - complexity and ROAD, 0 to 1; higher is better (arXiv:2605.14641).

    `road` is (LeRF - MoRF) / 2, from -1/2 to 1/2; it is doubled and cut to [0, 1]. 0 where a part is 0.

    >>> arcc(road=torch.tensor([0.25]), coherency=torch.tensor([0.5]), complexity=torch.tensor([0.5]))
    tensor([0.5000])

    Raises:
        InputError: lengths differ, or a part lies outside of its range.
    """
    _check_part("road", road, road, -0.5, 0.5)
    for name, values in {"coherency": coherency, "complexity": complexity}.items():
        _check_part(name, values, road, 0, 1)
    return _harmonic_mean(coherency, 1 - complexity, (2 * road).clamp(0, 1))


def _standardised(maps: Tensor) -> Float[Tensor, "batch position"]:
    """Mean 0 and norm 1; zeros for a constant map."""
    flat = at_least_float32(maps).flatten(1)
    # By its range, since the mean of equal numbers may miss them by a rounding error.
    constant = flat.amax(1) == flat.amin(1)
    # Divided by the largest magnitude first, since squares of very small numbers vanish.
    centred = by_magnitude(flat - flat.mean(1, keepdim=True))
    norm = torch.where(constant, 1, centred.norm(dim=1))
    return torch.where(constant[:, None], 0, centred / expand_like(norm, centred))


def _harmonic_mean(*parts: PerImage) -> PerImage:
    stacked = torch.stack(parts)
    mean = len(parts) / stacked.clamp_min(torch.finfo(stacked.dtype).tiny).reciprocal().sum(0)
    return torch.where((stacked > 0).all(0), mean, 0)


def _check_part(name: str, values: Tensor, first: Tensor, low: float, high: float) -> None:
    check_alike("the first part", first, name, values)
    if not ((values >= low) & (values <= high)).all():
        raise InputError(
            f"{name} must lie in [{low}, {high}], but reaches from {values.min():.4g} to {values.max():.4g}; "
            "compute it on maps that are divided by their maximum."
        )


def check_alike(first: str, left: Tensor, second: str, right: Tensor) -> None:
    """Raise InputError unless both have one shape."""
    if left.shape != right.shape:
        raise InputError(
            f"{first} and {second} must have one shape, but have {tuple(left.shape)} and {tuple(right.shape)}."
        )
