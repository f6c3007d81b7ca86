"""What is put in place of removed pixels, and which pixels go first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .._maps.blocks import at_least_float32
from ..errors import InputError
from ._imputation import harmonic

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Baseline = Callable[[Tensor], Tensor]
"""Takes images (batch, channel, *space) and gives what is left of them when every pixel is removed; same shape."""

Fill = Callable[[Tensor, Tensor], Tensor]
"""Takes numbers of images, (job,), and where pixels are removed, (job, *space); gives these images without them."""

_TIES = 0
"""The seed of the permutation that breaks ties."""


def zeros(images: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel *space"]:
    """Zero everywhere: the data set's mean colour, in normalised images."""
    return torch.zeros_like(images)


def mean_of(images: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel *space"]:
    """Each image's own mean per channel, everywhere."""
    mean = images.flatten(2).mean(2)
    return mean.reshape(*mean.shape, *[1] * (images.ndim - 2)).expand_as(images).clone()


def blurred(
    images: Float[Tensor, "batch channel height width"], sigma: float = 10.0
) -> Float[Tensor, "batch channel height width"]:
    """Gaussian blur; `sigma` in pixels, > 0, cut off at three sigma, the border repeated outwards.

    10 is the strength of Fong and Vedaldi (arXiv:1704.03296).

    Raises:
        InputError: images are not (batch, channel, height, width), or sigma is not above 0.
    """
    check_images(images, dims=2)
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma must be a finite number of pixels above 0, but got {sigma!r}.")
    batch, channels, height, width = images.shape
    values = at_least_float32(images)
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    planes = values.reshape(batch * channels, 1, height, width)
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), "replicate"), kernel.reshape(1, 1, 1, -1))
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), "replicate"), kernel.reshape(1, 1, -1, 1))
    return planes.reshape(images.shape).to(images.dtype)


