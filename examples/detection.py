"""Why does a detector see this object in this box? And does the map lie on the object?

    python examples/detection.py FastestDet.onnx coco.names VOC_FOLDER --limit 20

An annotated object counts as detected if a box of its class with a score above 0.3 overlaps the annotated box by at
least 0.5. For each detected object, the example explains the score of the matching box. It prints the share of the map
that lies inside the annotated box, and the same for maps that know nothing of the network.

The file does not say whether it takes RGB or BGR. Both are tried on all photographs, and the order that detects more
objects is used.

Needs the extras `onnx` and `evaluate`; FastestDet with an input of 352 x 352, and its class names, one per line; a
folder in the layout of Pascal VOC with JPEGImages/ and Annotations/.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from baselines import METHODS, OURS, measured, print_table
from PIL import Image
from torch import Tensor, nn

from integrative_cam import targets
from integrative_cam.evaluate import mask_of_boxes
from integrative_cam.evaluate._dataset import Sample, read_boxes, read_dataset, spread
from integrative_cam.models import Preprocessing, load, read_image
from integrative_cam.render import overlay

if TYPE_CHECKING:
    from jaxtyping import Float

SIDE = 352
VIEW = Preprocessing(resize=(SIDE, SIDE), crop=(SIDE, SIDE), mean=(0, 0, 0), std=(1, 1, 1))
SURE, HIT = 0.3, 0.5
ORDERS = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}


@dataclass(frozen=True)
class Annotated:
    """An annotated object: its class's name and index, its box in pixels of the network's input."""

    name: str
    index: int
    box: Float[Tensor, "4"]


def main() -> None:
    """Read the arguments, find the order of the channels, explain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="FastestDet.onnx")
    parser.add_argument("names", type=Path, help="coco.names")
    parser.add_argument("dataset", type=Path, help="a folder in the layout of Pascal VOC, with boxes")
    parser.add_argument("--limit", type=int, default=20, help="explain at most this many photographs, evenly spaced")
    parser.add_argument("--out", type=Path, help="a folder for overlays")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # of onnx2torch, about its own code

    model, names = load(str(arguments.model)).model, arguments.names.read_text().split("\n")
    samples = [sample for sample in read_dataset(arguments.dataset) if sample.boxes]
    recalls = {order: recall(model, samples, names, order) for order in ORDERS}
    order = max(recalls, key=recalls.__getitem__)
    shown = ", ".join(f"{name} {share:.3f}" for name, share in recalls.items())
    print(f"recall on {len(samples)} photographs: {shown}; {order} is used")

    results = []
    for number, sample in enumerate(spread(samples, arguments.limit)):
        picture = read_image(sample.path)
        image, objects = view(picture, order), []
        for place, annotated in enumerate(detected(model, image, annotated_in(sample, picture, names))):
            target = targets.detection(annotated.box, annotated.index, targets.fastestdet, HIT)
            saliency = {name: method(model, image, target).map[0] for name, method in METHODS.items()}
            objects.append(measured(saliency, mask_of_boxes(annotated.box[None], (SIDE, SIDE)), seed=number))
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                drawn = overlay(saliency[OURS], picture, (0, 0, *picture.size))  # the network saw all of it, squashed
                drawn.save(arguments.out / f"{sample.path.stem}-{place}-{annotated.name}.png")
        if objects:
            results.append(objects)
    if results:
        print_table(results, "box")


def recall(model: nn.Module, samples: Sequence[Sample], names: Sequence[str], order: str) -> float:
    """The share of all annotated objects that are detected."""
    annotated = hits = 0
    for sample in samples:
        picture = read_image(sample.path)
        objects = annotated_in(sample, picture, names)
        annotated += len(objects)
        hits += len(list(detected(model, view(picture, order), objects)))
    return hits / annotated


def view(picture: Image.Image, order: str) -> Float[Tensor, "1 3 352 352"]:
    """The whole photograph, squashed, its channels in this order."""
    return VIEW(picture).tensor[:, ORDERS[order]]


def annotated_in(sample: Sample, picture: Image.Image, names: Sequence[str]) -> list[Annotated]:
    """The annotated objects; the 20 classes of VOC are among those of COCO."""
    boxes = read_boxes(sample.boxes, picture.size) if sample.boxes else {}
    return [
        Annotated(name, names.index(name), box)
        for name, of_class in boxes.items()
        for box in VIEW.boxes(of_class, picture.size)
    ]


def detected(
    model: nn.Module, image: Float[Tensor, "1 3 352 352"], objects: Sequence[Annotated]
) -> Iterator[Annotated]:
    """The objects that the network detects: a confident box of their class overlaps them."""
    with torch.no_grad():
        detections = targets.fastestdet(model(image)[0])
    best, classes = detections.scores.max(1)
    for annotated in objects:
        hit = (targets.overlap(annotated.box, detections.boxes) >= HIT) & (classes == annotated.index) & (best > SURE)
        if hit.any():
            yield annotated


if __name__ == "__main__":
    main()
