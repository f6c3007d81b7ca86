"""`icam taps`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from .._plan.taps import Taps
from ..cam import IntegrativeCAM
from ..models import build, load
from ._explain import announced
from ._printed import print_table


def list_taps(model: str, weights: Path | None, taps: Taps, every: bool, as_json: bool) -> None:
    """Print the plan of a network, which has random weights if none are given: its taps and where they stand."""
    network = announced(load(model, weights) if weights else build(model))
    shape = (1, len(network.preprocessing.mean), *network.preprocessing.crop)
    # Noise: a constant image leaves some networks without a gradient.
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    planned = IntegrativeCAM(network.model, taps=(lambda _: True) if every else taps).taps(images)
    if as_json:
        print(json.dumps([asdict(tap) for tap in planned], indent=2))
        return
    rows: list[tuple[str, ...]] = []
    for number, tap in enumerate(planned, 1):
        channels, *space = tap.shape
        stride = " x ".join(f"{along:.3g}" for along in tap.stride)
        paths = "all" if tap.path_share == 1 else f"{tap.path_share:.1%}" if tap.path_share >= 1e-3 else "< 0.1%"
        size = " x ".join(map(str, space))
        rows.append((str(number), tap.name, tap.kind, str(channels), size, stride, paths, str(tap.biases)))
    columns = [">#", "name", "kind", ">channels", ">size", ">stride", ">paths", ">biases"]
    if {tap.kind for tap in planned} == {"activation"}:
        rows, columns = [row[:2] + row[3:] for row in rows], columns[:2] + columns[3:]
    title = f"{network.name}: {len(planned)} taps for input {'x'.join(map(str, shape[1:]))}"
    print_table(title, columns, rows)
    print("stride: pixels of the input per position. paths: share of the paths from input to score that pass the tap.")
    print("biases: constants that the network adds behind it.")
