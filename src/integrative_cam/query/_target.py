"""From a user's question, such as "tabby rather than tiger cat", to targets on one network's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import targets
from ..errors import TargetError
from ..models import Network
from ..targets._scoring import as_target, has_unit, name_of, named
from ._prediction import DECODERS, Box, Prediction, RankedClass, as_box, predict
from ._region import check_region, region_as_box, region_as_mask, region_name

if TYPE_CHECKING:
    from jaxtyping import Bool

TOP = re.compile(r"top([1-9][0-9]{0,8})")
RIVALS = ("runner-up", "rest")
"""Values of `Question.versus` that name no class; see `targets.contrast`."""

ClassTarget = Callable[[int], "int | targets.SampleTarget"]
"""Takes a class index and gives the target that is its score; an index stands for its logit, or contrast."""


@dataclass(frozen=True)
class Question:
    """What to explain, as the options of `icam explain` of the same names say it.

    Attributes:
        target: "top1", "top3", ..., the network's top classes; a class index or name; or several joined by "+", for
            the sum of their scores. A segmentation's class is explained where it is found, a detector's in its best
            box; of a network that makes an image, the target is a channel.
        versus: explain why the target and not this: a class or several, "runner-up" (the best of the other classes)
            or "rest" (all of them).
        within: the part of the output to explain: a box, "LEFT,TOP,RIGHT,BOTTOM" in pixels of the photograph, or the
            file of a mask of the photograph's size, black outside.
        similar_to: explain the cosine similarity of the output to that of this photograph, instead of a class.
        probability: explain the class's probability.
        step: of an output (step, class), the step to explain; negative steps count from the end.
        negate: explain what lowers the score instead of what raises it.
    """

    target: str = "top1"
    versus: str | None = None
    within: str | None = None
    similar_to: Path | None = None
    probability: bool = False
    step: int | None = None
    negate: bool = False

    def check(self, network: Network) -> None:
        """Raise TargetError for a question that this network cannot answer for any photograph."""
        if self.within is not None:
            check_region(self.within)
        if self.similar_to is not None:
            if replace(self, similar_to=None, negate=False) != Question():
                raise TargetError(
                    "--similar-to compares whole outputs: of the other options it can be combined with --negate only."
                )
            return
        classes = parse_target(self.target, network)
        if isinstance(classes, tuple) and self.versus is not None:
            _rivals(classes, self.versus, network)
        elif self.versus is not None and self.versus not in RIVALS:
            classes_named(self.versus, network)


@dataclass(frozen=True)
class ResolvedTarget:
    """One target on one photograph's output.

    Attributes:
        target: a class index, for its logit or contrast as the recipe says, or a callable on the sample's output.
        label: the target in words.
        classes: indices that count for the score.
        against: indices that count against it.
        ranked: the network's prediction for the class, if one class is explained.
        outline: where the score is read from: a mask over the network's view at any resolution, or a box in pixels of
            its input; None for the whole output.
    """

    target: int | targets.SampleTarget
    label: str
    classes: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    ranked: RankedClass | None = None
    outline: Bool[Tensor, "height width"] | Box | None = None

    @property
    def index(self) -> int | None:
        """The class index if the target is one class."""
        return self.target if isinstance(self.target, int) else None


def parse_target(text: str, network: Network) -> int | tuple[int, ...]:
    """Read a user's target text: the number of top classes ("top3" gives 3), or the indices of the named classes.

    Raises:
        TargetError: a name is unknown or ambiguous.
    """
    top = TOP.fullmatch(text)
    return int(top[1]) if top else classes_named(text, network)


def classes_named(text: str, network: Network) -> tuple[int, ...]:
    """The class that a text names, or several joined by "+"; a class whose own name holds a "+" comes first.

    Raises:
        TargetError: a name is unknown or ambiguous.
    """
    names = [name.strip() for name in text.split("+")]
    known = {label.lower() for label in network.labels}
    is_one_name = len(names) == 1 or not all(names) or text.strip().lower() in known
    return (network.index(text),) if is_one_name else tuple(network.index(name) for name in names)


def resolve_targets(question: Question, prediction: Prediction) -> list[ResolvedTarget]:
    """The targets that a question means for a photograph: one, or up to three for "top3", and so on.

    Raises:
        TargetError: an option does not fit the others or the network's output, or nothing is found in the photograph.
    """
    network = prediction.network
    if question.similar_to is not None:
        embedding = predict(question.similar_to, network).output
        resolved = [ResolvedTarget(targets.similarity(embedding), f"likeness to {question.similar_to.name}")]
    else:
        _check_options(question, prediction)
        find = (
            _boxes if network.task in DECODERS
            else _channel if network.task == "image"
            else _segments if prediction.is_dense
            else _classes
        )  # fmt: skip
        resolved = find(question, prediction)
    if not resolved:
        raise TargetError(f"{network.name} finds nothing in this photograph; name a class with --target.")
    return [_at_step(each, question.step, question.negate) for each in resolved]


def combine_classes(
    classes: tuple[int, ...], versus: str | None, network: Network, score: ClassTarget = int
) -> ResolvedTarget:
    """The sum of the scores of `classes`, minus those of the classes that `versus` names.

    Raises:
        TargetError: `versus` names no class, one of `classes`, or the runner-up or rest of several classes.
    """
    label = " + ".join(map(network.label, classes))
    target = _total(classes, score)
    if versus is None:
        return ResolvedTarget(target, label, classes)
    against = _rivals(classes, versus, network)
    rival = " + ".join(map(network.label, against)) if against else f"the {versus}"
    contrasted = targets.contrast(target, _total(against, score) if against else versus)  # type: ignore[arg-type]
    return ResolvedTarget(contrasted, f"{label} rather than {rival}", classes, against)


def _total(classes: Sequence[int], score: ClassTarget) -> int | targets.SampleTarget:
    if len(set(classes)) < len(classes):
        return targets.total(classes)  # raises the error that names the repeated class
    scores = [score(index) for index in classes]
    return scores[0] if len(scores) == 1 else targets.total(scores)


def _rivals(classes: tuple[int, ...], versus: str, network: Network) -> tuple[int, ...]:
    """The classes that `versus` names; none for the runner-up and the rest."""
    if versus in RIVALS:
        if len(classes) > 1:
            label = " + ".join(map(network.label, classes))
            raise TargetError(f"--versus {versus} needs one class as --target, but got {label}; name the rival.")
        return ()
    against = classes_named(versus, network)
    both = next((index for index in against if index in classes), None)
    if both is not None:
        raise TargetError(f"--versus: {network.label(both)} is the target itself; name another class.")
    return against


def _check_options(question: Question, prediction: Prediction) -> None:
    """Raise TargetError for an option that has no meaning for this output."""
    network = prediction.network
    spatial = network.task in (*DECODERS, "image") or prediction.is_dense
    versus = f"--versus {question.versus}"
    for refused, option, advice in (
        (spatial and question.probability, "--probability", "leave it out"),
        (spatial and question.versus in RIVALS, versus, "name the rival class"),
        (network.task == "image" and question.versus is not None, versus, "explain one channel"),
        (not spatial and question.within is not None, "--within", "choose another --task if this is wrong"),
    ):
        if refused:
            shape = " x ".join(map(str, prediction.output.shape))
            raise TargetError(
                f"{option} has no meaning for {network.name}, whose output is {shape} per image and is read as "
                f"{network.task}: {advice}."
            )


def _resolved(
    question: Question,
    network: Network,
    classes: tuple[int, ...],
    score: ClassTarget = int,
    ranked: RankedClass | None = None,
    outline: Bool[Tensor, "height width"] | Box | None = None,
) -> ResolvedTarget:
    """The question's target for these classes; `ranked` counts if one class alone is explained."""
    combined = combine_classes(classes, question.versus, network, score)
    label = f"the probability of {combined.label}" if question.probability else combined.label
    is_one_class = len(classes) == 1 and question.versus is None
    return replace(combined, label=label + _place(question), ranked=ranked if is_one_class else None, outline=outline)