def imputed(
    images: Float[Tensor, "batch channel height width"],
    removed: Bool[Tensor, "batch height width"],
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel height width"]:
    """Noisy linear imputation: each removed pixel is the weighted mean of its neighbours (ROAD, arXiv:2202.00449).

    The weights are 1/6 for the four direct and 1/12 for the four diagonal neighbours, renormalised at the border.
    The system is symmetric and positive definite; each image and channel is solved to `imputation.TOLERANCE`
    whatever its neighbours in the batch need. No gradient flows into imputed pixels.

    Args:
        images: (batch, channel, height, width).
        removed: True where a pixel is to be replaced; at least one pixel of each image must stay.
        noise: standard deviation of the normal noise added to imputed pixels, in the images' unit; ROAD has 0.01.
        generator: draws that noise, so that results can be repeated.

    Raises:
        InputError: shapes or dtypes do not fit, an image keeps no pixel, or noise comes without a generator.
    """
    check_images(images, dims=2)
    if removed.dtype != torch.bool or removed.shape != (len(images), *images.shape[2:]):
        raise InputError(
            f"removed must be boolean of shape (batch, height, width) = {(len(images), *images.shape[2:])}, "
            f"but got {removed.dtype} of shape {tuple(removed.shape)}."
        )
    if removed.flatten(1).all(1).any():
        raise InputError("removed takes every pixel of an image; keep at least one to impute the others from.")
    if noise and generator is None:
        raise InputError(f"noise={noise} needs a generator; give torch.Generator().manual_seed(0), for instance.")
    missing = removed[:, None]
    filled = harmonic(at_least_float32(images), missing)
    if noise and generator is not None:
        drawn = torch.randn(filled.shape, generator=generator, dtype=filled.dtype, device=generator.device)
        filled = filled + noise * drawn.to(filled.device)
    return torch.where(missing, filled.to(images.dtype), images)


@dataclass(frozen=True)
class NoisyLinear:
    """A baseline made anew from the pixels that are still there, at every step of a curve: `imputed` with noise.

    The noise is drawn once and is the same for every image and step, so that no value depends on the batch.

    Args:
        noise: its standard deviation, in the images' unit; ROAD (arXiv:2202.00449) has 0.01.
        seed: of the noise.
    """

    noise: float = 0.01
    seed: int = 0

    def __call__(
        self, images: Float[Tensor, "batch channel height width"], removed: Bool[Tensor, "batch height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """The images with `removed` pixels imputed; arguments and errors as for `imputed`."""
        filled = imputed(images, removed)
        drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return torch.where(removed[:, None], filled + self.noise * drawn.to(filled), images)


def filling(images: Float[Tensor, "batch channel *space"], baseline: Baseline | NoisyLinear) -> Fill:
    """Puts the baseline in place of removed pixels; `NoisyLinear` imputes them from those that are left.

    Raises:
        InputError: the baseline does not give images again.
    """
    if isinstance(baseline, NoisyLinear):
        return lambda image, removed: baseline(images[image], removed)
    with torch.no_grad():
        background = baseline(images)
    if not isinstance(background, Tensor) or background.shape != images.shape or background.dtype != images.dtype:
        came = f"{background.dtype} of {tuple(background.shape)}" if isinstance(background, Tensor) else background
        raise InputError(f"baseline must give images again, {images.dtype} of {tuple(images.shape)}, but gave {came}.")
    return lambda image, removed: torch.where(removed[:, None], background[image], images[image])


def order(maps: Float[Tensor, "batch *space"]) -> Int[Tensor, "batch position"]:
    """Flat positions from the highest to the lowest value of each map.

    Equal values follow one fixed random permutation, the same for every map of a size and on every device. In reading
    order, ties would favour the top of the image: a blank map would reveal it row by row, and a coarse map would be
    credited or blamed for where its plateaus lie.

    >>> order(torch.tensor([[0.2, 0.9, 0.5]]))
    tensor([[1, 2, 0]])

    Raises:
        InputError: maps are not finite.
    """
    check_maps(maps)
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(_TIES)
    shuffle = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
    return shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]


def check_maps(maps: Tensor) -> None:
    """Raise InputError unless `maps` are finite floats of shape (batch, *space)."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        came = str(maps.dtype) if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"maps must be a floating-point tensor of shape (batch, *space), but got {came}.")
    if maps.ndim < 2 or maps.numel() == 0:
        raise InputError(f"maps must have shape (batch, *space) and be non-empty, but got {tuple(maps.shape)}.")
    if not maps.isfinite().all():
        broken = (~maps.flatten(1).isfinite().all(1)).nonzero()[0].item()
        raise InputError(f"maps hold NaN or infinite values, first in image {broken}; leave such images out.")


def check_images(images: Tensor, dims: int | None = None) -> None:
    """Raise InputError unless `images` are floats of shape (batch, channel, *space), of `dims` axes where given."""
    wanted = "(batch, channel, height, width)" if dims == 2 else "(batch, channel, *space)"
    if not isinstance(images, Tensor) or not images.is_floating_point():
        came = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be a floating-point tensor of shape {wanted}, but got {came}.")
    if images.ndim < 3 or images.numel() == 0 or (dims is not None and images.ndim != dims + 2):
        raise InputError(f"images must have shape {wanted} and be non-empty, but got {tuple(images.shape)}.")


def check_together(images: Tensor, maps: Tensor, dims: int | None = None) -> None:
    """Raise InputError unless there is one map per image, of its size and on its device."""
    check_images(images, dims)
    check_maps(maps)
    wanted = (len(images), *images.shape[2:])
    if tuple(maps.shape) != wanted:
        raise InputError(
            f"maps must have shape (batch, *space) = {wanted}, as the images, but got {tuple(maps.shape)}; "
            "torch.nn.functional.interpolate resizes them."
        )
    if maps.device != images.device:
        raise InputError(f"maps are on {maps.device}, the images on {images.device}; move one of them.")
