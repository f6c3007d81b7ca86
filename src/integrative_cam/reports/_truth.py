"""What a data set says is in a photograph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluate._dataset import Sample, read_boxes, read_dataset
from ..evaluate._voc import IMAGENET_CLASSES, VOC_TO_IMAGENET
from ..models._network import index_in

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FOLDERS = "folders"
"""Stands for: the folder of a photograph is named after its class."""


@dataclass(frozen=True)
class Truth:
    """The classes in one photograph, by index or name, and boxes of them, if known."""

    labels: tuple[str, ...] = ()
    boxes: Mapping[str, Float[Tensor, "box 4"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Truths:
    """Of a data set, by place and, where that is unique, by file name."""

    samples: Mapping[str, Sample]
    by_folder: bool = False

    def of(self, image: Path, size: tuple[int, int]) -> Truth:
        """Of a photograph of `size` (width, height); empty where nothing is known."""
        if self.by_folder:
            return Truth((image.absolute().parent.name,))
        sample = self.samples.get(str(image.absolute())) or self.samples.get(image.name)
        if sample is None:
            return Truth()
        boxes = read_boxes(sample.boxes, size) if sample.boxes else {}
        return Truth((sample.label,) if sample.label else tuple(boxes), boxes)


def read_truth(place: str | None) -> Truths:
    """A CSV file with columns `file` and `label`, a folder with boxes as Pascal VOC, or "folders"; None: nothing.

    Raises:
        InputError: no such data set.
    """
    if place is None or place == FOLDERS:
        return Truths({}, by_folder=place == FOLDERS)
    samples = read_dataset(Path(place))
    names = Counter(sample.path.name for sample in samples)
    by_name = {sample.path.name: sample for sample in samples if names[sample.path.name] == 1}
    return Truths(by_name | {str(sample.path.absolute()): sample for sample in samples})


def stands_for(truth: str, index: int, label: str, classes: int) -> bool:
    """Whether a network's class is the true one: its index, a synonym of its name, or a kind of VOC's class."""
    if index_in(truth) is not None:
        return index_in(truth) == index
    wanted = truth.strip().lower()
    if wanted in (label.lower(), *(part.strip() for part in label.lower().split(","))):
        return True
    return classes == IMAGENET_CLASSES and index in VOC_TO_IMAGENET.get(wanted, ())