def _place(question: Question) -> str:
    return "" if question.within is None else f" within {region_name(question.within)}"


def _choose(question: Question, network: Network, count: int, ranked: Sequence[int]) -> list[tuple[int, ...]]:
    """The classes of each target: those that are named, or the first of `ranked`. All must be below `count`."""
    target = parse_target(question.target, network)
    if isinstance(target, int):
        return [(index,) for index in ranked[:target]]
    _check_range(target, count)
    return [target]


def _check_range(classes: Sequence[int], count: int) -> None:
    outside = next((index for index in classes if not 0 <= index < count), None)
    if outside is not None:
        raise TargetError(f"target {outside} is out of range: the model has {count} outputs, 0 to {count - 1}.")


def _classes(question: Question, prediction: Prediction) -> list[ResolvedTarget]:
    """Logits, probabilities or values of an output with one value per class."""
    network, ranking, count = prediction.network, prediction.ranking, prediction.output.numel()
    if network.task == "regression" and count > 1 and TOP.fullmatch(question.target):
        raise TargetError(f"{network.name} gives {count} values: say which with --target.")
    if question.probability and question.versus in RIVALS:
        raise TargetError(f"--versus {question.versus} is of logits; leave out --probability, or name the rival.")
    exclusive = network.task != "multi-label" and count > 1
    score: ClassTarget = (
        partial(targets.probability, exclusive=exclusive)
        if question.probability
        else targets.value
        if network.task == "regression"
        else int
    )
    chosen = _choose(question, network, count, [entry.index for entry in ranking.classes])
    return [_resolved(question, network, classes, score, ranking.find(classes[0])) for classes in chosen]


