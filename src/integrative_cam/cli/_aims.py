"""What is explained: the options around `--target`, as targets on what the network gave for a photograph."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import targets
from ..errors import TargetError
from ..models import Network
from ..targets._sample import as_target, name_of, named
from ._sight import DECODERS, Box, Finding, Prediction, Ranking, as_box, predict
from ._within import box_within, check_within, mask_within, read_box

if TYPE_CHECKING:
    from jaxtyping import Bool

TOP = re.compile(r"top([1-9][0-9]{0,8})")
RIVALS = ("runner-up", "rest")
"""Of `--versus`, beside classes; see `targets.contrast`."""


@dataclass(frozen=True)
class Asked:
    """What the user asked for; see the options of `icam explain`."""

    target: str = "top1"
    versus: str | None = None
    within: str | None = None
    similar_to: Path | None = None
    probability: bool = False
    step: int | None = None
    negate: bool = False


@dataclass(frozen=True)
class ResolvedTarget:
    """What is explained: the target, how a sentence names it, the classes it counts for and against.

    `finding` is what the network says of the one class that is explained; `outline` where the score is read from: a
    mask of the network's view at any resolution, or a box in pixels of its input.
    """

    target: int | targets.SampleTarget
    label: str
    classes: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    finding: Finding | None = None
    outline: Bool[Tensor, "height width"] | Box | None = None

    @property
    def index(self) -> int | None:
        """The class, where the target is one class's logit."""
        return self.target if isinstance(self.target, int) else None


def check(asked: Asked, network: Network) -> None:
    """Raise TargetError where the call itself is wrong, whatever the photographs are."""
    if asked.within is not None:
        check_within(asked.within)
    if asked.similar_to is not None:
        others = replace(asked, similar_to=None, negate=False)
        if others != Asked():
            raise TargetError(
                "--similar-to explains the likeness of whole outputs; of the others it goes with --negate."
            )
        return
    if not TOP.fullmatch(asked.target):
        classes = classes_of(asked.target, network)
        if asked.versus is not None:
            _rivals(classes, asked.versus, network)
    elif asked.versus not in (None, *RIVALS):
        classes_of(str(asked.versus), network)


def aims(asked: Asked, prediction: Prediction, ranking: Ranking) -> list[ResolvedTarget]:
    """One aim, or with top3 and the like up to as many.

    Raises:
        TargetError: options that do not go together, or not with this network's output.
    """
    if asked.similar_to is not None:
        found = [_likeness(asked.similar_to, prediction)]
    elif prediction.network.task in DECODERS:
        found = _detected(_without(asked, prediction, "versus rival", "probability"), prediction, ranking)
    elif prediction.network.task == "image":
        found = [_made(_without(asked, prediction, "versus", "probability"), prediction)]
    elif prediction.dense:
        found = _dense(_without(asked, prediction, "versus rival", "probability"), prediction, ranking)
    else:
        found = _flat(_without(asked, prediction, "within"), prediction, ranking)
    if not found:
        raise TargetError(f"{prediction.network.name} finds nothing in this photograph; name a class with --target.")
    if asked.step is not None:
        found = [_at_step(aim, asked.step) for aim in found]
    return [_negated(aim) for aim in found] if asked.negate else found


def classes_of(option: str, network: Network) -> tuple[int, ...]:
    """The class that an option names, or the classes with + between them; a name that itself holds a + is one.

    Raises:
        TargetError: unknown or ambiguous name.
    """
    names = [name.strip() for name in option.split("+")]
    known = {label.lower() for label in network.labels}
    whole = len(names) == 1 or not all(names) or option.strip().lower() in known
    return (network.index(option),) if whole else tuple(network.index(name) for name in names)


def aim_at(
    classes: tuple[int, ...],
    versus: str | None,
    network: Network,
    of_class: Callable[[int], int | targets.SampleTarget] = int,
) -> ResolvedTarget:
    """The score of a class or the sum of several; with a rival, the difference.

    Args:
        classes: that count for it.
        versus: that count against it, as the option has them.
        network: names the classes.
        of_class: the score of a class; a plain index stands for its logit.

    Raises:
        TargetError: the rival is no class, not a rival of several classes, or among the classes.
    """
    label = " + ".join(map(network.label, classes))
    target = _summed(classes, of_class)
    if versus is None:
        return ResolvedTarget(target, label, classes)
    against = _rivals(classes, versus, network)
    if not against:
        rival = "runner-up" if versus == "runner-up" else "rest"
        return ResolvedTarget(targets.contrast(target, rival), f"{label} rather than the {rival}", classes)  # type: ignore[arg-type]
    contrasted = targets.contrast(target, _summed(against, of_class))
    return ResolvedTarget(
        contrasted, f"{label} rather than {' + '.join(map(network.label, against))}", classes, against
    )


