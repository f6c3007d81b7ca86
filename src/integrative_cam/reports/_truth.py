"""The true classes and boxes of photographs, from a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluate._dataset import Sample, is_named, read_boxes, read_dataset
from ..evaluate._voc import IMAGENET_CLASSES, VOC_TO_IMAGENET
from ..models._network import index_in

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FOLDERS = "folders"
"""Means that the folder of each photograph is named after its class."""


@dataclass(frozen=True)
class Truth:
    """The classes in one photograph, by index or name, and their boxes in its pixels, as far as they are known."""

    labels: tuple[str, ...] = ()
    boxes: Mapping[str, Float[Tensor, "box 4"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Truths:
    """The truth of a data set; samples by absolute path and, if it is unique, by file name."""

    samples: Mapping[str, Sample]
    by_folder: bool = False

    def of(self, image: Path, size: tuple[int, int]) -> Truth:
        """The truth of a photograph of `size` (width, height) in pixels; empty if nothing is known."""
        if self.by_folder:
            return Truth((image.absolute().parent.name,))
        sample = self.samples.get(str(image.absolute())) or self.samples.get(image.name)
        if sample is None:
            return Truth()
        boxes = read_boxes(sample.boxes, size) if sample.boxes else {}
        return Truth((sample.label,) if sample.label else tuple(boxes), boxes)


def read_truth(place: str | None) -> Truths:
    """Read a CSV file with columns `file` and `label`, or a folder with boxes as in Pascal VOC.

    "folders" takes the name of each photograph's folder as its class; None knows nothing.

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
    """Whether the true class is the network's: its index, a synonym of its name, or VOC's name for the kind it is."""
    if index_in(truth) is not None:
        return index_in(truth) == index
    name = truth.strip()
    is_kind = classes == IMAGENET_CLASSES and index in VOC_TO_IMAGENET.get(name.lower(), ())
    return is_kind or is_named(label, name)
