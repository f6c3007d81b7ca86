"""Controls: maps that do not depend on the network, which every method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._call import trace
from .._maps.fusion import by_magnitude
from ..cam import explanation_from_map
from ..explanation import Explanation
from ..targets import Target
from ._registry import Method

if TYPE_CHECKING:
    from jaxtyping import Float

TIMES_NOISE = "-times-noise"
"""Ends the names of the controls that `times_noise` makes."""


def random_cam(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """Uniform noise per pixel, seeded by the image's own values.

    An image gets the same map in any batch, on any device and for any target; another image gets another map.
    """
    traced = trace(model, images, target, "last")
    maps = [random_maps(1, traced.input_space, torch.Generator().manual_seed(_seed(image))) for image in images]
    return explanation_from_map(traced, torch.cat(maps).to(traced.score))


def centre_cam(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """`centre_map` for every image."""
    traced = trace(model, images, target, "last")
    return explanation_from_map(
        traced, centre_map(traced.input_space).to(traced.score).expand(len(images), *traced.input_space)
    )


def uniform_cam(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """One at every position."""
    traced = trace(model, images, target, "last")
    return explanation_from_map(traced, traced.score.new_ones(len(images), *traced.input_space))


def times_noise(method: Method) -> Method:
    """The method's map times the noise of `random_cam`: as rough as noise, and no more faithful than the method.

    A metric that rises by it rewards roughness. The map has no sign: `signed_map` is the map.
    """
    return Method(method.name + TIMES_NOISE, f"the map of {method.name} times noise", "control", _TimesNoise(method))


@dataclass(frozen=True)
class _TimesNoise:
    """The way of `times_noise`."""

    method: Method

    def __call__(self, model: nn.Module, images: Tensor, target: Target = None) -> Explanation:
        explanation = self.method(model, images, target)
        size = explanation.map.shape[1:]
        noise = [random_maps(1, size, torch.Generator().manual_seed(_seed(image))) for image in images]
        noisy = by_magnitude(explanation.map * torch.cat(noise).to(explanation.map))
        return replace(explanation, map=noisy, layers=(), bias_layers=(), recipe=None, streams=None)

    def for_task(self, task: str) -> _TimesNoise:
        """The control of the method as it explains networks of that task."""
        return _TimesNoise(self.method.for_task(task))


def centre_map(size: Sequence[int]) -> Float[Tensor, "*space"]:
    """A Gaussian around the centre with a sigma of a quarter of each side and maximum 1: objects are often there."""
    axes = [(torch.arange(length) - (length - 1) / 2) / (length / 4) for length in size]
    squared = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    density = (-0.5 * squared).exp()
    return density / density.max()


def random_maps(n: int, size: Sequence[int], generator: torch.Generator) -> Float[Tensor, "n *space"]:
    """Uniform noise in [0, 1), on the generator's device."""
    return torch.rand(n, *size, generator=generator, device=generator.device, dtype=torch.float32)


def _seed(image: Tensor) -> int:
    """A number from the bits of all values and their places; integer sums do not depend on the order of summation."""
    bits = image.detach().float().contiguous().view(torch.int32).flatten().long()
    total = int((bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum())
    return total % (2**32 - 5)  # a prime: the generator takes 32 bits, and all 64 have to count
