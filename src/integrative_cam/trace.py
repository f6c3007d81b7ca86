"""Run the model once, and its gradient once: everything that any map is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from . import graph, targets
from .capture import Candidate, Capture, Shift
from .errors import InputError, OutputError, TapError
from .guard import uncompiled, undisturbed
from .taps import Taps, may_want, select

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_HALF_GRADIENT_SCALE = 2.0**10
"""float16 gradients of early layers fall below its smallest number; a power of two is undone exactly."""


@dataclass(frozen=True)
class Tap:
    """One feature map and the gradient of the score with respect to that same tensor.

    Both have the network's dtype; `wide` gives them in float32 or better. `path_share`: of
    all the paths from the input to the score, the share that passes here.
    """

    name: str
    kind: str
    activation: Float[Tensor, "batch channel *space"]
    gradient: Float[Tensor, "batch channel *space"]
    path_share: Fraction

    @property
    def is_cut(self) -> bool:
        """Every path passes here."""
        return self.path_share == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, *space)."""
        return tuple(self.activation.shape[1:])


@dataclass(frozen=True)
class BiasSite:
    """A place where the network adds a constant: the gradient there, and `shift`, expanded to its shape.

    The space is empty behind global pooling: (batch, channel).
    """

    name: str
    gradient: Float[Tensor, "batch channel *space"]
    shift: Float[Tensor, "batch channel *space"]


@dataclass(frozen=True)
class Trace:
    """One forward and one gradient of a batch; detached, and independent of the model from here on.

    `behind[t, s]` is True where bias site s acts on a value computed from tap t. `input_product` is
    dS/dx times x, entry by entry. `index` holds the target classes, None where the target is a callable.
    """

    taps: tuple[Tap, ...]
    sites: tuple[BiasSite, ...]
    behind: Bool[Tensor, "tap site"]
    score: Float[Tensor, "batch"]
    output: Tensor
    index: Int[Tensor, "batch"] | None
    target_names: tuple[str, ...]
    input_product: Float[Tensor, "batch ..."]
    input_space: tuple[int, ...]

    @property
    def input_part(self) -> Float[Tensor, "batch"]:
        """<dS/dx, x>."""
        return self.input_product.flatten(1).sum(1)


def trace(
    model: nn.Module, images: Float[Tensor, "batch ..."], target: targets.Target = None, taps: Taps = "activations"
) -> Trace:
    """Forward once and differentiate the target's score once, leaving model, autograd and RNG as they were.

    A model in training mode runs in evaluation mode meanwhile. In-place operations, frozen parameters,
    `no_grad`, `inference_mode` around the call and autocast all work; a compiled model runs eagerly.

    Args:
        model: any module whose first argument is `images`.
        images: (batch, channel, *space), floating point, on the model's device.
        target: see `targets.score`.
        taps: see `taps.select`.

    Raises:
        InputError: images or model cannot be used as given.
        OutputError: not finite, without a tensor, or independent of the images.
        TargetError: the target does not name one scalar per sample.
        TapError: no feature map fits.
    """
    _check(model, images)
    model = uncompiled(model)
    with undisturbed(model, images.device) as before_write:
        leaf = images.detach().clone().requires_grad_()
        capture = Capture(model, len(images), may_want(taps), before_write)
        with capture:
            output = model(leaf.clone())
        scored = targets.score(output, target, len(images))
        del output
        _check_finite(scored)
        chosen = select(_mappable(capture.candidates, images.ndim), taps, capture.seen)
        return _differentiate(leaf, scored, chosen, capture.shifts)


