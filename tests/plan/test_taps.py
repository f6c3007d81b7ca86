"""Choosing layers: policies, names, globs, module paths, resolutions, callables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from integrative_cam import IntegrativeCAM, TapInfo, trace
from integrative_cam.errors import TapError

torch.manual_seed(0)
RESNET = torchvision.models.resnet18(weights=None).eval()
IMAGES = torch.randn(1, 3, 64, 64)


def names(taps: Any, model: nn.Module = RESNET) -> list[str]:
    return [tap.name for tap in IntegrativeCAM(model, taps=taps).taps(IMAGES)]


def test_activations_in_execution_order() -> None:
    assert names("activations") == ["relu"] + [
        f"layer{stage}.{block}.relu{call}" for stage in (1, 2, 3, 4) for block in (0, 1) for call in ("", "#2")
    ]


def test_an_activation_that_modules_share_is_named_by_the_one_that_runs_it() -> None:
    """As in networks of ultralytics, where one nn.SiLU serves all."""

    class Convolution(nn.Module):
        act = nn.SiLU()

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(channels, 4, 3), Convolution.act

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.act(self.conv(x)))

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(Convolution(3), nn.Sequential(Convolution(4), Convolution.act), *head)
    expected = ["0.act", "0.act#2", "1.0.act", "1.0.act#2", "1.1"]
    assert names("activations", model) == expected
    assert names("1.0.*", model) == ["1.0.act", "1.0.act#2"]


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        ("last", ["layer4.1.relu#2"]),
        ("stages", ["relu", "layer1.1.relu#2", "layer2.1.relu#2", "layer3.1.relu#2", "layer4.1.relu#2"]),
        ("4x4", ["layer3.0.relu", "layer3.0.relu#2", "layer3.1.relu", "layer3.1.relu#2"]),
        ("layer3.0.relu#2", ["layer3.0.relu#2"]),
        ("layer3.*", ["layer3.0.relu", "layer3.0.relu#2", "layer3.1.relu", "layer3.1.relu#2"]),
        ("layer3", ["layer3.1.relu#2"]),
        ("layer2.0.conv1", ["layer2.0.conv1"]),
        ("layer2.0.downsample", ["layer2.0.downsample.1"]),
        ("layer2.*.bn2", ["layer2.0.bn2", "layer2.1.bn2"]),
        ("layer1.0:add", ["layer1.0:add"]),
        (["layer4", "relu", "layer4.1.relu*"], ["relu", "layer4.1.relu", "layer4.1.relu#2"]),
        (("2x2", "last"), ["layer4.0.relu", "layer4.0.relu#2", "layer4.1.relu", "layer4.1.relu#2"]),
        (lambda tap: tap.kind == "conv" and tap.shape == (512, 2, 2), ["layer4.0.conv1", "layer4.0.conv2",
                                                     "layer4.0.downsample.0", "layer4.1.conv1", "layer4.1.conv2"]),
    ],
)  # fmt: skip
def test_choices(taps: Any, expected: list[str]) -> None:
    assert names(taps) == expected


def test_stages_are_by_resolution() -> None:
    found = IntegrativeCAM(RESNET, taps="stages").taps(IMAGES)
    biases = len(trace(RESNET, IMAGES, 0).sites) - 1  # all but that of the batch norm before it
    assert found[0] == TapInfo("relu", "activation", (64, 32, 32), stride=(2, 2), path_share=1, biases=biases)
    assert [tap.stride for tap in found[1:]] == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert [tap.shape for tap in found[1:]] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_a_module_path_is_the_modules_output() -> None:
    """EfficientNet's blocks end without an activation; by path their output is taken all the same."""
    model = torchvision.models.efficientnet_b0(weights=None).eval()
    outputs = []
    handle = model.features[3].register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    explanation_taps = IntegrativeCAM(model, taps="features.3")
    from integrative_cam import trace

    found = trace(model, IMAGES, 0, explanation_taps.recipe.taps).taps
    handle.remove()
    assert len(found) == 1
    assert torch.equal(found[0].activation, outputs[0])


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("layer3.0.rleu", "matches no feature map of this network. Did you mean layer3.0.relu"),
        ("nothing.like.it.*", r"matches no feature map of this network. List them with cam.taps\(images\)"),
        ("7x7", "no activation has this resolution; there are 32x32, 16x16, 8x8, 4x4, 2x2"),
        (lambda tap: False, "the callable accepted none"),
        ([], "taps must be one of activations, stages, last"),
        (3, "taps must be one of activations, stages, last"),
        ([""], "taps must be one of activations, stages, last"),
    ],
)
def test_errors(taps: Any, message: str) -> None:
    with pytest.raises(TapError, match=message):
        names(taps)
