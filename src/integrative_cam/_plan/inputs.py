"""What the model is called with: one tensor of images, or several tensors, of which each with floats is a stream."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .bias_sites import entering

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One tensor for the model's first argument, a sequence for its positional ones, a mapping for keywords; where these do
not fit, but one argument does, the sequence or mapping is that argument.
"""


@dataclass(frozen=True)
class Form:
    """How the model takes its inputs: what they are called, and whether `together`, as one argument."""

    names: tuple[str, ...]
    together: bool


@dataclass(frozen=True)
class Call:
    """A call of the model. `leaves` are its floating-point tensors, which ask for gradients, by name in `names`."""

    args: tuple[Inputs, ...]
    kwargs: dict[str, Tensor]
    names: tuple[str, ...]
    leaves: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        """Samples in each of the leaves."""
        return len(self.leaves[0])

    def run(self, model: nn.Module) -> Any:
        """What the model returns. It is given clones, which it may overwrite. Its errors note the inputs' shapes."""
        try:
            return model(*map(_cloned, self.args), **_cloned(self.kwargs))
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                shapes = ", ".join(str(tuple(leaf.shape)) for leaf in self.leaves)
                error.add_note(f"The model was given {shapes}, batch first: one image is image[None].")
            raise


def call_of(images: Inputs, form: Form, differentiable: bool = False) -> Call:
    """The call with `images`, which `checked` gave this form; make it where autograd is on.

    `differentiable`: inputs that require a gradient stay connected to it.
    """
    given = _listed(images).values()
    tensors = [_leaf(each, differentiable) if each.is_floating_point() else each for each in given]
    named = list(zip(form.names, tensors, strict=True))
    streams = [(name, each) for name, each in named if each.is_floating_point()]
    args: tuple[Inputs, ...] = tuple(tensors)
    kwargs: dict[str, Tensor] = {}
    if isinstance(images, Mapping):
        args, kwargs = ((dict(named),), {}) if form.together else ((), dict(named))
    elif form.together:
        args = (tensors if isinstance(images, list) else tuple(tensors),)
    return Call(args, kwargs, tuple(name for name, _ in streams), tuple(each for _, each in streams))


def plain(given: Any) -> Any:
    """The plain tensor of a subclass such as MONAI's MetaTensor, whose functions torch calls one level deeper and whose
    results are its like; anything else as it is.
    """
    return given.as_subclass(Tensor) if isinstance(given, Tensor) and type(given) is not Tensor else given


def _cloned(given: Any) -> Any:
    if isinstance(given, dict):
        return {name: each.clone() for name, each in given.items()}
    if isinstance(given, tuple | list):
        return type(given)(each.clone() for each in given)
    return given.clone()


def _leaf(values: Tensor, differentiable: bool) -> Tensor:
    return entering(values) if differentiable and values.requires_grad else values.detach().clone().requires_grad_()


def checked(model: nn.Module, images: Any) -> Form:
    """How the model takes these inputs; their names are keywords, or what the model's `forward` calls them.

    Raises:
        InputError: the inputs cannot be used as given.
    """
    several = isinstance(images, Mapping | tuple | list)
    given = _listed(images)
    if several and not given:
        raise InputError(f"images must hold at least one tensor, but got an empty {type(images).__name__}.")
    weight = next((each for each in model.parameters() if each.is_floating_point()), None)
    for label, tensor in given.items():
        _check_kind(label, tensor, several)
    for label, tensor in given.items():
        if tensor.is_floating_point():
            _check_values(label, tensor, weight, several)
    if not several:
        return Form(("images",), together=False)
    streams = {label: tensor for label, tensor in given.items() if tensor.is_floating_point()}
    if not streams:
        raise InputError(
            "images must hold at least one floating-point tensor, but got "
            f"{', '.join(str(each.dtype) for each in given.values())}: there is nothing to differentiate towards."
        )
    if len({len(each) for each in streams.values()}) > 1:
        sizes = ", ".join(f"{label} {len(each)}" for label, each in streams.items())
        raise InputError(f"all inputs must have the same batch size, their first axis, but got {sizes}.")
    return _form(model, images)


