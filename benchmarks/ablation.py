"""Which ingredients earn their place: the default recipe with one of them changed at a time.

    python benchmarks/ablation.py develop ../shared     # on the photographs to choose on
    python benchmarks/ablation.py verify ../shared      # the other half, and two more networks

Each run goes on where it stopped and prints Markdown tables: docs/ablation.md holds them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from unseen import brain_scans, cifar_images, small_photographs

from integrative_cam import Recipe, explain_trace, trace
from integrative_cam._maps.traced import Trace
from integrative_cam.evaluate import _cells as cells
from integrative_cam.evaluate import _faithfulness as faithfulness
from integrative_cam.evaluate import _simplicity as simplicity
from integrative_cam.evaluate import blurred, bootstrap_mean, paired_difference, zeros
from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.models import Network, load, read_image
from integrative_cam.recipe import PLAIN

STEPS = 8
NETWORKS = {
    "EfficientNet-Lite0": ("efficientnet-lite0", None),
    "MobileNetV2": ("torchvision/mobilenet_v2", "mobilenet_v2.safetensors"),
    "SqueezeNet 1.1": ("torchvision/squeezenet1_1", "squeezenet1_1.safetensors"),
}
DECISIVE = ("cells", "single cell", "sets", "pixels")
"""Insertion minus deletion by cells and by pixels, single-cell deletion, faithfulness correlation: of these also
differences are printed."""
UNSEEN = {
    "ResNet-56": cifar_images,
    "ResNet-56, small photographs": small_photographs,
    "VGG16, brain MRI": brain_scans,
}


CHANGES: dict[str, Sequence[Any]] = {
    "score": ("logit",),
    "regions": (None, 7, 28),
    "centred": (False,),
    "negative_share": (0.5, 0.75, 1.0),
    "readout": ("identity",),
    "bias": ("none",),
    "weighting": ("uniform", "last"),
    "weight_exponent": (0.5,),
    "path_exponent": (0.0,),
    "taps": ("stages",),
    "gamma": (0.85,),
}
"""One ingredient at a time."""
OF_0_1_0 = {"score": "logit", "regions": None, "centred": False, "negative_share": 0.5, "gamma": 0.85}


def rows() -> dict[str, dict[str, Any]]:
    """What differs from the default recipe, by the name of the row; the first row is what others are compared with."""
    changes = {f"{name} = {value}": {name: value} for name, values in CHANGES.items() for value in values}
    return {
        "default": {},
        **changes,
        "default of 0.1.0": OF_0_1_0,
        "HiResCAM over stages": _linear(taps="stages", negative_share=1.0),
        "LayerCAM over stages": _linear(taps="stages", negative_share=0.0),
        "LayerCAM over all activations": _linear(negative_share=0.0),
    }


def _linear(**ingredients: Any) -> dict[str, Any]:
    plain = {"readout": "identity", "bias": "none", "weighting": "uniform", "signed": False}
    return {**PLAIN, **plain, **ingredients}


@dataclass(frozen=True)
class Task:
    """One image under one network."""

    network: str
    image: int
    stage: str
    shared: Path
    out: Path

    @property
    def file(self) -> Path:
        return self.out / self.stage / self.network / f"{self.image:04d}.json"


def measure(task: Task) -> None:
    """All rows' values for one image; written at once."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The map of image")
    network, images = _loaded(task.network, task.shared)
    model, image = network.model, images[task.image]
    if isinstance(image, Path):
        image = network.preprocessing(read_image(image)).tensor
    image = image.contiguous(memory_format=torch.channels_last)
    target, *others = _classes(model(image)[0])
    index = torch.tensor([target])
    falls = cells.falls_by_cell(model, image, index)
    logits = cells.logits_of_sets(model, image, index)

    @cache
    def traced(own: int, taps: str, score: str) -> Trace:
        return trace(model, image, own, taps, contrast=score == "contrast")

    found = {}
    for name, change in rows().items():
        recipe = replace(Recipe(), **change)
        own, *rivals = (explain_trace(traced(each, recipe.taps, recipe.score), recipe) for each in (target, *others))
        maps = own.map
        shown, dimmed = faithfulness.dimmed_probabilities(model, image, maps, index)
        found[name] = {
            "pixels": _gain(model, image, maps, index, None),
            "cells": _gain(model, image, maps, index, cells.CELL),
            "single cell": cells.single_cell_of(own.signed_map, falls).item(),
            "sets": cells.faithfulness_correlation_of(own.signed_map, logits).item(),
            "drop": faithfulness.share_lost(shown, dimmed).item(),
            "increase": faithfulness.gained(shown, dimmed).item(),
            "area": simplicity.area(maps).item(),
            "variation": 1000 * simplicity.total_variation(maps).item(),
            "second class": simplicity.correlation(maps.flatten(1), rivals[0].map.flatten(1)).item(),
            "unrelated class": simplicity.correlation(maps.flatten(1), rivals[1].map.flatten(1)).item(),
        }
    task.file.parent.mkdir(parents=True, exist_ok=True)
    draft = task.file.with_suffix(".draft")
    draft.write_text(json.dumps(found))
    draft.replace(task.file)


