"""Photographs beside the maps of several methods, to be looked at one by one.

    python benchmarks/contact_sheet.py ../shared --network MobileNetV2 --first 0 --count 8 --out sheet.jpg

Of the photographs that the default was not chosen on, 40 evenly spaced ones are numbered from 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ablation import NETWORKS
from PIL import Image
from rich.progress import track

from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.integrations._libraries import named
from integrative_cam.models import Network, load, read_image
from integrative_cam.render import overlay

METHODS = ("integrative", "gradcam", "grad-cam:LayerCAM@stages", "grad-cam:HiResCAM@stages")
PHOTOGRAPHS = 40
WIDTH = 224


def row(network: Network, file: Path) -> list[Image.Image]:
    """The photograph, and the overlay of each method for the network's own top class."""
    photograph = read_image(file)
    view = network.preprocessing(photograph)
    model = network.model
    target = int(model(view.tensor).argmax())
    maps = (named(method)(model, view.tensor, target).map[0] for method in METHODS)
    pictures = [photograph, *(overlay(saliency, photograph, view.region) for saliency in maps)]
    size = (WIDTH, round(WIDTH * photograph.height / photograph.width))
    return [picture.resize(size) for picture in pictures]


def main() -> None:
    """Write one sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and models/")
    parser.add_argument("--network", choices=NETWORKS, default="MobileNetV2")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("contact-sheet.jpg"))
    asked = parser.parse_args()
    source, weights = NETWORKS[asked.network]
    network = load(source, weights and asked.shared / "models" / weights)
    held_out = [sample.path for sample in read_dataset(asked.shared / "data" / "photos")][1::2]
    spaced = [held_out[number * len(held_out) // PHOTOGRAPHS] for number in range(PHOTOGRAPHS)]
    rows = [row(network, file) for file in track(spaced[asked.first : asked.first + asked.count])]
    sheet = Image.new("RGB", (WIDTH * len(rows[0]), sum(pictures[0].height for pictures in rows)))
    top = 0
    for pictures in rows:
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (WIDTH * column, top))
        top += pictures[0].height
    sheet.save(asked.out, quality=85)
    print(f"{asked.out}: the photograph, {', '.join(METHODS)}")


if __name__ == "__main__":
    main()
