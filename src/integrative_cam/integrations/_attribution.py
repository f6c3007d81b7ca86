"""Methods in the form that captum and Quantus call: attributions of the images' shape, arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from .._maps.evidence import expand_like
from .._maps.fusion import by_magnitude, resize
from ..errors import InputError
from ..explanation import Explanation
from ..methods._registry import Explainer, get_method
from ..targets import Target

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])

INTEGRATIVE = get_method("integrative")


@dataclass(frozen=True)
class Attribution:
    """A method as captum's attribution objects: give `attribute` to `captum.metrics.sensitivity_max`.

    >>> attribution = Attribution(model, get_method("layercam"))
    >>> sensitivity_max(attribution.attribute, images, target=0)
    """

    model: nn.Module
    method: Explainer = INTEGRATIVE

    def attribute(self, inputs: Inputs, target: Target = None) -> Inputs:
        """The signed map of each image, spread evenly over its channels; see `signed_map` and `spread`.

        A map says where, not in which channel: the sum over the channels is the map.

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
        return spread(signed_map(self.method(self.model, inputs, target)), inputs)


def explain_func(
    model: nn.Module,
    inputs: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any] | Sequence[int] | int | None,
    explainer: Explainer = INTEGRATIVE,
    **_: Any,
) -> np.ndarray[Any, Any]:
    """A method in Quantus' form: `metric(..., explain_func=explain_func, explain_func_kwargs={"explainer": ...})`.

    The images go to the model's own device and dtype. Other keyword arguments, such as the device that Quantus
    hands over, are not needed.

    Args:
        model: the network.
        inputs: (batch, channel, *space).
        targets: a class index per image, or one for all; None for each image's own top class.
        explainer: one of `list_methods()`, or any callable like them.

    Returns:
        (batch, 1, *space): the signed map of each image; see `signed_map`. Quantus repeats it for each channel.

    Raises:
        CamError: see `explain`.
    """
    weight = next((each for each in model.parameters() if each.is_floating_point()), torch.zeros(0))
    images = torch.as_tensor(inputs).to(weight.device, weight.dtype)
    target = None if targets is None else torch.as_tensor(targets)
    found: np.ndarray[Any, Any] = signed_map(explainer(model, images, target))[:, None].cpu().numpy()
    return found


def signed_map(explanation: Explanation) -> Float[Tensor, "batch *space"]:
    """The map before it was cut at zero, divided by its largest magnitude: in [-1, 1], evidence against below 0.

    Cut at zero, divided by its maximum and raised to `recipe.gamma` it is `explanation.map`. Only recipes with
    signed=True and fusion="sum" keep evidence against the target until the end; of others this is `explanation.map`
    itself.
    """
    recipe = explanation.recipe
    if recipe is None or not recipe.signed or recipe.fusion != "sum":
        return explanation.map
    share = 1 - recipe.bias_share if explanation.bias_layers else 1.0
    # Layers of other inputs may have other axes; they have no weight in this map.
    parts = [
        (layer.map, share * layer.weight) for layer in explanation.layers if layer.map.ndim == explanation.map.ndim
    ]
    parts += [(layer.map, layer.weight) for layer in explanation.bias_layers]
    total = torch.zeros_like(explanation.map)
    for values, weight in parts:
        total = total + expand_like(weight, total) * resize(by_magnitude(values), tuple(total.shape[1:]))
    return by_magnitude(total)


def spread(
    maps: Float[Tensor, "batch *space"], images: Float[Tensor, "batch channel *space"]
) -> Float[Tensor, "batch channel *space"]:
    """Each position's value in equal parts over the channels of the images."""
    channels = images.shape[1] if images.ndim > maps.ndim else 1
    parts = (maps / channels).reshape(len(maps), *[1] * (images.ndim - maps.ndim), *maps.shape[1:])
    return parts.expand_as(images).contiguous()
