"""The target's probability, or its logit, for images that are changed point by point."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._maps.blocks import at_least_float32
from .._plan.model_state import eager, evaluation, preserved_buffers, preserved_randomness
from .._plan.probabilities import FinalProbabilities
from ..errors import InputError, OutputError
from ..query import probabilities
from ..targets import Output, class_scores
from ._perturbation import check_images

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TargetIndex = int | Sequence[int] | Tensor
"""A class index for all images, or one per image."""

Perturb = Callable[[Tensor, Tensor], Tensor]
"""Takes the numbers of images and of points on their curves, (job,) each, and gives what the model is to see."""

_PIXELS_AT_ONCE = 4 * 224 * 224
"""On a processor: larger batches fall out of its caches and cost about twice as much per image."""


def target_probabilities(
    model: nn.Module, images: Tensor, target_index: TargetIndex, points: int, perturb: Perturb, batch_size: int
) -> Float[Tensor, "batch point"]:
    """The target's probability at each point of each image's curve, at most `batch_size` of them at once."""
    return _target_values(model, images, target_index, points, perturb, batch_size, _probabilities)


def target_logits(
    model: nn.Module, images: Tensor, target_index: TargetIndex, points: int, perturb: Perturb, batch_size: int
) -> Float[Tensor, "batch point"]:
    """`target_probabilities` with the logit in place of the probability."""
    return _target_values(model, images, target_index, points, perturb, batch_size, lambda logits, _: logits)


def _target_values(
    model: nn.Module,
    images: Tensor,
    target_index: TargetIndex,
    points: int,
    perturb: Perturb,
    batch_size: int,
    read: Callable[[Tensor, str | None], Tensor],
) -> Float[Tensor, "batch point"]:
    check_images(images)
    at_least_one("batch_size", batch_size)
    index = class_indices(target_index, len(images)).to(images.device)
    jobs = torch.arange(len(images) * points, device=images.device)
    values = []
    run = _in_fast_layout(model) if images.device.type == "cpu" and images.ndim == 4 else model
    with torch.no_grad(), left_as_it_was(model, images.device), eager(model.modules()):
        for chunk in torch.split(jobs, min(batch_size, _at_once(images))):
            image = chunk // points
            logits, last_step = class_logits(run, perturb(image, chunk % points))
            logits = at_least_float32(logits)
            _check_logits(logits, last_step, index[image])
            values.append(read(logits, last_step).gather(1, index[image, None])[:, 0])
    return torch.cat(values).reshape(len(images), points)


def class_logits(model: Callable[[Tensor], Any], images: Tensor) -> tuple[Float[Tensor, "batch classes"], str | None]:
    """The logits of a run, and what the model makes of them in its last step, if it does not return them."""
    with FinalProbabilities() as final:
        output = model(images)
    logits = Output(output, len(images), logits=final.logits).class_logits()
    return class_scores(logits, "target_index"), final.kind(logits)


class TargetAgainstNone(nn.Module):
    """A network with two logits, whose softmax gives class 1 the target's probability under the network's task.

    The metrics take the softmax of logits, which is wrong for labels that do not exclude each other.
    """

    def __init__(self, model: nn.Module, target: int, task: str) -> None:
        super().__init__()
        self.model, self.target, self.task = model, target, task

    def forward(self, images: Tensor) -> Float[Tensor, "batch 2"]:
        logits, _ = class_logits(self.model, images)
        logit = probabilities(logits, self.task)[:, self.target].logit(torch.finfo(torch.float64).eps)
        return torch.stack([torch.zeros_like(logit), logit], 1)


def _in_fast_layout(model: nn.Module) -> Callable[[Tensor], Any]:
    """Runs on images with their channels last, up to twice as fast on a processor; or not, where views forbid it."""
    possible = True

    def run(images: Tensor) -> Any:
        nonlocal possible
        if possible:
            try:
                return model(images.contiguous(memory_format=torch.channels_last))
            except RuntimeError:
                possible = False
        return model(images.contiguous())

    return run


def _at_once(images: Tensor) -> int:
    return max(1, _PIXELS_AT_ONCE // images[0, 0].numel()) if images.device.type == "cpu" else sys.maxsize


def _probabilities(logits: Float[Tensor, "job classes"], last_step: str | None) -> Float[Tensor, "job classes"]:
    return logits.sigmoid() if last_step == "sigmoid" else logits.softmax(1)


def _check_logits(logits: Float[Tensor, "job classes"], last_step: str | None, index: Int[Tensor, "job"]) -> None:
    if len(logits) != len(index):
        raise OutputError(
            f"The model's output has {len(logits)} rows for {len(index)} images; its first axis must be the batch."
        )
    classes = logits.shape[1]
    if classes < 2 and last_step != "sigmoid":
        raise InputError(
            "model gives one value per image, whose softmax is always 1; wrap it so that it returns two logits, "
            "such as torch.cat([-logit, logit], 1) / 2."
        )
    outside = index[(index < 0) | (index >= classes)]
    if len(outside):
        raise InputError(
            f"target_index {outside[0].item()} is out of range: the model has {classes} outputs, 0 to {classes - 1}."
        )
    if not logits.isfinite().all():
        raise OutputError("The model's output holds NaN or infinite values for a perturbed image; run it in float32.")


@contextmanager
def left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run in evaluation mode; flags, random numbers and buffers are then as before."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with evaluation(model.modules()), preserved_randomness(device), preserved_buffers(model.modules()):
            yield
    finally:
        for buffer, value in before:
            # Only where the network wrote to it: a gradient still to come may need it untouched.
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def class_indices(target_index: TargetIndex, batch: int) -> Int[Tensor, "batch"]:
    """One class index per image; InputError where `target_index` is no such thing."""
    wanted = f"target_index must be one class index, or one per image, integers of shape ({batch},)"
    if isinstance(target_index, Tensor):
        if target_index.is_floating_point() or target_index.is_complex() or target_index.dtype == torch.bool:
            raise InputError(f"{wanted}, but got {target_index.dtype}.")
        target_index = target_index.tolist()
    listed: list[Any] = list(target_index) if isinstance(target_index, Sequence) else [target_index] * batch
    try:
        indices = [operator.index(index) for index in listed if not isinstance(index, bool)]
    except TypeError:
        indices = []
    if len(indices) < len(listed):
        raise InputError(f"{wanted}, but got {target_index!r}.")
    if len(indices) != batch:
        raise InputError(f"{wanted}, but got {len(indices)} of them for {batch} images.")
    return torch.tensor(indices)


def at_least_one(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{argument} must be a whole number of at least 1, but got {value!r}.")
