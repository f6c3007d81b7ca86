"""A photograph as the network sees it, and what the network predicts for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image
from torch import Tensor

from .._choices import PROBABILITY_TASKS
from .._plan.probabilities import FinalProbabilities
from ..errors import TargetError, import_extra
from ..models import Network, View, read_image
from ..targets import Decoder, Detections, Output, fastestdet, overlap
from ..targets._output import tensor_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

DECODERS: Mapping[str, Decoder] = {"fastestdet": fastestdet}
"""The function that reads boxes from the output, for each task of a detector."""
MIN_SCORE = 0.3
"""Detections below this score are not listed, except the best one."""
MAX_OVERLAP = 0.45
"""Of two boxes of one class with a larger intersection over union, only the better one is listed."""

ONNX_WARNING = "Using a non-tuple sequence"
"""The start of a warning by torch about onnx2torch's code, of no use to whoever asks about a photograph."""


def probabilities(logits: Float[Tensor, "*batch classes"], task: str) -> Float[Tensor, "*batch classes"]:
    """The network's outputs as its task means them, in float64.

    Args:
        logits: one value per class, along the last axis.
        task: of `Network.task`: "classification" gives the softmax, or the sigmoid of a single logit; "multi-label"
            gives each label's sigmoid; outputs of any other task are values and stay as they are.

    >>> probabilities(torch.tensor([0.0, 0.0]), "classification")
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    logits = logits.double()
    if task == "classification" and logits.shape[-1] > 1:
        return logits.softmax(-1)
    return logits.sigmoid() if task in PROBABILITY_TASKS else logits


@dataclass(frozen=True)
class RankedClass:
    """A class (or output value) with its probability, area, value or score; a detection also has its box.

    `box` is in pixels of the network's input.
    """

    index: int
    value: float
    box: Box | None = None


@dataclass(frozen=True)
class Ranking:
    """What the network predicts, highest value first.

    `measure` says what the values are: "probability"; "area", the share of the output where segmentation finds the
    class; "value", of a regression; or "score", of a detection.
    """

    measure: str
    classes: tuple[RankedClass, ...]

    def find(self, index: int) -> RankedClass | None:
        """The highest entry of a class, or None."""
        return next((entry for entry in self.classes if entry.index == index), None)

    def as_text(self, value: float) -> str:
        """A value as a reader expects it: "97.3%" of a probability or an area."""
        if self.measure in ("probability", "area"):
            return f"{value:.1%}"
        return f"{value:.2f}" if self.measure == "score" else f"{value:.4g}"

    def as_records(self, network: Network, count: int) -> list[dict[str, object]]:
        """The first `count` classes as plain values: index, label, and the value under the measure's name."""
        return [
            {"index": entry.index, "label": network.label(entry.index), self.measure: entry.value}
            for entry in self.classes[:count]
        ]


def rank_outputs(outputs: Float[Tensor, "classes"], task: str) -> Ranking:
    """Rank one value per class by the network's task; see `probabilities`."""
    measure = "probability" if task in PROBABILITY_TASKS else "value"
    return _ranked(measure, probabilities(outputs, task))