def _summed(
    classes: Sequence[int], of_class: Callable[[int], int | targets.SampleTarget]
) -> int | targets.SampleTarget:
    if len(set(classes)) < len(classes):
        return targets.total(classes)  # says so
    scores = [of_class(index) for index in classes]
    return scores[0] if len(scores) == 1 else targets.total(scores)


def _rivals(classes: tuple[int, ...], versus: str, network: Network) -> tuple[int, ...]:
    """The classes that `--versus` names; none for the runner-up and the rest."""
    if versus in RIVALS:
        if len(classes) > 1:
            label = " + ".join(map(network.label, classes))
            raise TargetError(f"--versus {versus} needs one class as --target, but got {label}; name the rival.")
        return ()
    against = classes_of(versus, network)
    both = next((index for index in against if index in classes), None)
    if both is not None:
        raise TargetError(f"--versus: {network.label(both)} is the target itself; name another class.")
    return against


def _without(asked: Asked, prediction: Prediction, *barred: str) -> Asked:
    """Raise TargetError where an option has no meaning for this output."""
    given = {
        "versus": asked.versus is not None,
        "versus rival": asked.versus in RIVALS,
        "probability": asked.probability,
        "within": asked.within is not None,
    }
    shape = " x ".join(map(str, prediction.output.shape))
    what = f"{prediction.network.name}, whose output is {shape} per image and is read as {prediction.network.task}"
    for name in barred:
        if given[name]:
            option = f"--versus {asked.versus}" if name.startswith("versus") else f"--{name}"
            advice = {
                "versus": "explain one channel",
                "versus rival": "name the rival class",
                "probability": "leave it out",
                "within": "say with --task if it is read wrongly",
            }[name]
            raise TargetError(f"{option} has no meaning for {what}: {advice}.")
    return asked


def _chosen(asked: Asked, network: Network, top_classes: Sequence[int]) -> list[tuple[int, ...]]:
    """The classes of each aim; of `favourites` where these are asked for."""
    top = TOP.fullmatch(asked.target)
    if not top:
        return [classes_of(asked.target, network)]
    return [(index,) for index in top_classes[: int(top[1])]]


def _checked(classes: Sequence[int], count: int) -> None:
    outside = next((index for index in classes if not 0 <= index < count), None)
    if outside is not None:
        raise TargetError(f"target {outside} is out of range: the model has {count} outputs, 0 to {count - 1}.")


def _flat(asked: Asked, prediction: Prediction, ranking: Ranking) -> list[ResolvedTarget]:
    network, count = prediction.network, prediction.output.numel()
    if network.task == "regression" and count > 1 and TOP.fullmatch(asked.target):
        raise TargetError(f"{network.name} gives {count} values: say which with --target.")
    exclusive = network.task != "multi-label" and count > 1

    def of_class(index: int) -> int | targets.SampleTarget:
        return targets.probability(index, exclusive) if asked.probability else index

    found = []
    for classes in _chosen(asked, network, [each.index for each in ranking.findings]):
        _checked(classes, count)
        if asked.probability and asked.versus in RIVALS:
            raise TargetError(f"--versus {asked.versus} is of logits; leave out --probability, or name the rival.")
        aim = aim_at(classes, asked.versus, network, of_class)
        single = len(classes) == 1 and asked.versus is None
        label = f"the probability of {aim.label}" if asked.probability else aim.label
        found.append(replace(aim, label=label, finding=ranking.of(classes[0]) if single else None))
    return found