def _segments(question: Question, prediction: Prediction) -> list[ResolvedTarget]:
    """The mean score of a segmentation's class over a region, or over the pixels where the class is found."""
    network, ranking = prediction.network, prediction.ranking
    inside = None if question.within is None else region_as_mask(question.within, prediction)
    ranked = [entry.index for entry in ranking.classes]
    if inside is not None:
        areas = {index: int((prediction.region_of(index) & inside).sum()) for index in ranked}
        ranked.sort(key=lambda index: -areas[index])
    resolved = []
    for classes in _choose(question, network, len(prediction.output), ranked):
        where = torch.stack([prediction.region_of(index) for index in classes]).any(0) if inside is None else inside
        if not where.any():
            label = " + ".join(map(network.label, classes))
            there = ", ".join(network.label(index) for index in ranked[:5]) or "no class at all"
            raise TargetError(
                f"{network.name} finds {label} nowhere in this photograph (but {there}). Say where to look: --within."
            )
        found = ranking.find(classes[0]) if inside is None else None
        resolved.append(_resolved(question, network, classes, partial(targets.segmentation, where=where), found, where))
    return resolved


def _channel(question: Question, prediction: Prediction) -> list[ResolvedTarget]:
    """The mean over a region of the image that the network makes, or of one of its channels."""
    channel, label = None, "the output"
    if question.target != "top1":
        (channel, *more) = classes_named(question.target, prediction.network)
        if more:
            raise TargetError(f"--target {question.target}: name one channel of the output, or none for their mean.")
        _check_range((channel,), len(prediction.output))
        label = f"{prediction.network.label(channel)} of the output"
    inside = None if question.within is None else region_as_mask(question.within, prediction)
    where = torch.ones(prediction.output_size, dtype=torch.bool) if inside is None else inside
    return [ResolvedTarget(targets.region(where, channel), label + _place(question), outline=inside)]


def _boxes(question: Question, prediction: Prediction) -> list[ResolvedTarget]:
    """The score of the detected box that matches `within`; without it, of the best box of the class, or of all."""
    network, found = prediction.network, prediction.detections()
    within = None if question.within is None else region_as_box(question.within, prediction)
    target = parse_target(question.target, network)
    chosen: list[tuple[tuple[int, ...], Box]]
    if isinstance(target, tuple):
        _check_range(target, found.scores.shape[1])
        best = found.scores[:, list(target)].sum(1).argmax()
        chosen = [(target, within or as_box(found.boxes[best]))]
    elif within is not None:
        match = _match(question, within, found, found.scores.amax(1))
        order = found.scores[match].argsort(descending=True, stable=True).tolist()
        chosen = [((index,), within) for index in order[:target]]
    else:
        chosen = [((entry.index,), entry.box) for entry in prediction.ranking.classes[:target] if entry.box]
    resolved = []
    for classes, box in chosen:
        match = _match(question, box, found, found.scores[:, classes[0]])
        outline = as_box(found.boxes[match])
        ranked = RankedClass(classes[0], float(found.scores[match, classes[0]]), outline)
        score = partial(targets.detection, box, decode=DECODERS[network.task])
        resolved.append(_resolved(question, network, classes, score, ranked, outline))
    return resolved


def _match(question: Question, box: Box, found: targets.Detections, scores: Tensor) -> int:
    try:
        return targets.matching(torch.tensor(box), found.boxes, scores)
    except TargetError:
        best = float(targets.overlap(torch.tensor(box), found.boxes).max())
        raise TargetError(
            f"--within {question.within}: no detected box overlaps it by 0.5 or more (intersection over union); the "
            f"best has {best:.2f}. Boxes are LEFT,TOP,RIGHT,BOTTOM in pixels of the photograph."
        ) from None


def _at_step(resolved: ResolvedTarget, step: int | None, negate: bool) -> ResolvedTarget:
    """The same at a step of the output, and negated."""
    if step is not None:
        resolved = replace(
            resolved, target=targets.step(step, resolved.target), label=f"{resolved.label} at step {step}"
        )
    if not negate:
        return resolved
    score = as_target(resolved.target, "--target")
    negated = named(lambda output: -score(output), f"-({name_of(score)})", has_unit(score))
    return replace(resolved, target=negated, label=f"not {resolved.label}")
