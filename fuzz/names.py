"""Names and patterns: taps, networks, methods, recipes, sources, and the names of visitors' files."""

from __future__ import annotations

from typing import Any

import harness
import timm  # noqa: F401 - imported when first asked for a network, which takes seconds
import torch
import torchvision  # noqa: F401
from torch import nn

with harness.instrumented():
    from integrative_cam import IntegrativeCAM
    from integrative_cam.app._photograph import safe_name
    from integrative_cam.integrations._libraries import named
    from integrative_cam.models import Network, Preprocessing, build
    from integrative_cam.recipe import Recipe
    from integrative_cam.run._sources import filesystem

torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 4, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(4, 4, 3),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(4, 5),
).eval()
IMAGES = torch.rand(1, 3, 12, 12)
NETWORK = Network("m", MODEL, Preprocessing(), ("cat", "dog, hound", "crane", "crane", "\u0130"))
WORDS = (
    *("activations", "stages", "last", "0", "1", "4", "14x14", "4x4", "[", "[!", "*", "?", "1:relu", "#2", ".", "**"),
    *("[a-", "9" * 5000, "resnet18", "torchvision/", "timm/", "hf/", "hf/.", "hf/a/b/c", "x.onnx", "x.pt2"),
    *("x.pt2:trusted", "x.py:f", ".py:", "/", "~", "\0", "s3://", "gs://b", "http://", "zip://", "zip://a::file://b"),
    *("dir://x", "reference://x", "memory://", "file://", "data:,", "::", "git://x", "tar://x", "simplecache::"),
    *("libarchive://x", "blockcache::file://x", "generic://", "filecache::memory://x", "cached://", "local://"),
    *("grad-cam:", "torchcam:LayerCAM@", "grad-cam:GradCAM@[", "captum:", "integrative", "../../etc/passwd"),
    *("C:\\a\\b.png", "a" * 5000),
)


def attempt(data: bytes) -> None:
    """One name in each place that takes names: found, or an error that says what there is."""
    choices = harness.chosen(data)
    name = _name(choices)
    places = [_taps, NETWORK.index, _network, named, _source, _safe, _recipe]
    places[choices.ConsumeIntInRange(0, len(places) - 1)](name)


def _taps(name: str) -> None:
    IntegrativeCAM(MODEL, taps=name).taps(IMAGES)
    IntegrativeCAM(MODEL, taps=[name, "last"])(IMAGES)


def _network(name: str) -> None:
    # Not what asks a hub, or takes long to build.
    if not name.startswith("hf/") or name.count("/") != 2:
        build(name) if name not in ("efficientnet-lite0", "resnet18") else None


def _source(place: str) -> None:
    # Only what needs no connection to be made.
    assert isinstance(filesystem(place)[1], str)


def _safe(name: str) -> None:
    found = safe_name(name)
    assert 0 < len(found) <= 80
    assert not set(found) & set("/\\\0\n:")
    assert found not in (".", "..")


def _recipe(name: str) -> None:
    IntegrativeCAM(MODEL, Recipe(readout=name))


def _name(choices: Any) -> str:
    parts = []
    for _ in range(choices.ConsumeIntInRange(1, 3)):
        free = choices.ConsumeIntInRange(0, 2) == 0
        parts.append(choices.ConsumeUnicodeNoSurrogates(16) if free else choices.PickValueInList(list(WORDS)))
    return "".join(parts)


if __name__ == "__main__":
    harness.fuzz(attempt, harness.noise(60, 24))