def _differentiate(leaf: Tensor, scored: targets.Scored, chosen: Sequence[Candidate], shifts: Sequence[Shift]) -> Trace:
    if not scored.score.requires_grad:
        raise OutputError(
            "The score does not depend on the images: the model detaches its output, runs under no_grad or "
            "ignores its input."
        )
    total = scored.score.sum()
    scale = _HALF_GRADIENT_SCALE if torch.float16 in {each.value.dtype for each in chosen} else 1.0
    gradients = torch.autograd.grad(
        total * scale,
        [get_gradient_edge(leaf), *(each.edge for each in chosen), *(each.edge for each in shifts)],
        allow_unused=True,
    )
    at_input, *rest = (None if each is None else _unscaled(each, scale) for each in gradients)
    if at_input is None or total.grad_fn is None:
        raise OutputError("The score does not depend on the images: the model ignores its input.")
    at_taps, at_shifts = rest[: len(chosen)], rest[len(chosen) :]
    order = graph.towards_input(total.grad_fn)
    to_input = graph.paths_to(order, get_gradient_edge(leaf).node)
    reached = [
        (each, gradient)
        for each, gradient in zip(chosen, at_taps, strict=True)
        if gradient is not None and to_input[each.edge.node]
    ]
    if not reached:
        raise TapError("The score does not depend on any of the chosen taps. List them with cam.taps(images).")
    sites = [
        (_site(each, gradient, len(leaf)), each.edge.node)
        for each, gradient in zip(shifts, at_shifts, strict=True)
        if gradient is not None and to_input[each.edge.node] and gradient.ndim and len(gradient) % len(leaf) == 0
    ]
    tap_nodes = [each.edge.node for each, _ in reached]
    path_shares = graph.path_shares(order, tap_nodes, to_input)
    return Trace(
        taps=tuple(
            Tap(each.name, each.kind, each.value, _channels_first(gradient, each.channels_last), share)
            for (each, gradient), share in zip(reached, path_shares, strict=True)
        ),
        sites=tuple(site for site, _ in sites),
        behind=graph.behind(order, tap_nodes, [node for _, node in sites]).to(leaf.device),
        score=wide(scored.score.detach()),
        output=scored.logits.detach(),
        index=scored.index,
        target_names=scored.names,
        input_product=wide(leaf.detach()) * at_input,
        input_space=tuple(leaf.shape[-(reached[0][0].value.ndim - 2) :]),
    )


def wide(values: Tensor) -> Tensor:
    """float32 or better: half precision is widened, float64 stays."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _unscaled(gradient: Tensor, scale: float) -> Tensor:
    return gradient if scale == 1 else wide(gradient) / scale


def _channels_first(values: Tensor, channels_last: bool) -> Tensor:
    return values.movedim(-1, 1) if channels_last and values.ndim > 2 else values


def _site(shift: Shift, gradient: Tensor, batch: int) -> BiasSite:
    value = wide(shift.value).expand_as(gradient)
    if len(gradient) != batch or gradient.ndim == 1:
        # Windows folded into the batch, or one value per sample: per sample a list without space.
        return BiasSite(shift.name, gradient.reshape(batch, -1), value.reshape(batch, -1))
    return BiasSite(
        shift.name, _channels_first(gradient, shift.channels_last), _channels_first(value, shift.channels_last)
    )


def _mappable(candidates: Sequence[Candidate], input_ndim: int) -> list[Candidate]:
    """Candidates with as many spatial axes as the images have: (batch, channel, *space) as a rule.

    Images without a channel axis, (batch, *space), are recognised by their taps' having one more axis.
    """
    for ndim in (input_ndim, input_ndim + 1):
        fitting = [each for each in candidates if each.value.ndim == ndim]
        if fitting:
            return fitting
    return []


def _check(model: Any, images: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is a TorchScript module, whose feature maps cannot be seen. Give the Python module that it was "
            "scripted or traced from."
        )
    if not isinstance(images, Tensor):
        raise InputError(
            f"images must be a torch.Tensor of shape (batch, channel, *space), but got {type(images).__name__}."
        )
    if not images.is_floating_point():
        raise InputError(
            f"images must be floating point, but got {images.dtype}. Scale and normalise as the model was trained, "
            "for instance images.float() / 255."
        )
    if images.ndim < 2 or images.numel() == 0:
        raise InputError(
            f"images must have shape (batch, channel, *space) with at least one element, but got {tuple(images.shape)}."
        )
    weight = next((each for each in model.parameters() if each.is_floating_point()), None)
    if weight is not None:
        _check_together(weight, images)
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinite values; replace them before explaining.")


def _check_together(weight: Tensor, images: Tensor) -> None:
    if weight.is_inference():
        raise InputError(
            "The model's parameters were created under torch.inference_mode, where no gradient can pass. "
            "Build or copy the model outside of it."
        )
    if weight.device != images.device:
        raise InputError(f"images are on {images.device}, the model is on {weight.device}; move one of them.")
    if weight.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
        raise InputError(
            f"images are {images.dtype}, the model's parameters {weight.dtype}; "
            f"use images.to({weight.dtype}) or autocast."
        )


def _check_finite(scored: targets.Scored) -> None:
    finite = scored.score.isfinite()
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise OutputError(
            f"The score of sample {', '.join(map(str, bad))} is NaN or infinite. Check the weights, the input's "
            "normalisation and, in half precision, the range."
        )
