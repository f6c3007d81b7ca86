"""What is explained: one scalar score per sample, from whatever the model returns."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..errors import TargetError
from ._output import Output, logits_of, tensor_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SampleTarget = Callable[[Any], Tensor]
"""Takes one sample's output (any structure, its batch axis removed) and gives a scalar tensor."""

Target = int | Tensor | SampleTarget | Sequence[int | SampleTarget] | None
"""None (each sample's own top class), a class index, a callable on one sample's output, or one of these per sample."""

Targets = Sequence[Target] | int
"""Several targets, or a number: each sample's so many classes with the highest scores."""


@dataclass(frozen=True)
class Scored:
    """The scores to differentiate, the logits, the class indices; `names` of callables, none for classes.

    `has_unit`: of callables, whether each sample's score is in logits or probabilities; see `named`. `unit`: what the
    score is divided by before the read-out; None for scores as they are. `contrast`: see `against_rivals`; `value`: the
    scores with their whole graph, where `score` takes a part of it for constant. `classes`: of classes beside
    callables, the class of each sample, None for a callable.
    """

    score: Float[Tensor, "batch"]
    logits: Tensor
    index: Int[Tensor, "batch"] | None
    names: tuple[str, ...]
    has_unit: tuple[bool, ...] = ()
    unit: Float[Tensor, "batch"] | None = None
    contrast: bool = False
    value: Float[Tensor, "batch"] | None = None
    classes: tuple[int | None, ...] = ()


def score(output: Any, target: Target, batch: int) -> Scored:
    """Score each sample's target; None takes each sample's own highest logit.

    Args:
        output: what the network returned for a batch, or an `Output` that knows more of it.
        target: as in `explain`.
        batch: the number of images.

    Raises:
        OutputError: no tensor in the output, or its batch differs from the input's.
        TargetError: too few or too many targets, an index out of range, a class where several tensors could hold the
            classes, a callable that gives no scalar or one without gradient.
    """
    output = output if isinstance(output, Output) else Output(output, batch)
    targets = _per_sample(target, batch)
    if targets is not None and any(map(callable, targets)):
        scores = torch.stack([_scalar(own, output, sample) for sample, own in enumerate(targets)])
        output.check_alone(scores[0], name_of(targets[0]))
        names, units = tuple(map(name_of, targets)), tuple(map(has_unit, targets))
        if not all(map(callable, targets)):
            indices = tuple(None if callable(own) else own for own in targets)
            return Scored(scores, output.class_logits(), None, names, units, classes=indices)
        logits = output.any_logits()
        return Scored(scores, scores if logits is None else logits, None, names, units)
    logits = output.class_logits()
    # A tensor is not put into words: that would read it.
    classes = class_scores(logits, "target" if isinstance(target, Tensor) else f"target={target}")
    if targets is None:
        return _of_classes(logits, classes, output.ranked(classes).argmax(1))
    checked = [check_index(cast(int, own), classes.shape[1], "target") for own in targets]
    return _of_classes(logits, classes, torch.tensor(checked, device=logits.device))


def _of_classes(logits: Tensor, classes: Float[Tensor, "batch classes"], index: Int[Tensor, "batch"]) -> Scored:
    return Scored(classes.gather(1, index[:, None])[:, 0], logits, index, ())


def score_each(output: Any, several: Targets, batch: int) -> list[Scored]:
    """`score` of several targets; a number means each sample's so many classes with the highest scores, in that order.

    Raises:
        OutputError, TargetError: as `score`; no target, or a number below 1.
    """
    check_targets(several)
    output = output if isinstance(output, Output) else Output(output, batch)
    if isinstance(several, int):
        logits = output.class_logits()
        classes = class_scores(logits, f"targets={several}")
        return [_of_classes(logits, classes, index) for index in top_classes(output.ranked(classes), several)]
    return [score(output, target, batch) for target in several]


CONTRAST_TEMPERATURE = 2.0
"""Of the softmax that says how much each other class counts in `against_rivals`, in logits. 1 leaves all to the nearest
rivals, which share with the target what it is made of; a large one to classes that nothing speaks for."""
CONTRAST_SHARE = 0.8
"""Of the other classes' mean that is taken off; all of it leaves only what tells the target from its nearest rivals."""


class _Weighed(torch.autograd.Function):
    """Logits summed by weights that are constants to the score's gradient, but not to what is made of that gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        # A class of logit -inf has no weight, and 0 times infinity is NaN.
        return (weights * torch.where(weights == 0, 0, logits)).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return gradient[:, None] * weights, None


def against_rivals(scored: Scored, differentiable: bool = False) -> Scored:
    """The scores of classes minus 0.8 of the mean of the other logits, weighted by softmax(other logits / 2).

    Why this class and not another, as Finer-CAM (arXiv:2501.11309) asks, which takes 0.6 of a single rival off: what
    all classes have in common, that there is an object and that it has edges, nearly cancels. The weights are
    constants, so that the score splits as the logits do. Callables, and the only class of a network, keep their score.

    Args:
        scored: of classes or callables.
        differentiable: what is made of the score's gradient can be differentiated through the weights too.
    """
    if scored.index is None and scored.classes:
        device = scored.score.device
        index = torch.tensor([own or 0 for own in scored.classes], device=device)
        of_class = torch.tensor([own is not None for own in scored.classes], device=device)
        contrast = against_rivals(replace(scored, index=index), differentiable)
        value = None if contrast.value is None else torch.where(of_class, contrast.value, scored.score)
        return replace(scored, score=torch.where(of_class, contrast.score, scored.score), value=value)
    if scored.index is None:
        return scored
    classes = class_scores(scored.logits, "target")
    if classes.shape[1] < 2:
        return scored
    classes = classes.to(torch.promote_types(classes.dtype, torch.float32))
    index = scored.index[:, None]
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        others = (classes.scatter(1, index, -torch.inf) / CONTRAST_TEMPERATURE).softmax(1)
        weights = -CONTRAST_SHARE * others + torch.zeros_like(others).scatter(1, index, 1)
    score: Tensor = _Weighed.apply(classes, weights)
    value = (weights * torch.where(weights == 0, 0, classes)).sum(1) if differentiable else None
    return replace(scored, score=score, contrast=True, value=value)


def check_targets(several: Targets) -> None:
    """Raise an error unless it is a sequence of targets or a number of classes.

    Raises:
        TargetError: no target, or a number below 1.
    """
    is_count = isinstance(several, int) and not isinstance(several, bool) and several > 0
    is_listed = isinstance(several, Sequence) and not isinstance(several, str) and len(several) > 0
    if not is_count and not is_listed:
        raise TargetError(f"targets must be a sequence of targets or a number of classes >= 1, but got {several!r}.")


def top_classes(logits: Tensor, count: int) -> list[Int[Tensor, "batch"]]:
    """Each sample's `count` classes with the highest scores (at most all), in order; equal scores by index.

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
        pass  # not a single integer
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