def _classes(logits: Tensor) -> tuple[int, int, int]:
    """The top class, the second one, and one of median logit."""
    order = logits.argsort(descending=True).tolist()
    return order[0], order[1], order[len(order) // 2]


def _gain(model: nn.Module, image: Tensor, maps: Tensor, index: Tensor, size: int | None) -> float:
    """Insertion minus deletion, which deletes to zero by pixels and to the blurred image by cells."""
    shown = faithfulness.insertion(model, image, maps, index, STEPS, cells=size)
    hidden = faithfulness.deletion(model, image, maps, index, STEPS, blurred if size else zeros, cells=size)
    return (shown - hidden).item()


@lru_cache(maxsize=1)
def _loaded(name: str, shared: Path) -> tuple[Network, Sequence[Any]]:
    if name in UNSEEN:
        network, images = UNSEEN[name](shared)
    else:
        model, weights = NETWORKS[name]
        network = load(model, weights and shared / "models" / weights)
        images = [sample.path for sample in read_dataset(shared / "data" / "photos")]
    network.model.eval().to(memory_format=torch.channels_last)
    return network, images


def tasks(stage: str, shared: Path, out: Path, limit: int | None) -> Iterator[Task]:
    """Photographs with an even number are for choosing, those with an odd one for verifying."""
    for name in NETWORKS:
        images = range(int(stage == "verify"), len(_loaded(name, shared)[1]), 2)
        chosen = images if limit is None else [images[index * len(images) // limit] for index in range(limit)]
        yield from (Task(name, image, stage, shared, out) for image in chosen)
    if stage == "verify":
        for name in UNSEEN:
            yield from (Task(name, image, stage, shared, out) for image in range(len(_loaded(name, shared)[1])))


def table(done: Sequence[Task], title: str) -> None:
    """Means over images and networks, and differences to the first row, paired, in what decides."""
    found = [json.loads(task.file.read_text()) for task in done]
    values = {
        name: {metric: torch.tensor([each[name][metric] for each in found], dtype=torch.float64) for metric in first}
        for name, first in found[0].items()
    }
    metrics = next(iter(values.values()))
    print(f"\n{title}, n = {len(found)}\n\n| recipe | {' | '.join(metrics)} |\n|{'---|' * (len(metrics) + 1)}")
    for name, row in values.items():
        print(f"| {name} | {' | '.join(f'{bootstrap_mean(each).mean:.3f}' for each in row.values())} |")
    default, *others = values
    print(f"\n| minus the {default} | {' | '.join(DECISIVE)} |\n|{'---|' * (len(DECISIVE) + 1)}")
    for name in others:
        ahead = [paired_difference(values[name][metric], values[default][metric]) for metric in DECISIVE]
        print(f"| {name} | {' | '.join(f'{each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}]' for each in ahead)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("develop", "verify"))
    parser.add_argument("shared", type=Path, help="the folder with data/ and models/")
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="where finished images are kept")
    parser.add_argument("--limit", type=int, help="photographs per network")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    todo = list(tasks(asked.stage, asked.shared, asked.out, asked.limit))
    missing = [task for task in todo if not task.file.is_file()]
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        for _ in track(pool.imap_unordered(measure, missing), total=len(missing), description="Measuring"):
            pass
    photographs = [task for task in todo if task.network in NETWORKS]
    table(photographs, "All three networks")
    for name in dict.fromkeys(task.network for task in todo):
        table([task for task in todo if task.network == name], name)


if __name__ == "__main__":
    main()
