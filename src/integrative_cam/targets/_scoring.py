"""What is explained: one scalar score per sample, from whatever the model returns."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..errors import OutputError, TargetError
from ._sample import SampleTarget, as_target, check_index, class_scores, logits_of, name_of, sample_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Target = int | Tensor | SampleTarget | Sequence[int | SampleTarget] | None
"""None (each sample's own top class), a class index, a callable on one sample's output, or one of these per sample."""

Targets = Sequence[Target] | int
"""Some targets, or how many of each sample's classes of highest score."""


@dataclass(frozen=True)
class Scored:
    """The scores to differentiate, and how they came about."""

    score: Float[Tensor, "batch"]
    logits: Tensor
    index: Int[Tensor, "batch"] | None
    names: tuple[str, ...]


def score(output: Any, target: Target, batch: int) -> Scored:
    """Score each sample's target; None takes each sample's own highest logit.

    Raises:
        OutputError: no tensor in the output, or its batch differs from the input's.
        TargetError: too few or too many targets, an index out of range, a callable that gives no scalar or one
            without gradient.
    """
    logits = logits_of(output)
    if logits.ndim == 0 or logits.shape[0] != batch:
        raise OutputError(
            f"The model's output has shape {tuple(logits.shape)} for {batch} images; its first axis must be the "
            "batch. A model that lists results image by image, as torchvision's detectors do, needs a wrapper that "
            "returns one tensor."
        )
    targets = _per_sample(target, batch)
    if targets is not None and any(map(callable, targets)):
        scores = [_scalar(own, output, logits, sample) for sample, own in enumerate(targets)]
        return Scored(torch.stack(scores), logits, None, tuple(map(name_of, targets)))
    classes = class_scores(logits, f"target={target}")
    if targets is None:
        index = classes.argmax(1)
    else:
        checked = [check_index(cast(int, own), classes.shape[1], "target") for own in targets]
        index = torch.tensor(checked, device=logits.device)
    return Scored(classes.gather(1, index[:, None])[:, 0], logits, index, tuple(map(str, index.tolist())))


def score_each(output: Any, several: Targets, batch: int) -> list[Scored]:
    """`score` of each of several targets; a number stands for so many classes of each sample, the highest score first.

    Raises:
        OutputError, TargetError: as `score`; no target, or a number below 1.
    """
    check_targets(several)
    if isinstance(several, int):
        several = top_classes(score(output, None, batch).logits, several)
    return [score(output, target, batch) for target in several]


def check_targets(several: Targets) -> None:
    """Refuse what is neither targets nor a number of classes.

    Raises:
        TargetError: no target, or a number below 1.
    """
    is_count = isinstance(several, int) and not isinstance(several, bool) and several > 0
    is_listed = isinstance(several, Sequence) and not isinstance(several, str) and len(several) > 0
    if not is_count and not is_listed:
        raise TargetError(f"targets must be a sequence of targets or a number of classes >= 1, but got {several!r}.")


def top_classes(logits: Tensor, count: int) -> list[Int[Tensor, "batch"]]:
    """Each sample's `count` classes of highest score, or all there are, the highest first; of equal ones the first.

    Raises:
        TargetError: several values per class.
    """
    order = class_scores(logits.detach(), f"targets={count}").argsort(dim=1, descending=True, stable=True)
    return list(order[:, :count].T)


def _per_sample(target: Target, batch: int) -> list[int | SampleTarget] | None:
    if target is None:
        return None
    if isinstance(target, bool | str):
        raise TargetError(f"target must be a class index or a callable, but got {target!r}.")
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool or target.ndim > 1:
            raise TargetError(
                "target as a tensor must hold one class index per image (integers, shape (batch,)), "
                f"but got {target.dtype} of shape {tuple(target.shape)}."
            )
        target = target.tolist()
    if callable(target):
        return [target] * batch
    try:
        return [operator.index(target)] * batch  # type: ignore[arg-type]
    except TypeError:
        pass  # no single integer of any library
    try:
        targets = [own if callable(own) else operator.index(own) for own in target]  # type: ignore[union-attr]
    except TypeError:
        raise TargetError(
            "target must be None, a class index, a callable on one sample's output, or one of these per image, "
            f"but got {target!r}."
        ) from None
    if len(targets) != batch:
        raise TargetError(f"target has {len(targets)} entries for {batch} images; give one per image or one for all.")
    return targets


def _scalar(target: int | SampleTarget, output: Any, logits: Tensor, sample: int) -> Tensor:
    value = as_target(target, "target")(sample_of(output, sample))
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(
            f"target {name_of(target)} must give one floating-point scalar tensor per sample, but gave {came}."
        )
    if logits.requires_grad and not value.requires_grad:
        raise TargetError(
            f"target {name_of(target)} gave a value without gradient for sample {sample}: it must be computed from the "
            "model's output by differentiable operations, without detach, item, argmax or comparison."
        )
    return value.reshape(())
