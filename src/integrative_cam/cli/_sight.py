"""A photograph as the network sees it, and what the network says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import TargetError
from ..models import Network, read_image
from ..models._image import View
from ..targets import Decoder, Detections, fastestdet, logits_of, overlap, sample_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

DECODERS: Mapping[str, Decoder] = {"fastestdet": fastestdet}
"""How a detector's task is read."""
SURE = 0.3
"""Least score of a detection that is listed; the best one always is."""
SAME = 0.45
"""Least intersection over union of two boxes that show one thing."""


@dataclass(frozen=True)
class Finding:
    """One thing that the network says: a class and its value; a detector's with its box in pixels of its input."""

    index: int
    value: float
    box: Box | None = None


@dataclass(frozen=True)
class Ranking:
    """All findings, highest value first, and what the value is: "probability", "area", "value" or "score"."""

    measure: str
    findings: tuple[Finding, ...]

    def of(self, index: int) -> Finding | None:
        """The first finding of a class."""
        return next((each for each in self.findings if each.index == index), None)

    def shown(self, finding: Finding) -> str:
        """The value as text."""
        if self.measure in ("probability", "area"):
            return f"{finding.value:.1%}"
        return f"{finding.value:.2f}" if self.measure == "score" else f"{finding.value:.4g}"


@dataclass(frozen=True)
class Prediction:
    """`output`: the one sample's tensor to explain, at the step that was asked for."""

    network: Network
    photograph: Image
    view: View
    output: Float[Tensor, "*output"]

    @property
    def dense(self) -> bool:
        """Whether there are several values per class, one for each place."""
        return self.output.ndim > 1 and self.output[0].numel() > 1

    @property
    def space(self) -> tuple[int, int]:
        """(height, width) of a dense output.

        Raises:
            TargetError: it has another number of axes.
        """
        if self.output.ndim != 3:
            raise TargetError(
                f"The network gives values of shape {tuple(self.output.shape)} per image. If these are steps and "
                "classes, say which step is meant with --step; else explain it in Python with a target of your own."
            )
        height, width = self.output.shape[1:]
        return height, width

    def found(self, index: int) -> Bool[Tensor, "height width"]:
        """Where a dense output shows a class: ranked first, or, of labels or a single class, above even odds."""
        if self.network.task == "multi-label" or len(self.output) == 1:
            return self.output[index] > 0
        return self.output.argmax(0) == index

    def detections(self) -> Detections:
        """What a detector's output holds."""
        return DECODERS[self.network.task](self.output)

    def in_photograph(self, box: Box) -> Box:
        """A box in pixels of the network's input, in those of the photograph."""
        left, top, across, down = self._scale()
        return left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down

    def in_input(self, box: Box) -> Box:
        """A box in pixels of the photograph, in those of the network's input."""
        left, top, across, down = self._scale()
        return (box[0] - left) / across, (box[1] - top) / down, (box[2] - left) / across, (box[3] - top) / down

    def _scale(self) -> tuple[float, float, float, float]:
        left, top, right, bottom = self.view.region
        height, width = self.view.tensor.shape[2:]
        return left, top, (right - left) / width, (bottom - top) / height


def predict(path: Path, network: Network, step: int | None = None) -> Prediction:
    """Read a photograph and run the network on it, without gradients.

    Raises:
        ImageError: no image.
        TargetError: no such step.
    """
    photograph = read_image(path)
    view = network.preprocessing(photograph)
    with torch.no_grad():
        output = logits_of(sample_of(network.model(view.tensor), 0))
    if step is not None:
        if output.ndim < 2 or not -len(output) <= step < len(output):
            raise TargetError(
                f"--step {step} needs an output of (step, class) with that many steps, but it has shape "
                f"{tuple(output.shape)} per image."
            )
        output = output[step]
    return Prediction(network, photograph, view, output)


def ranking_of(prediction: Prediction) -> Ranking:
    """What the network says: classes by probability, or by area where it gives one at each pixel; values; boxes."""
    task = prediction.network.task
    if task in DECODERS:
        return Ranking("score", _distinct(prediction.detections()))
    if task == "image":
        return Ranking("value", ())
    if prediction.dense:
        prediction.space  # noqa: B018 - or an error
        areas = torch.stack([prediction.found(index).double().mean() for index in range(len(prediction.output))])
        return _ranked("area", areas, 0.0)
    values = prediction.output.reshape(-1).double()
    if task == "regression":
        return _ranked("value", values)
    exclusive = task == "classification" and len(values) > 1
    return _ranked("probability", values.softmax(0) if exclusive else values.sigmoid())


def _ranked(measure: str, values: Float[Tensor, "classes"], above: float = -torch.inf) -> Ranking:
    order = values.argsort(descending=True, stable=True).tolist()
    found = values.tolist()
    return Ranking(measure, tuple(Finding(index, found[index]) for index in order if found[index] > above))


def _distinct(found: Detections) -> tuple[Finding, ...]:
    """Boxes of one class that overlap a better one are left out, as are unsure ones."""
    best, classes = found.scores.max(1)
    order = best.argsort(descending=True, stable=True)
    order = order[: max(1, int((best > SURE).sum()))]
    kept: list[int] = []
    for place in order.tolist():
        same = [other for other in kept if classes[other] == classes[place]]
        if not same or float(overlap(found.boxes[place], found.boxes[same]).max()) < SAME:
            kept.append(place)
    return tuple(Finding(int(classes[place]), float(best[place]), as_box(found.boxes[place])) for place in kept)


def as_box(box: Float[Tensor, "4"]) -> Box:
    """The four numbers."""
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom
