"""Why does a segmentation network see a class where it sees it? And does the map lie on the object?

    python examples/segmentation.py deeplabv3_mnv2_voc.onnx VOC_FOLDER --limit 20

For each class in a photograph that the network finds too: over the pixels where the network ranks the class first, its
mean logit less that of the background is explained, and the share of the map inside of the annotated mask printed,
beside that of maps that know nothing of the network. The annotation has no part in the map.

Needs the extras `onnx` and `evaluate`; DeepLabV3 with 21 VOC classes, its input 513 x 513; a folder as Pascal VOC with
JPEGImages/ and SegmentationClass*/.
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
    parser.add_argument("dataset", type=Path, help="a folder as Pascal VOC, with masks")
    parser.add_argument("--limit", type=int, default=20, help="at most so many photographs, at even distances")
    parser.add_argument("--out", type=Path, help="a folder for overlays")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # of onnx2torch, about its own code

    model = load(str(arguments.model)).model
    samples = spread([each for each in read_dataset(arguments.dataset) if each.masks], arguments.limit)
    found, missed = [], 0
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
            found.append(objects)
    print(f"{len(samples)} photographs; {missed} annotated classes that the network does not find are left out")
    if found:
        print_table(found, "mask")


def explained(model: nn.Module, picture: Image.Image, index: int) -> dict[str, Float[Tensor, "height width"]]:
    """Each method's map for a class where the network finds it, at the photograph's size; none if it does nowhere."""
    canvas, (height, width) = adjust_for_resolution(picture)
    with torch.no_grad():
        where = model(canvas)[0].argmax(0) == index
    if not where.any():
        return {}
    target = targets.contrast(targets.segmentation(index, where), targets.segmentation(BACKGROUND, where))
    maps = {name: way(model, canvas, target).map[:, None, :height, :width] for name, way in METHODS.items()}
    size = (picture.height, picture.width)
    return {
        name: nn.functional.interpolate(found, size, mode="bilinear", align_corners=False)[0, 0]
        for name, found in maps.items()
    }


def adjust_for_resolution(picture: Image.Image) -> tuple[Float[Tensor, "1 3 513 513"], tuple[int, int]]:
    """The photograph at the top left of a grey canvas, its longest side SIDE; its (height, width) there."""
    scale = SIDE / max(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    values = np.full((SIDE, SIDE, 3), GREY, dtype=np.float32)
    values[:height, :width] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy((values - GREY) / GREY).permute(2, 0, 1)[None].contiguous(), (height, width)


if __name__ == "__main__":
    main()