@dataclass(frozen=True)
class Prediction:
    """A photograph under a network.

    Attributes:
        network: the network.
        photograph: the whole photograph, 8-bit RGB.
        view: what the network sees of it.
        output: the network's output for the photograph, without the batch axis: (class,), (class, height, width), ...
            Of classes the logits, also where the network returns probabilities.
        file: the photograph's file; empty for an image that was never one.
    """

    network: Network
    photograph: Image
    view: View
    output: Float[Tensor, "*output"]
    file: str = ""

    @cached_property
    def ranking(self) -> Ranking:
        """The classes, values or boxes that the network predicts; empty for a network that makes an image.

        Raises:
            TargetError: the output has a shape that does not fit the task.
        """
        task = self.network.task
        if task in DECODERS:
            return Ranking("score", _without_overlaps(self.detections()))
        if task == "image":
            return Ranking("value", ())
        if not self.is_dense:
            ranking = rank_outputs(self.output.reshape(-1), task)
            # What has no name among names is an output that is not in use.
            named = tuple(entry for entry in ranking.classes if self.network.label(entry.index).strip())
            return replace(ranking, classes=named or ranking.classes)
        self.output_size  # noqa: B018 - raises an error for a shape that is no segmentation
        areas = torch.stack([self.region_of(index).double().mean() for index in range(len(self.output))])
        return _ranked("area", areas, above=0.0)

    @property
    def is_dense(self) -> bool:
        """Whether the output has several values per class, such as one for each pixel."""
        return self.output.ndim > 1 and self.output[0].numel() > 1

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of a dense output.

        Raises:
            TargetError: the output is not (class, height, width).
        """
        if self.output.ndim != 3:
            raise TargetError(
                f"The network's output has shape {tuple(self.output.shape)} per image, but must be (class,) or "
                "(class, height, width). If it is (step, class), choose the step with --step; otherwise explain it in "
                "Python with a target of your own."
            )
        height, width = self.output.shape[1:]
        return height, width

    def region_of(self, index: int) -> Bool[Tensor, "height width"]:
        """Where a dense output shows a class: it ranks first, or, of labels or a single class, has a logit above 0."""
        if self.network.task == "multi-label" or len(self.output) == 1:
            return self.output[index] > 0
        return self.output.argmax(0) == index

    def detections(self) -> Detections:
        """All boxes and scores in a detector's output."""
        return DECODERS[self.network.task](self.output)

    def to_photograph(self, box: Box) -> Box:
        """Convert a box from pixels of the network's input to pixels of the photograph."""
        return self.view.seen.to_photograph(box, self._input_size)

    def to_input(self, box: Box) -> Box:
        """Convert a box from pixels of the photograph to pixels of the network's input."""
        return self.view.seen.to_input(box, self._input_size)

    @property
    def _input_size(self) -> tuple[int, int]:
        height, width = self.view.tensor.shape[2:]
        return width, height


def predict(photograph: str | Path | Image, network: Network, step: int | None = None) -> Prediction:
    """Run the network on a photograph, without gradients.

    Args:
        photograph: an image file, or the image itself (8-bit RGB).
        network: from `models.load`.
        step: of an output (step, class), the step to use; negative steps count from the end.

    Raises:
        ImageError: the file cannot be read as an image.
        TargetError: the output has no such step.
    """
    image = photograph if isinstance(photograph, Image) else read_image(photograph)
    view = network.preprocessing(image)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=ONNX_WARNING)
        with FinalProbabilities() as final:
            whole = network.model(view.tensor)
        sample = Output(whole, 1, logits=final.logits).sample(0)
        if network.task in PROBABILITY_TASKS:
            output, made_by = final.logits_of_sample(sample)
            if made_by == "sigmoid":
                network = replace(network, task="multi-label")
        else:
            output = tensor_of(sample)
    if step is not None:
        if output.ndim < 2 or not -len(output) <= step < len(output):
            raise TargetError(
                f"--step {step} needs an output of (step, class) with that many steps, but it has shape "
                f"{tuple(output.shape)} per image."
            )
        output = output[step]
    return Prediction(network, image, view, output, "" if isinstance(photograph, Image) else str(photograph))


def example_photograph() -> Path:
    """The cat that comes with scikit-image.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    skimage = import_extra("skimage", "The bundled photograph", "demo")
    return Path(skimage.__file__).parent / "data" / "chelsea.png"


def _ranked(measure: str, values: Float[Tensor, "classes"], above: float = -torch.inf) -> Ranking:
    order = values.argsort(descending=True, stable=True).tolist()
    listed = values.tolist()
    return Ranking(measure, tuple(RankedClass(index, listed[index]) for index in order if listed[index] > above))


def _without_overlaps(found: Detections) -> tuple[RankedClass, ...]:
    """Greedy non-maximum suppression within each class; unsure detections are left out, except the best."""
    scores, classes = found.scores.max(1)
    order = scores.argsort(descending=True, stable=True)
    order = order[: max(1, int((scores > MIN_SCORE).sum()))]
    kept: list[int] = []
    for place in order.tolist():
        same = [other for other in kept if classes[other] == classes[place]]
        if not same or float(overlap(found.boxes[place], found.boxes[same]).max()) < MAX_OVERLAP:
            kept.append(place)
    return tuple(RankedClass(int(classes[place]), float(scores[place]), as_box(found.boxes[place])) for place in kept)


def as_box(box: Float[Tensor, "4"]) -> Box:
    """A tensor of four numbers as a box."""
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom
