"""What is measured on: photographs of a folder, of a CSV file, or with boxes or masks as in Pascal VOC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import torch
from torch import Tensor

from ..errors import InputError
from ..models._image import SUFFIXES
from ..run._sources import read_list
from ._voc import IMAGENET_CLASSES, VOC_TO_IMAGENET

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAX_BYTES = 2**20
"""Of an annotation."""
MAX_SIDE = 2**24
"""Pixels that a coordinate may have: whole numbers up to it are exact in float32."""


@dataclass(frozen=True)
class Sample:
    """A photograph, and what the data set knows about it.

    `name` is its path in the data set, `label` a class index or name, `boxes` an XML file, `masks` an image file.
    """

    path: Path
    name: str
    label: str = ""
    boxes: Path | None = None
    masks: Path | None = None


def read_dataset(place: Path) -> list[Sample]:
    """List the samples of a data set.

    A folder with JPEGImages/ (or images/) and Annotations/ or SegmentationClass*/ is read as Pascal VOC: its
    photographs that have an annotation or a mask of the same name. Any other folder gives all images in it, a CSV file
    those in its column `file`, with the labels in its column `label`, if there is one.

    Raises:
        InputError: no such data set, or no image in it.
    """
    if place.is_dir():
        samples = _voc(place) or [Sample(path, path.relative_to(place).as_posix()) for path in _images(place)]
    elif place.is_file():
        rows = read_list(place.read_bytes(), place)
        samples = [Sample(place.parent / row["file"], row["file"], (row.get("label") or "").strip()) for row in rows]
    else:
        raise InputError(f"{place}: no such folder or CSV file.")
    if not samples:
        raise InputError(f"{place}: holds no image ({', '.join(sorted(SUFFIXES))}).")
    return samples


def spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Of more than `limit` samples, as many at even distances."""
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[index * len(samples) // limit] for index in range(limit)]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _voc(place: Path) -> list[Sample]:
    images = next((place / name for name in ("JPEGImages", "images") if (place / name).is_dir()), None)
    masks = next(iter(sorted(path for path in place.glob("SegmentationClass*") if path.is_dir())), None)
    boxes = place / "Annotations"
    if images is None or not (masks or boxes.is_dir()):
        return []
    samples = []
    for path in _images(images):
        box, mask = boxes / f"{path.stem}.xml", masks / f"{path.stem}.png" if masks else None
        has_box, has_mask = box.is_file(), mask is not None and mask.is_file()
        if has_box or has_mask:
            name = path.relative_to(images).as_posix()
            samples.append(Sample(path, name, "", box if has_box else None, mask if has_mask else None))
    return samples


def read_boxes(file: Path, size: tuple[int, int]) -> dict[str, Float[Tensor, "box 4"]]:
    """The boxes of each class in a VOC annotation of an image of `size` (width, height), in its pixels, from 0.

    VOC counts pixels from 1 and means the last to be inside. Nothing outside of the file is ever read, and nothing in
    it is expanded: a document type, which alone could define entities, is refused.

    Raises:
        InputError: no VOC annotation, one above MAX_BYTES, or one of an image of another size.
    """
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"{file}: is over {MAX_BYTES // 2**20} MB, which no annotation is.")
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_Builder()))
        stated = tuple(int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        objects = [
            (_text(entry, "name"), [_pixel(entry, corner) for corner in _CORNERS]) for entry in root.iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{file}: no VOC annotation that can be read ({error}).") from None
    if all(stated) and stated != size:
        raise InputError(f"{file}: describes {stated[0]} x {stated[1]} pixels, but the image is {size[0]} x {size[1]}.")
    boxes: dict[str, list[list[float]]] = {}
    for name, (left, top, right, bottom) in objects:
        if right < left or bottom < top:
            raise InputError(f"{file}: a box of {name} has no width or height.")
        boxes.setdefault(name, []).append([left - 1, top - 1, right, bottom])
    return {name: torch.tensor(corners) for name, corners in boxes.items()}


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, *_: str | None) -> None:
        raise ValueError(f"it has a document type, {name}, which annotations do not need")


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"an object without {path}")
    return text


def _pixel(element: ElementTree.Element, corner: str) -> float:
    value = float(_text(element, f"bndbox/{corner}"))
    if not abs(value) < MAX_SIDE:
        raise ValueError(f"{corner} is {value}")
    return value


def objects_in(classes: Int[Tensor, "height width"]) -> dict[str, int]:
    """The VOC classes in a mask with their indices, 1 to 20; 0 is background, 255 the border that belongs to none."""
    names = list(VOC_TO_IMAGENET)
    return {names[index - 1]: index for index in sorted(set(classes.flatten().tolist())) if 1 <= index <= len(names)}


def is_named(label: str, name: str) -> bool:
    """Whether a class's label is the name, or has it among its synonyms, in any case."""
    return name.lower() in (label.lower(), *(synonym.strip() for synonym in label.lower().split(",")))


def target_of(name: str, labels: Sequence[str], logits: Float[Tensor, "classes"], among: int = 20) -> int:
    """The network's class that stands for an object: the most probable one, if it is among the top `among`.

    An object's classes are those whose label has its name, in any case, or else, for a network of 1000 classes, the
    kinds of it in ImageNet (`VOC_TO_IMAGENET`).

    Raises:
        InputError: no class stands for it, or none within the first `among`.
    """
    classes = [index for index, label in enumerate(labels) if is_named(label, name)]
    if not classes and len(logits) == IMAGENET_CLASSES:
        classes = list(VOC_TO_IMAGENET.get(name.lower(), ()))
    if not classes:
        raise InputError(f"no class of the network stands for {name}")
    ranked: list[int] = logits.argsort(descending=True, stable=True)[:among].tolist()
    likely = [index for index in ranked if index in classes]
    if not likely:
        raise InputError(f"no {name} within the network's top {among}")
    return likely[0]
