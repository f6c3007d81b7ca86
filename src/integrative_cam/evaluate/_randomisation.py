"""Does the map depend on what the network has learned, and on the class? Maps of redrawn parameters, of other classes.

The model-parameter randomisation test of Adebayo et al. (arXiv:1810.03292): a map that stays the same when the
network forgets shows the image, not the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._plan.model_state import preserved_randomness, unwrapped
from ..errors import InputError, first_line
from ..methods._registry import Explainer
from ..recipe import one_of
from ._perturbation import check_maps
from ._probabilities import TargetIndex, class_indices, class_logits, left_as_it_was
from ._simplicity import check_alike, correlation
from ._statistics import ranks

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from ._shapes import Images, Maps, PerImage

OTHERS = ("second", "unrelated")
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of a network's layers, redrawn one after the other by `randomisation_curve`."""


def randomisation(
    model: nn.Module,
    images: Images,
    method: Explainer,
    target_index: TargetIndex,
    share: float = 0.5,
    seed: int = 0,
) -> PerImage:
    """`randomisation_curve` at one share of the layers."""
    return randomisation_curve(model, images, method, target_index, (share,), seed)[:, 0]


def randomisation_curve(
    model: nn.Module,
    images: Images,
    method: Explainer,
    target_index: TargetIndex,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> Float[Tensor, "batch share"]:
    """`rank_correlation` of a method's maps with those that it makes once the top layers are redrawn.

    -1 to 1; lower is better: about 0 says that the map depends on what was learned. A method whose maps are constant
    gets 0 too, so read it beside a measure of faithfulness. With rising `shares` of the layers, this is the paper's
    cascade from the output to the input: each network keeps what was drawn for the one before. `shares` and `seed` are
    those of `randomised`, which copies the model; other arguments: see `integrative_cam.evaluate`.

    Raises:
        InputError: see `randomised`.
        CamError: see `explain`.
    """
    for share in shares:
        _check_share(share)
    if not shares:
        raise InputError("shares must hold at least one number above 0 and at most 1, but is empty.")
    maps = method(model, images, target_index).map
    correlations = [
        rank_correlation(maps, method(randomised(model, share, seed), images, target_index).map) for share in shares
    ]
    return torch.stack(correlations, 1)


def class_dependence(
    model: nn.Module, images: Images, method: Explainer, target_index: TargetIndex, other: str = "unrelated"
) -> PerImage:
    """Pearson's correlation of the class's map with that of another class, -1 to 1; lower is better (arXiv:2506.07327).

    A map that looks the same for any class shows what is in the image, not why the network chose. 0 where either map
    is constant, as a blank one is. The `other` class is chosen by the network's scores: "second", the highest besides
    the target; or "unrelated", the median of all others, neither a rival nor a class that the image speaks against.
    Other arguments and errors: see `integrative_cam.evaluate`.
    """
    index = class_indices(target_index, len(images)).to(images.device)
    with torch.no_grad(), left_as_it_was(model, images.device):
        logits, _ = class_logits(model, images.clone())
    maps = method(model, images, index).map
    return correlation(maps, method(model, images, other_class(logits, index, other)).map)


def other_class(
    logits: Float[Tensor, "batch classes"], index: Int[Tensor, "batch"], other: str
) -> Int[Tensor, "batch"]:
    """The class that `class_dependence` compares with."""
    one_of("other", other, dict.fromkeys(OTHERS))
    if logits.shape[1] < 2:
        raise InputError("model has one class; class dependence compares the maps of two.")
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    others = ranked[ranked != index[:, None]].reshape(len(logits), -1)
    # Of two in the middle, the less likely one.
    place = 0 if other == "second" else others.shape[1] // 2
    return others[:, place]


def rank_correlation(maps: Maps, others: Maps) -> PerImage:
    """Spearman's rank correlation of each map with its other, -1 to 1; equal values share the mean of their ranks.

    0 where either is constant, as a blank map is: without an order there is none to agree with.

    >>> rank_correlation(torch.tensor([[0.1, 0.2, 0.9]]), torch.tensor([[0.0, 0.7, 0.8]]))
    tensor([1.0000])

    Raises:
        InputError: shapes differ, or maps are not finite.
    """
    check_maps(maps)
    check_maps(others)
    check_alike("maps", maps, "others", others)
    return correlation(ranks(maps.flatten(1)), ranks(others.flatten(1)))


def randomised(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """A copy of the model whose top round(share n) of n layers, at least one, have forgotten what they learned.

    A layer is a module with parameters or running statistics of its own; the top layers are the last ones in
    `model.modules()`. A layer is redrawn by its `reset_parameters`: torch's own initialisation, and for batch norm
    also running mean 0 and variance 1, which were learned too. A parameter that this does not change is drawn from
    the normal distribution of its own mean and standard deviation.

    Layers are drawn from the output down, on the CPU: a larger share keeps the draws of a smaller one, and a seed
    gives the same network on every device. Other random numbers are left alone.

    Args:
        model: any; left as it was. Of a compiled model the copy is not compiled.
        share: of the layers, above 0 and at most 1.
        seed: of the draws.

    Raises:
        InputError: share is out of range, or the model is no module, cannot be copied or has no layers.
    """
    _check_share(share)
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    # Outside of inference mode, or the copy's parameters could not take part in a gradient.
    with torch.inference_mode(False), torch.no_grad(), preserved_randomness(torch.device("cpu")):
        try:
            forgetful = copy.deepcopy(unwrapped(model))
        except Exception as error:
            raise InputError(f"model must be one that copy.deepcopy can copy, but: {first_line(error)}") from error
        layers = [module for module in forgetful.modules() if _learns(module)]
        if not layers:
            raise InputError("model must have a layer with parameters to redraw, but has none.")
        torch.default_generator.manual_seed(seed)
        for layer in layers[::-1][: max(1, round(share * len(layers)))]:
            _redraw(layer)
    return forgetful


def _learns(module: nn.Module) -> bool:
    own = any(True for _ in module.parameters(recurse=False))
    return own or (hasattr(module, "reset_parameters") and any(True for _ in module.buffers(recurse=False)))


def _redraw(layer: nn.Module) -> None:
    device = next(chain(layer.parameters(recurse=False), layer.buffers(recurse=False))).device
    layer.cpu()
    before = [parameter.clone() for parameter in layer.parameters(recurse=False)]
    if callable(reset := getattr(layer, "reset_parameters", None)):
        reset()
    for parameter, value in zip(layer.parameters(recurse=False), before, strict=True):
        if parameter.is_floating_point() and torch.equal(parameter, value):
            parameter.normal_(value.mean().item(), value.std(correction=0).item())
    layer.to(device)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, but got {share!r}.")
