"""Our methods in the form that captum and Quantus call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..methods._registry import Explainer, get_method
from ..targets import Target

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])

INTEGRATIVE = get_method("integrative")


@dataclass(frozen=True)
class Attribution:
    """A method as an attribution object of captum; its metrics take `attribute`.

    >>> attribution = Attribution(model, get_method("layercam"))
    >>> sensitivity_max(attribution.attribute, images, target=0)
    """

    model: nn.Module
    method: Explainer = INTEGRATIVE

    def attribute(self, inputs: Inputs, target: Target = None) -> Inputs:
        """The signed map of each image (`Explanation.signed_map`), spread evenly over its channels.

        A map has no channels: the sum of the attributions over the channels is the map.

        Args:
            inputs: (batch, channel, *space), or a tuple of one such tensor, for which a tuple comes back.
            target: None (each image's own top class), a class index, one per image, or a callable.

        Raises:
            InputError: a tuple of several tensors.
            CamError: see `explain`.
        """
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise InputError(f"inputs must be one tensor or a tuple of one, but got {len(inputs)}.")
            return (self.attribute(inputs[0], target),)
        return spread_over_channels(self.method(self.model, inputs, target).signed_map, inputs)


def explain_func(
    model: nn.Module,
    inputs: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any] | Sequence[int] | int | None,
    explainer: Explainer = INTEGRATIVE,
    **_: Any,
) -> np.ndarray[Any, Any]:
    """A method in Quantus' form: `metric(..., explain_func=explain_func, explain_func_kwargs={"explainer": ...})`.

    The images are moved to the model's own device and dtype. Other keyword arguments, such as the device that Quantus
    passes, are ignored.

    Args:
        model: the network.
        inputs: (batch, channel, *space).
        targets: a class index per image, or one for all; None for each image's own top class.
        explainer: one of `list_methods()`, or any callable like them.

    Returns:
        (batch, 1, *space): the signed map of each image, `Explanation.signed_map`. Quantus repeats it for each channel.

    Raises:
        CamError: see `explain`.
    """
    weight = next((values for values in model.parameters() if values.is_floating_point()), torch.zeros(0))
    images = torch.as_tensor(inputs).to(weight.device, weight.dtype)
    target = None if targets is None else torch.as_tensor(targets)
    maps: np.ndarray[Any, Any] = explainer(model, images, target).signed_map[:, None].cpu().numpy()
    return maps


def spread_over_channels(
    maps: Float[Tensor, "batch *space"], images: Float[Tensor, "batch channel *space"]
) -> Float[Tensor, "batch channel *space"]:
    """Each position's value divided equally among the channels of the images."""
    channels = images.shape[1] if images.ndim > maps.ndim else 1
    parts = (maps / channels).reshape(len(maps), *[1] * (images.ndim - maps.ndim), *maps.shape[1:])
    return parts.expand_as(images).contiguous()
