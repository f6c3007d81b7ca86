"""How far a map moves with its image: flipped, with noise, at another size. MobileNetV2, even-numbered photographs.

    python benchmarks/stability.py ../shared      # in minutes

Printed: the median over photographs of a map's correlation with that of the changed image, brought back to its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from ablation import NETWORKS
from torch import Tensor, nn

from integrative_cam import get_method
from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.evaluate._simplicity import correlation
from integrative_cam.methods import Method
from integrative_cam.models import load, read_image

CHANGES = ("flipped", "noise of .05", "320 pixels")


def resized(images: Tensor, side: int) -> Tensor:
    """Images (batch, channel, height, width) at another size."""
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def correlations(explain: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[float]:
    """For each of `CHANGES`; `explain` makes of an image (1, channel, side, side) a map (1, side, side)."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    others = (
        explain(image.flip(-1)).flip(-1),
        explain(image + 0.05 * noise),
        resized(explain(resized(image, 320))[:, None], image.shape[-1])[:, 0],
    )
    for other in others:
        yield correlation(explain(image).flatten(1), other.flatten(1)).item()


def _map(method: Method, model: nn.Module, target: int, image: Tensor) -> Tensor:
    return method(model, image, target).map


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and models/")
    parser.add_argument("--limit", type=int, default=10, help="photographs")
    asked = parser.parse_args()
    source, weights = NETWORKS["MobileNetV2"]
    network = load(source, weights and asked.shared / "models" / weights)
    files = [sample.path for sample in read_dataset(asked.shared / "data" / "photos")][::2]
    chosen = [files[number * len(files) // asked.limit] for number in range(asked.limit)]
    print(f"| n = {asked.limit} | {' | '.join(CHANGES)} |\n|{'---|' * (len(CHANGES) + 1)}")
    for name in ("integrative", "gradcam"):
        method, rows = get_method(name), []
        for file in chosen:
            image = network.preprocessing(read_image(file)).tensor
            target = int(network.model(image).argmax())
            rows.append(list(correlations(partial(_map, method, network.model, target), image)))
        medians = torch.tensor(rows).median(0).values
        print(f"| {name} | {' | '.join(f'{median:.3f}' for median in medians.tolist())} |")


if __name__ == "__main__":
    main()