def _dense(asked: Asked, prediction: Prediction, ranking: Ranking) -> list[ResolvedTarget]:
    """A class's mean score over a region, or where the network finds it."""
    network, count = prediction.network, len(prediction.output)
    prediction.space  # noqa: B018 - or an error
    inside = None if asked.within is None else mask_within(asked.within, prediction)
    top_classes = [each.index for each in ranking.findings]
    if inside is not None:
        areas = {index: int((prediction.found(index) & inside).sum()) for index in top_classes}
        top_classes = sorted(top_classes, key=lambda index: -areas[index])
    found = []
    for classes in _chosen(asked, network, top_classes):
        _checked(classes, count)
        seen = torch.stack([prediction.found(index) for index in classes]).any(0)
        where = seen if inside is None else inside
        label = " + ".join(map(network.label, classes))
        if not where.any():
            there = ", ".join(network.label(index) for index in top_classes[:5]) or "no class at all"
            raise TargetError(
                f"{network.name} finds {label} nowhere in this photograph (but {there}). Say where to look: --within."
            )
        aim = aim_at(classes, asked.versus, network, partial(targets.segmentation, where=where))
        single = len(classes) == 1 and asked.versus is None and inside is None
        place = "" if inside is None else f" within {_short(asked.within)}"
        finding = ranking.of(classes[0]) if single else None
        found.append(replace(aim, label=aim.label + place, finding=finding, outline=where))
    return found


def _made(asked: Asked, prediction: Prediction) -> ResolvedTarget:
    """The mean of an image that the network makes, or of one of its channels, over a region."""
    inside = (
        torch.ones(prediction.space, dtype=torch.bool)
        if asked.within is None
        else mask_within(asked.within, prediction)
    )
    channel = None
    if asked.target != "top1":
        (channel, *more) = classes_of(asked.target, prediction.network)
        if more:
            raise TargetError(f"--target {asked.target}: name one channel of the output, or none for their mean.")
        _checked((channel,), len(prediction.output))
    label = "the output" if channel is None else f"{prediction.network.label(channel)} of the output"
    place = "" if asked.within is None else f" within {_short(asked.within)}"
    return ResolvedTarget(targets.region(inside, channel), label + place, outline=inside if asked.within else None)


def _detected(asked: Asked, prediction: Prediction, ranking: Ranking) -> list[ResolvedTarget]:
    """The score of the box that matches a given one; without one, of the best box of the class, or of all."""
    network, found = prediction.network, prediction.detections()
    decode = DECODERS[network.task]
    given = None if asked.within is None else box_within(asked.within, prediction)
    if not TOP.fullmatch(asked.target):
        classes = classes_of(asked.target, network)
        _checked(classes, found.scores.shape[1])
        best = found.scores[:, list(classes)].sum(1).argmax()
        wanted = [(classes, given or as_box(found.boxes[best]))]
    elif given:
        match = _match(asked, given, found.boxes, found.scores.amax(1))
        order = found.scores[match].argsort(descending=True, stable=True).tolist()
        wanted = [(classes, given) for classes in _chosen(asked, network, order)]
    else:
        listed = ranking.findings[: int(TOP.fullmatch(asked.target)[1])]  # type: ignore[index]
        wanted = [((each.index,), each.box) for each in listed if each.box]

    done = []
    for classes, box in wanted:
        match = _match(asked, box, found.boxes, found.scores[:, classes[0]])
        aim = aim_at(classes, asked.versus, network, partial(targets.detection, box, decode=decode))
        outline = as_box(found.boxes[match])
        single = len(classes) == 1 and asked.versus is None
        finding = Finding(classes[0], float(found.scores[match, classes[0]]), outline) if single else None
        place = "" if given is None else f" within {_short(asked.within)}"
        done.append(replace(aim, label=aim.label + place, finding=finding, outline=outline))
    return done


def _match(asked: Asked, box: Box, boxes: Tensor, scores: Tensor) -> int:
    try:
        return targets.matching(torch.tensor(box), boxes, scores)
    except TargetError:
        best = float(targets.overlap(torch.tensor(box), boxes).max())
        raise TargetError(
            f"--within {asked.within}: no detected box overlaps it by 0.5 or more (intersection over union); the best "
            f"has {best:.2f}. Boxes are LEFT,TOP,RIGHT,BOTTOM in pixels of the photograph."
        ) from None


def _likeness(reference: Path, prediction: Prediction) -> ResolvedTarget:
    embedding = predict(reference, prediction.network).output
    return ResolvedTarget(targets.similarity(embedding), f"likeness to {reference.name}")


def _at_step(aim: ResolvedTarget, step: int) -> ResolvedTarget:
    return replace(aim, target=targets.step(step, aim.target), label=f"{aim.label} at step {step}")


def _negated(aim: ResolvedTarget) -> ResolvedTarget:
    wanted = as_target(aim.target, "--target")

    def target(output: Any) -> Tensor:
        return -wanted(output)

    return replace(aim, target=named(target, f"-({name_of(wanted)})"), label=f"not {aim.label}")


def _short(within: str | None) -> str:
    return within if within is None or read_box(within) else Path(within).name  # type: ignore[return-value]
