"""Which ingredients earn their place: the default recipe with one of them changed at a time.

    python benchmarks/ablation.py develop ../shared     # on the photographs to choose on: the second default
    python benchmarks/ablation.py places ../shared      # there: the step from it to the default
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
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from unseen import brain_scans, cifar_images, small_photographs

from integrative_cam import Recipe, explain_trace, trace
from integrative_cam.evaluate import _faithfulness as faithfulness
from integrative_cam.evaluate import _simplicity as simplicity
from integrative_cam.evaluate import bootstrap_mean, paired_difference
from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.models import Network, load, read_image
from integrative_cam.recipe import PLAIN

STEPS = 8
SECOND = {"stride_exponent": 0.0, "stage_share": 0.0, "gamma": 1.0}
"""What the default was without; the rows of `develop` are changes of it."""
NETWORKS = {
    "EfficientNet-Lite0": ("efficientnet-lite0", None),
    "MobileNetV2": ("torchvision/mobilenet_v2", "mobilenet_v2.safetensors"),
    "SqueezeNet 1.1": ("torchvision/squeezenet1_1", "squeezenet1_1.safetensors"),
}
UNSEEN = {
    "ResNet-56": cifar_images,
    "ResNet-56, small photographs": small_photographs,
    "VGG16, brain MRI": brain_scans,
}


def changes(stage: str) -> dict[str, dict[str, Any]]:
    """What differs from the default recipe, by the name of the row; the first row is what others are compared with."""
    rivals = {
        "HiResCAM over stages": _linear(taps="stages", negative_share=1.0),
        "LayerCAM over all activations": _linear(negative_share=0.0),
    }
    if stage == "develop":
        return {name: {**SECOND, **row} for name, row in {"second default": {}, **_changes(), **rivals}.items()}
    steps: dict[str, dict[str, Any]] = {
        **{f"stage_share = {share}": {"stage_share": share} for share in (0.0, 0.25, 1.0)},
        **{f"gamma = {gamma}": {"gamma": gamma} for gamma in (0.7, 1.0)},
    }
    if stage == "verify":
        steps = {
            "bias = none": {"bias": "none"},
            "stage_share = 0": {"stage_share": 0.0},
            "stride_exponent = 0": {"stride_exponent": 0.0},
        }
    return {"default": {}, **steps, "second default": SECOND, **rivals}


def _changes() -> dict[str, dict[str, Any]]:
    ingredients: dict[str, Sequence[Any]] = {
        "readout": ("identity", "softplus", "softmax", "log_softmax", exp_of_a_fifth),
        "aggregation": ("channel",),
        "negative_share": (0.0, 0.25, 0.75, 1.0),
        "bias": ("none", "complete", "residual"),
        "bias_share": (0.1, 0.4),
        "weighting": ("uniform", "product", "average", "geometric", "last"),
        "weight_exponent": (0.125, 0.5, 1.0),
        "path_exponent": (0.0, 2.0, 16.0),
        "taps": ("stages",),
        "signed": (False,),
        "fusion": ("max", "geometric", "product"),
    }
    rows = {
        f"{name} = {getattr(value, '__name__', value)}": {name: value}
        for name, values in ingredients.items()
        for value in values
    }
    rows["negative_share = 1, signed = False"] = {"negative_share": 1.0, "signed": False}
    return {
        **rows,
        "the first default: weight_exponent = 0.5, path_exponent = 0": {"weight_exponent": 0.5, "path_exponent": 0.0},
    }


def exp_of_a_fifth(score: Tensor) -> Tensor:
    """exp(S / 5): rho = 1/5."""
    return (score / 5).exp()


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
    traces: dict[Any, Any] = {}
    found = {}
    for name, change in changes(task.stage).items():
        recipe = replace(Recipe(), **change)
        if recipe.taps not in traces:
            traces[recipe.taps] = trace(model, image, None, recipe.taps)
        explanation = explain_trace(traces[recipe.taps], recipe)
        assert explanation.target is not None
        maps, target = explanation.map, explanation.target
        shown, dimmed = faithfulness.dimmed_probabilities(model, image, maps, target)
        insertion = faithfulness.insertion(model, image, maps, target, STEPS)
        deletion = faithfulness.deletion(model, image, maps, target, STEPS)
        found[name] = {
            "ins-del": (insertion - deletion).item(),
            "drop": faithfulness.share_lost(shown, dimmed).item(),
            "increase": faithfulness.gained(shown, dimmed).item(),
            "area": simplicity.area(maps).item(),
            "variation": simplicity.total_variation(maps).item(),
        }
    task.file.parent.mkdir(parents=True, exist_ok=True)
    draft = task.file.with_suffix(".draft")
    draft.write_text(json.dumps(found))
    draft.replace(task.file)


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
    """Means over images and networks; the difference to the first row is paired."""
    found = [json.loads(task.file.read_text()) for task in done]
    print(f"\n{title}, n = {len(found)}\n")
    print("| recipe | ins-del | minus the first row's | drop | increase | area | variation x 1000 |")
    print("|---|---|---|---|---|---|---|")
    for name in found[0]:
        values = {
            metric: torch.tensor([each[name][metric] for each in found], dtype=torch.float64)
            for metric in found[0][name]
        }
        mean = {metric: bootstrap_mean(value).mean for metric, value in values.items()}
        first = next(iter(found[0]))
        default = torch.tensor([each[first]["ins-del"] for each in found], dtype=torch.float64)
        ahead = paired_difference(values["ins-del"], default)
        difference = "" if name == first else f"{ahead.mean:+.3f} [{ahead.low:+.3f}, {ahead.high:+.3f}]"
        print(
            f"| {name} | {mean['ins-del']:.3f} | {difference} | {mean['drop']:.3f} | {mean['increase']:.2f} "
            f"| {mean['area']:.2f} | {1000 * mean['variation']:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("develop", "places", "verify"))
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
