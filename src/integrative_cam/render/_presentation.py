"""Maps as they are shown: each layer's map smoothed at its own resolution. The numbers stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .._maps.fusion import by_magnitude, fuse
from ..errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation import Explanation


_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def smoothed(values: Float[Tensor, "batch *space"]) -> Float[Tensor, "batch *space"]:
    """Along each axis (previous + 2 value + next) / 4, the border repeated: sums stay, a checkerboard vanishes."""
    axes = values.ndim - 1
    # The mean of two neighbours, twice.
    padded = F.pad(values[:, None], [1, 1] * axes, mode="replicate")
    return _MEAN[axes](_MEAN[axes](padded, 2, 1), 2, 1)[:, 0]


@torch.no_grad()
def presented(explanation: Explanation, raw: bool = False) -> Float[Tensor, "batch *space"]:
    """The fused maps as they are shown, in [0, 1], maximum 1 or blank: fused again from the layers' smoothed maps.

    Early layers answer pixel by pixel and speckle; of neighbours of one layer the mean is shown. A map that no recipe
    fused is smoothed itself. `raw`: `explanation.map`.
    """
    if raw:
        return explanation.map.detach()
    recipe = explanation.recipe
    found = [layer.map for layer in explanation.layers] + [layer.map for layer in explanation.bias_layers]
    if recipe is None or not found:
        return by_magnitude(smoothed(explanation.map))
    tap_share = 1 - recipe.bias_share if explanation.bias_layers else 1.0
    taps = [layer.weight * tap_share for layer in explanation.layers]
    maps = [smoothed(each) for each in found]
    weights = [*taps, *(layer.weight for layer in explanation.bias_layers)]
    # Of several inputs, a tap that does not lead to the mapped one has no weight and no part in the fusion.
    one = explanation.streams is None
    used = [index for index, weight in enumerate(weights) if one or bool(weight.any())]
    return fuse(
        [maps[index] if recipe.signed else maps[index].relu() for index in used],
        torch.stack([weights[index] for index in used], 1),
        tuple(explanation.map.shape[1:]),
        recipe.fusion,
        recipe.gamma,
    )


@torch.no_grad()
def presented_layer(explanation: Explanation, index: int, raw: bool = False) -> Float[Tensor, "batch *layer_space"]:
    """A layer's signed maps as they are shown, at its own resolution; `raw`: `explanation.layers[index].map`."""
    found = explanation.layers[index].map.detach()
    return found if raw else smoothed(found)


def check_sample(explanation: Explanation, sample: int) -> None:
    """Raise InputError unless the explanation has that image."""
    if not 0 <= sample < len(explanation.map):
        raise InputError(f"sample must be from 0 to {len(explanation.map) - 1}, one of the images, but got {sample}.")
