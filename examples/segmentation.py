"""Why does a segmentation network predict a class where it predicts it? And does the map lie on the object?

    python examples/segmentation.py deeplabv3_mnv2_voc.onnx VOC_FOLDER --limit 20

For each annotated class that the network predicts too, the example explains the mean logit of the class minus that of
the background, over the pixels where the network predicts the class. It prints the share of the map that lies inside
the annotated mask, and the same for maps that know nothing of the network. The annotation is not used for the map.

Needs the extras `onnx` and `evaluate`; DeepLabV3 with 21 VOC classes and an input of 513 x 513; a folder in the layout
of Pascal VOC with JPEGImages/ and SegmentationClass*/.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from baselines import METHODS, OURS, measured, print_table
from PIL import Image
from torch import Tensor, nn

from integrative_cam import targets
from integrative_cam.evaluate._dataset import objects_in, read_dataset, spread
from integrative_cam.models import load, read_image
from integrative_cam.models._image import read_classes
from integrative_cam.render import overlay

if TYPE_CHECKING:
    from jaxtyping import Float

SIDE = 513
GREY = 127.5
BACKGROUND = 0


def main() -> None:
    """Read the arguments, explain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="deeplabv3_mnv2_voc.onnx")
    parser.add_argument("dataset", type=Path, help="a folder in the layout of Pascal VOC, with masks")
    parser.add_argument("--limit", type=int, default=20, help="at most this many photographs, evenly spaced")
    parser.add_argument("--out", type=Path, help="a folder for overlays")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # of onnx2torch, about its own code

    model = load(str(arguments.model)).model
    samples = spread([sample for sample in read_dataset(arguments.dataset) if sample.masks], arguments.limit)
    results, missed = [], 0
    for number, sample in enumerate(samples):
        picture, classes = read_image(sample.path), read_classes(str(sample.masks))
        objects = []
        for name, index in objects_in(classes).items():
            saliency = explained(model, picture, index)
            if not saliency:
                missed += 1
                continue
            objects.append(measured(saliency, classes == index, seed=number))
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                overlay(saliency[OURS], picture).save(arguments.out / f"{sample.path.stem}-{name}.png")
        if objects:
            results.append(objects)
    print(f"{len(samples)} photographs; {missed} annotated classes that the network does not predict are left out")
    if results:
        print_table(results, "mask")


def explained(model: nn.Module, picture: Image.Image, index: int) -> dict[str, Float[Tensor, "height width"]]:
    """Each method's map of a class, at the photograph's size; empty if the network predicts the class nowhere."""
    canvas, (height, width) = on_canvas(picture)
    with torch.no_grad():
        where = model(canvas)[0].argmax(0) == index
    if not where.any():
        return {}
    target = targets.contrast(targets.segmentation(index, where), targets.segmentation(BACKGROUND, where))
    maps = {name: method(model, canvas, target).map[:, None, :height, :width] for name, method in METHODS.items()}
    size = (picture.height, picture.width)
    return {
        name: nn.functional.interpolate(heat, size, mode="bilinear", align_corners=False)[0, 0]
        for name, heat in maps.items()
    }


def on_canvas(picture: Image.Image) -> tuple[Float[Tensor, "1 3 513 513"], tuple[int, int]]:
    """The photograph at the top left of a grey canvas, with its longest side SIDE, and its (height, width) there."""
    scale = SIDE / max(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    values = np.full((SIDE, SIDE, 3), GREY, dtype=np.float32)
    values[:height, :width] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy((values - GREY) / GREY).permute(2, 0, 1)[None].contiguous(), (height, width)


if __name__ == "__main__":
    main()
