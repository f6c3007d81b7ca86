"""Which axes of a network's input are what, read from its shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CHANNELS = (1, 3)
"""Of pictures: greyscale and colour."""


class ChannelsLast(nn.Module):
    """Takes images with channels first to a model that wants (batch, height, width, channel)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Any:
        """What the model returns."""
        return self.model(images.permute(0, 2, 3, 1))


def image_axes(shape: Sequence[int | None], said: str) -> tuple[int, tuple[int | None, int | None], bool]:
    """Channels, (height, width) and whether the channels come last; None stands for an axis of any length.

    Raises:
        ModelError: not a batch of greyscale or colour pictures.
    """
    if len(shape) == 4:
        if shape[1] in CHANNELS:
            return shape[1] or 0, (shape[2], shape[3]), False
        if shape[3] in CHANNELS:
            return shape[3] or 0, (shape[1], shape[2]), True
    shown = ", ".join("any" if side is None else str(side) for side in shape)
    raise ModelError(
        f"{said}: takes input of shape ({shown}), not (batch, 1 or 3, height, width) or (batch, height, width, "
        "1 or 3). Write FILE.py with a factory that returns the module, and give it its input in Python."
    )