def floating(images: Inputs) -> list[Tensor]:
    """The tensors to differentiate towards."""
    return [tensor for tensor in _listed(images).values() if tensor.is_floating_point()]


def check_finite(images: Inputs, finite: Sequence[float]) -> None:
    """Refuse NaN and infinite values: `finite` says of each floating-point input whether it has none.

    Raises:
        InputError: there are some.
    """
    labels = [label for label, tensor in _listed(images).items() if tensor.is_floating_point()]
    for label, is_finite in zip(labels, finite, strict=True):
        if not is_finite:
            verb = "hold" if isinstance(images, Tensor) else "holds"
            raise InputError(f"{label} {verb} NaN or infinite values; replace them before explaining.")


def shape_of_call(images: Inputs, form: Form) -> Hashable:
    """What a plan depends on besides the network: of each input dtype, device and shape without the batch; autocast."""
    tensors = tuple(
        (label, tensor.dtype, tensor.device, tensor.ndim, tensor.shape[1:], tensor.is_contiguous())
        for label, tensor in _listed(images).items()
    )
    device = floating(images)[0].device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return form, isinstance(images, list), tensors, autocast


def _listed(images: Any) -> dict[str, Any]:
    """Every input under the words that name it in an error."""
    if isinstance(images, Mapping):
        return {f"images[{key!r}]": plain(each) for key, each in images.items()}
    if isinstance(images, tuple | list):
        return {f"images[{index}]": plain(each) for index, each in enumerate(images)}
    return {"images": plain(images)}


def _form(model: nn.Module, images: Mapping[str, Tensor] | Sequence[Tensor]) -> Form:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(**images) if isinstance(images, Mapping) else signature.bind(*images)
    except TypeError as error:
        argument = _only_argument(signature)
        if argument is None:
            raise InputError(
                f"images do not fit the model's forward{signature}: {error}. A tuple or list gives positional "
                "arguments, a dict keyword arguments."
            ) from None
        return Form(tuple(images) if isinstance(images, Mapping) else _numbered(argument, images), together=True)
    if isinstance(images, Mapping):
        return Form(tuple(images), together=False)
    names: list[str] = []
    for argument, value in bound.arguments.items():
        # *args come as a tuple.
        names += _numbered(argument, value) if isinstance(value, tuple) else [argument]
    return Form(tuple(names), together=False)


def _numbered(argument: str, values: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(f"{argument}[{index}]" for index in range(len(values)))


def _only_argument(signature: inspect.Signature) -> str | None:
    """The name of the argument that is enough."""
    try:
        return next(iter(signature.bind(None).arguments), None)
    except TypeError:
        return None


def _check_kind(label: str, tensor: Any, several: bool) -> None:
    if not isinstance(tensor, Tensor):
        shape = "" if several else " of shape (batch, channel, *space)"
        raise InputError(f"{label} must be a torch.Tensor{shape}, but got {type(tensor).__name__}.")
    if not several and not tensor.is_floating_point():
        raise InputError(
            f"images must be floating point, but got {tensor.dtype}. Scale and normalise as the model was trained, "
            "for instance images.float() / 255."
        )


def _check_values(label: str, tensor: Tensor, weight: Tensor | None, several: bool) -> None:
    if tensor.ndim < (1 if several else 2) or tensor.numel() == 0:
        shape = "(batch, ...)" if several else "(batch, channel, *space)"
        raise InputError(f"{label} must have shape {shape} with at least one element, but got {tuple(tensor.shape)}.")
    if weight is not None:
        _check_together(label, tensor, weight, "is" if several else "are")


def _check_together(label: str, tensor: Tensor, weight: Tensor, verb: str) -> None:
    if weight.is_inference():
        raise InputError(
            "The model's parameters were created under torch.inference_mode, where no gradient can pass. "
            "Build or copy the model outside of it."
        )
    if weight.device != tensor.device:
        raise InputError(f"{label} {verb} on {tensor.device}, the model is on {weight.device}; move one of them.")
    if weight.dtype != tensor.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise InputError(
            f"{label} {verb} {tensor.dtype}, the model's parameters {weight.dtype}; "
            f"use {label}.to({weight.dtype}) or autocast."
        )
