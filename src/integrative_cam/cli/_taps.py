"""`icam taps`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .._plan.taps import Taps
from ..cam import IntegrativeCAM
from ..models import build, load
from ._explain import announced
from ._printed import print_table


def list_taps(model: str, weights: Path | None, taps: Taps, every: bool, as_json: bool) -> None:
    """Print the taps of a network, which has random weights if none are given."""
    network = announced(load(model, weights) if weights else build(model))
    shape = (1, len(network.preprocessing.mean), *network.preprocessing.crop)
    # Noise: a constant image leaves some networks without a gradient.
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = IntegrativeCAM(network.model, taps=(lambda _: True) if every else taps).taps(images)
    if as_json:
        print(json.dumps([{"name": tap.name, "kind": tap.kind, "shape": tap.shape} for tap in found], indent=2))
        return
    rows = []
    for number, tap in enumerate(found, 1):
        channels, *space = tap.shape
        rows.append((str(number), tap.name, tap.kind, str(channels), " x ".join(map(str, space))))
    title = f"{network.name}: {len(found)} taps for input {'x'.join(map(str, shape[1:]))}"
    print_table(title, (">#", "name", "kind", ">channels", ">size"), rows)
