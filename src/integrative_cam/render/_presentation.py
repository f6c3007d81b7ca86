"""Maps as they are shown: each layer's map smoothed at its own resolution. The numbers stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

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
    return explanation.map.detach() if raw else explanation.fuse(change=smoothed)


@torch.no_grad()
def presented_layer(explanation: Explanation, index: int, raw: bool = False) -> Float[Tensor, "batch *layer_space"]:
    """A layer's signed maps as they are shown, at its own resolution; `raw`: `explanation.layers[index].map`."""
    found = explanation.layers[index].map.detach()
    return found if raw else smoothed(found)


def check_sample(explanation: Explanation, sample: int) -> None:
    """Raise InputError unless the explanation has that image."""
    if not 0 <= sample < len(explanation.map):
        raise InputError(f"sample must be from 0 to {len(explanation.map) - 1}, one of the images, but got {sample}.")
