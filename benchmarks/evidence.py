"""The tables of docs/evidence.md: the default against its relatives and against peers as shipped.

    python benchmarks/evidence.py ../shared --out evidence            # some hours on two cores
    python benchmarks/evidence.py ../shared --out evidence --quick    # five minutes

Runs of `icam evaluate`, each with its own folder and report: faithfulness by pixels and by cells on the photographs
that benchmarks/ablation.py did not choose on, parameter randomisation, dependence on the class and places that are
known, localisation on boxes. Each goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars

from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.evaluate._summary import mean_ranks, summarise
from integrative_cam.storage import written_whole

RELATIVES = ("gradcam", "gradcam++", "refinecam")
PEERS = (
    "grad-cam:HiResCAM@stages",
    "grad-cam:HiResCAM@activations",
    "grad-cam:LayerCAM@stages",
    "grad-cam:LayerCAM@activations",
    "torchcam:LayerCAM@stages",
)
CONTROLS = ("integrative-times-noise", "gradcam-times-noise")
SLOW = ("scorecam", "ablationcam")
BARS = (
    ("ins-del", "drop", "increase", "road", "adcc"),
    ("ins-del-cells", "srg-cells", "single-cell", "faithfulness-correlation"),
)
"""The metrics that decide the mean rank of a run that has them."""


@dataclass(frozen=True)
class Run:
    """One call of `icam evaluate`, and how many photographs it and its quick form take."""

    data: str
    methods: tuple[str, ...]
    metrics: str
    limit: int
    quick: int


RUNS = {
    "faithfulness": Run(
        "photos",
        (*RELATIVES, *PEERS, *CONTROLS),
        "insertion,deletion,ins-del,srg,drop,increase,road,adcc,area,variation",
        100,
        2,
    ),
    "cells": Run(
        "photos",
        (*RELATIVES, *PEERS, *CONTROLS),
        "insertion-cells,deletion-cells,ins-del-cells,srg-cells,road-cells,single-cell,faithfulness-correlation",
        100,
        2,
    ),
    "class": Run(
        "photos",
        ("gradcam", *PEERS, *CONTROLS),
        "class-dependence,class-dependence-second,grid-pointing,planted-patch,planted-patch-pointing",
        100,
        2,
    ),
    "randomisation": Run("photos", ("gradcam", *PEERS), "randomisation", 20, 1),
    "localisation": Run("voc100", ("gradcam", *PEERS), "pointing,top-share,energy,best-iou,maxboxacc,area", 100, 3),
    "slow": Run("photos", SLOW, "insertion,deletion,ins-del,drop,increase,area", 20, 0),
}


def held_out(photographs: Path, out: Path) -> Path:
    """A list of every second photograph: those that the ablation did not choose the default on."""
    found = [sample.path.resolve() for sample in read_dataset(photographs)][1::2]
    written_whole(out / "held-out.csv", "\n".join(["file", *map(str, found)]) + "\n")
    return out / "held-out.csv"


def command(name: str, shared: Path, out: Path, limit: int, processes: int) -> list[str]:
    """The `icam evaluate` of a run."""
    run = RUNS[name]
    data = shared / "data" / run.data
    dataset = held_out(data, out) if run.data == "photos" else data
    icam = Path(sys.executable).with_name("icam")
    weights = {model: shared / "models" / f"{model}.safetensors" for model in ("mobilenet_v2", "squeezenet1_1")}
    return [
        str(icam), "evaluate", str(dataset), "--out", str(out / name),
        "--model", "efficientnet-lite0", *(part for model in weights for part in ("--model", f"torchvision/{model}")),
        *(part for model, file in weights.items() for part in ("--weights", f"torchvision/{model}={file}")),
        "--methods", ",".join(("integrative", *run.methods)), "--metrics", run.metrics, "--steps", "8",
        "--limit", str(limit), "--processes", str(processes),
    ]  # fmt: skip


def print_tables(name: str, out: Path) -> None:
    """The run's means and what the default has ahead, in Markdown; one of `BARS` decides the mean rank."""
    lines = summarise(polars.read_parquet(out / name / "results.parquet"), "integrative")
    models = list(dict.fromkeys(line.model for line in lines))
    for model in sorted(models, key=lambda model: model or ""):
        chosen = [line for line in lines if line.model == model]
        metrics = list(dict.fromkeys(line.metric for line in chosen))
        bar = next((bar for bar in BARS if set(bar) <= set(metrics)), ())
        ranks = mean_ranks([line for line in chosen if line.metric in bar], model)
        counts = {line.metric: line.mean.n for line in chosen}
        count = max(counts.values())
        fewer = "".join(f", {metric}: n = {each}" for metric, each in counts.items() if each < count)
        print(f"\n{model or 'All networks'}, n = {count}{fewer}\n")
        print("| |", " | ".join(metrics), "| mean rank |" if ranks else "|")
        print("|---" * (1 + len(metrics) + bool(ranks)) + "|")
        for method in dict.fromkeys(line.method for line in chosen):
            found = {line.metric: line for line in chosen if line.method == method}
            means = [f"{found[metric].mean.mean:.3f}" if metric in found else "" for metric in metrics]
            print(f"| {method} |", " | ".join(means), f"| {ranks[method]:.1f} |" if ranks else "|")
            ahead = [found[metric].difference if metric in found else None for metric in metrics]
            if any(ahead):
                shown = [f"{each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" if each else "" for each in ahead]
                print("| integrative minus it |", " | ".join(shown), "| |" if ranks else "|")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and models/")
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--quick", action="store_true", help="few photographs: shows that it works, proves nothing")
    parser.add_argument("--limit", type=int, help="photographs of each network, instead of each run's own number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=RUNS, help="one run; `slow`, perturbation methods, runs only when named")
    asked = parser.parse_args()
    for name in [asked.only] if asked.only else [name for name in RUNS if name != "slow"]:
        print(f"\n== {name} ==", flush=True)
        limit = asked.limit or (RUNS[name].quick if asked.quick else RUNS[name].limit)
        subprocess.run(command(name, asked.shared, asked.out, limit, asked.processes), check=True)
        print_tables(name, asked.out)


if __name__ == "__main__":
    main()