def _scalar(target: int | SampleTarget, output: Output, sample: int) -> Tensor:
    value = as_target(target, "target")(output.sample(sample))
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(
            f"target {name_of(target)} must give one floating-point scalar tensor per sample, but gave {came}."
        )
    if output.has_gradient and not value.requires_grad:
        raise TargetError(
            f"target {name_of(target)} gave a value without gradient for sample {sample}: it must be computed from the "
            "model's output by differentiable operations, without detach, item, argmax or comparison."
        )
    return value.reshape(())


def class_scores(logits: Tensor, asked: str, came: str = "") -> Float[Tensor, "batch classes"]:
    """The logits as one value per class; a single value per sample counts as one class.

    Args:
        logits: (batch, ...).
        asked: what needs a class, for the message.
        came: what it got instead, for the message; default the shape of `logits`.

    Raises:
        TargetError: several values per class, as in segmentation.
    """
    if logits.ndim == 1:
        return logits[:, None]
    if logits.ndim > 2 and logits[0, 0].numel() > 1:
        came = came or f"the model's output has shape {tuple(logits.shape)}"
        raise TargetError(
            f"{asked} picks a class, but {came}: more than one value per class. Give a callable on one sample's "
            "output, such as lambda output: output[3].mean(). Use targets.segmentation, targets.region or targets.step "
            "to make one."
        )
    return logits.flatten(1)


def class_values(output: Any, asked: str, as_returned: bool = False) -> Float[Tensor, "classes"]:
    """One sample's logit for each class, or the value that the network returned for it; see `class_scores`."""
    values = tensor_of(output) if as_returned else logits_of(output)
    return class_scores(values[None], asked, f"a sample's output has shape {tuple(values.shape)}")[0]


def class_value(
    output: Any, index: int, argument: str, asked: str = "", as_returned: bool = False
) -> Float[Tensor, ""]:
    """One sample's value for a class, which `argument` names; a TargetError if there is no such class."""
    values = class_values(output, asked or f"{argument}={index}", as_returned)
    return values[check_index(index, len(values), argument)]


def check_index(index: int, count: int, argument: str, whole: str = "the model has {} outputs") -> int:
    """The index, if it is from 0 to count - 1; else a TargetError."""
    if not 0 <= index < count:
        raise TargetError(f"{argument} {index} is out of range: {whole.format(count)}, 0 to {count - 1}.")
    return index


def check_box(box: Sequence[float] | Tensor, wanted: str) -> Float[Tensor, "4"]:
    """(left, top, right, bottom) in float64; a TargetError that begins with `wanted` unless it has an area."""
    try:
        edges = torch.as_tensor(box, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        edges = torch.empty(0)
    if edges.shape != (4,) or not (edges[2:] > edges[:2]).all():
        raise TargetError(f"{wanted} with right > left and bottom > top, but got {box!r}.")
    return edges


def as_target(target: int | SampleTarget, argument: str) -> SampleTarget:
    """A class index as a callable that gives the class's logit; a callable as it is; else a TargetError."""
    if callable(target):
        return target
    index = as_integer(target, argument, "a class index or a callable")
    return named(lambda output: class_value(output, index, argument), str(index), has_unit=True)


def as_integer(value: Any, argument: str, wanted: str = "a class index") -> int:
    """The value as an int, if it is an integer of any library, and no bool; else a TargetError."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TargetError(f"{argument} must be {wanted}, but got {value!r}.")


def named(target: SampleTarget, name: str, has_unit: bool) -> SampleTarget:
    """The callable with a name that says what it explains; it becomes `Explanation.target_names`.

    `has_unit`: its scores are in logits or probabilities and are explained as they are. Others, such as a price, could
    as well be in another unit: see method.md, "Units".
    """
    target.__name__ = name
    target.has_unit = has_unit  # type: ignore[attr-defined]
    return target


def has_unit(target: int | SampleTarget) -> bool:
    """Whether a target's scores are in logits or probabilities; of a callable, what its attribute `has_unit` says.

    The targets of pytorch-grad-cam for classes have a `category`, and are in logits.
    """
    return not callable(target) or bool(getattr(target, "has_unit", hasattr(target, "category")))


def name_of(target: int | SampleTarget) -> str:
    """A class index or a callable's name."""
    return str(target) if isinstance(target, int) else getattr(target, "__name__", type(target).__name__)
