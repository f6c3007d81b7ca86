"""The default's map as it is measured and as it is shown, beside rivals': how rough, and how faithful.

    python benchmarks/calm.py ../shared      # the ablation's photographs that it did not choose on; in minutes

Printed: total variation times 1000 and insertion minus deletion in 8 steps, the mean of each network and, over
photographs (each the mean over the networks), with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from ablation import NETWORKS, STEPS
from rich.progress import track
from torch import Tensor, nn

from integrative_cam import get_method
from integrative_cam.evaluate import bootstrap_mean, deletion, insertion, total_variation
from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.integrations._libraries import named
from integrative_cam.models import load, read_image
from integrative_cam.render import presented

RIVALS = ("gradcam", "grad-cam:HiResCAM@stages", "grad-cam:LayerCAM@stages", "grad-cam:LayerCAM@activations")
Maps = Callable[[nn.Module, Tensor, int], Tensor]


def kinds() -> dict[str, Maps]:
    """Ways to a map (1, height, width) of a model, an image and a class."""
    integrative = get_method("integrative")
    return {
        "integrative, measured": lambda model, image, target: integrative(model, image, target).map,
        "integrative, shown": lambda model, image, target: presented(integrative(model, image, target)),
        **{name: partial(lambda rival, *asked: rival(*asked).map, named(name)) for name in RIVALS},
    }


def measured(model: nn.Module, image: Tensor, maps: Tensor, target: int) -> tuple[float, float]:
    """Total variation times 1000, and insertion minus deletion."""
    gain = insertion(model, image, maps, target, STEPS) - deletion(model, image, maps, target, STEPS)
    return 1000 * total_variation(maps).item(), gain.item()


def main() -> None:
    """Measure every kind of map and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and models/")
    parser.add_argument("--limit", type=int, default=34, help="photographs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The map of image")
    held_out = read_dataset(asked.shared / "data" / "photos")[1::2]
    chosen = [held_out[index * len(held_out) // asked.limit].path for index in range(asked.limit)]
    found = torch.empty(len(kinds()), 2, len(NETWORKS), len(chosen), dtype=torch.float64)
    for at, (name, (source, weights)) in enumerate(NETWORKS.items()):
        network = load(source, weights and asked.shared / "models" / weights)
        for number, path in enumerate(track(chosen, name)):
            image = network.preprocessing(read_image(path)).tensor
            target = int(network.model(image).argmax())
            for kind, explain in enumerate(kinds().values()):
                values = measured(network.model, image, explain(network.model, image, target), target)
                found[kind, :, at, number] = torch.tensor(values, dtype=torch.float64)
    print(f"\n| map | {' | '.join(f'variation, {name}' for name in NETWORKS)} | variation | insertion - deletion |")
    print("|---" * (len(NETWORKS) + 3) + "|")
    for name, values in zip(kinds(), found, strict=True):
        rough = " | ".join(f"{mean:.1f}" for mean in values[0].mean(1).tolist())
        variation, gain = (bootstrap_mean(each) for each in values.mean(1))
        print(
            f"| {name} | {rough} | {variation.mean:.1f} [{variation.low:.1f}, {variation.high:.1f}] "
            f"| {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}] |"
        )
    print(f"\nn = {len(chosen)} photographs")


if __name__ == "__main__":
    main()
