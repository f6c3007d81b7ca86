"""Networks of transformers: tiny ones from a configuration, saved to a folder and loaded by its path."""

from __future__ import annotations

import copy
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from integrative_cam import Explanation, IntegrativeCAM, MissingExtraError
from integrative_cam.errors import ModelError
from integrative_cam.models import Network, Preprocessing, build, load, read_image
from integrative_cam.models._huggingface import hub_or_cache, mirrored

NAMES = {0: "left", 1: "right", 2: "middle"}
SIZES = {"hidden_sizes": [8, 16], "depths": [1, 1], "id2label": NAMES}


@pytest.fixture(params=["resnet", "convnext"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = {
        "resnet": lambda: transformers.ResNetConfig(embedding_size=8, layer_type="basic", **SIZES),
        "convnext": lambda: transformers.ConvNextConfig(num_stages=2, layer_scale_init_value=1.0, **SIZES),
    }[request.param]()
    save(config, tmp_path / request.param)
    return tmp_path / request.param


def save(config: Any, folder: Path) -> None:
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8).save_pretrained(folder)


def test_a_folder_is_explained_as_its_network(folder: Path, photographs: Path) -> None:
    network = load(f"hf/{folder}")
    assert network.labels == ("left", "right", "middle")
    assert not network.model.training
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    photograph = read_image(photographs / "chelsea.png")
    seen = network.preprocessing(photograph).tensor
    theirs = processor(photograph, return_tensors="pt")["pixel_values"]
    assert float((seen - theirs).abs().mean()) < 0.01
    with torch.no_grad():
        torch.testing.assert_close(network.model(seen).logits, model(seen).logits)
    found, expected = IntegrativeCAM(network.model)(seen), IntegrativeCAM(model)(seen)
    assert torch.equal(found.map, expected.map)
    assert float(found.map.std()) > 0.05


def test_the_command_explains_a_folder(folder: Path, tmp_path: Path, photographs: Path) -> None:
    command = [
        *(str(Path(sys.executable).with_name("icam")), "explain", str(photographs / "coffee.png")),
        *("--model", f"hf/{folder}", "--target", "middle", "--json", "--out", "out"),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    (record,) = json.loads(run.stdout)["explanations"]
    assert "middle" in json.dumps(record)
    found = Explanation.load(tmp_path / "out" / "coffee" / "explanation")
    assert found.map.shape == (1, 64, 64)
    assert found.target_names == ("2",)


def test_random_weights_do_for_a_list_of_taps(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    network = build(f"hf/{folder}")
    assert network.model(torch.rand(1, 3, 64, 64)).logits.shape == (1, 3)


def test_number_of_classes_comes_from_the_weights(folder: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_labels = 5
    torch.manual_seed(4)
    save(config, tmp_path / "five")
    network = load(f"hf/{folder}", tmp_path / "five" / "model.safetensors")
    five = load(f"hf/{tmp_path / 'five'}")
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.model(images).logits, five.model(images).logits)
    assert network.labels == five.labels == ()  # LABEL_0, ... are no names


def test_folders_that_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    name = f"hf/{folder}"
    # A copy: tensors may lie in the file, which is written over below.
    weights = copy.deepcopy(load(name).model.state_dict())
    for missing in ("./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", "~no-such-user/at"):
        with pytest.raises(ModelError, match=r"no such folder, and a repository of the hub is OWNER/REPOSITORY"):
            load(f"hf/{missing}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"hf/.*empty: could not be loaded \(.*config.json"):
        load(f"hf/{tmp_path / 'empty'}")

    headless = transformers.AutoModel.from_pretrained(folder)
    headless.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"tensors of \w+ForImageClassification are not among .*would be random"):
        load(name)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="could not be loaded"):
        load(name)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no model.safetensors. Pickled weights are not read"):
        load(name)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"could not be loaded \(.*image processor"):
        build(name)


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    code = f"from pathlib import Path\nPath({str(proof)!r}).touch()\nclass Own: ...\n"
    (folder / "own.py").write_text(code)
    for file, keys in (
        ("config.json", ("AutoConfig", "AutoModelForImageClassification")),
        ("preprocessor_config.json", ("AutoImageProcessor",)),
    ):
        content = json.loads((folder / file).read_text())
        unknown = {"model_type": "own", "image_processor_type": "Own"}
        content |= {"auto_map": dict.fromkeys(keys, "own.Own")} | {k: v for k, v in unknown.items() if k in content}
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="could not be loaded"):
        load(f"hf/{folder}")
    assert not proof.exists()


T = transformers
PROCESSORS = {
    "crop": (T.BitImageProcessor(size={"shortest_edge": 40}, crop_size=32, resample=3), (40, (32, 32), "bicubic")),
    "crop, tall": (T.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 36, "width": 24}, resample=2),
                   (40, (36, 24), "bilinear")),
    "squash": (T.ViTImageProcessor(size={"height": 32, "width": 32}), ((32, 32), (32, 32), "bilinear")),
    "squash, wide": (T.ViTImageProcessor(size={"height": 24, "width": 40}), ((24, 40), (24, 40), "bilinear")),
    "squash and crop": (T.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=32),
                        ((40, 40), (32, 32), "bicubic")),
    "convnext": (T.ConvNextImageProcessor(size={"shortest_edge": 224}), (256, (224, 224), "bicubic")),
    "convnext, large": (T.ConvNextImageProcessor(size={"shortest_edge": 384}),
                        ((384, 384), (384, 384), "bicubic")),
    "pixels as they are": (T.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, do_rescale=False),
                           ((32, 32), (32, 32), "bilinear")),
    "other scale": (T.ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5),
                    ((32, 32), (32, 32), "bilinear")),
    "efficientnet": (T.EfficientNetImageProcessor(size={"height": 32, "width": 32}, resample=0, image_std=[0.2] * 3),
                     ((32, 32), (32, 32), "nearest")),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_processors_are_mirrored(kind: str, photographs: Path) -> None:
    processor, (resize, crop, interpolation) = PROCESSORS[kind]
    found = mirrored(processor, "hf/x")
    assert (found.resize, found.crop, found.interpolation) == (resize, crop, interpolation)
    photograph = read_image(photographs / "astronaut.png").crop((0, 0, 500, 333))
    theirs = torch.as_tensor(np.asarray(processor(photograph, return_tensors="pt")["pixel_values"])).float()
    ours = found(photograph).tensor
    assert ours.shape == theirs.shape
    # Rounding after scaling differs by a level or two of 255.
    assert float(((ours - theirs) * torch.tensor(found.std)[:, None, None]).abs().mean()) < 2 / 255


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (T.MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size=32, do_flip_channel_order=True),
         "MobileViTImageProcessor, does more to a picture than scale, crop and normalise"),
        (T.LevitImageProcessor(size={"shortest_edge": 32}, crop_size=32), "does more to a picture"),
        (T.EfficientNetImageProcessor(size={"height": 32, "width": 32}, rescale_offset=True), "does more to a picture"),
        (T.BitImageProcessor(size={"shortest_edge": 40}, do_center_crop=False), "scales to no fixed size"),
        (T.ViTImageProcessor(do_resize=False), "scales to no fixed size"),
        (T.ViTImageProcessor(size={"height": 32, "width": 32}, resample=4), "resamples by filter"),
    ],
    ids=["colours turned round", "own sizes", "offset", "no crop", "no size", "box filter"],
)  # fmt: skip
def test_processors_that_do_something_else(processor: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        mirrored(processor, "hf/x")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No name can be resolved, nobody may sleep, and nothing was downloaded before; gives the cache's folder."""

    def unknown(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits to try again"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield tmp_path / "cache"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf/nobody/nothing", r"^hf/nobody/nothing: was not downloaded before, and https://.* cannot be asked"),
        ("timm/resnet10t", r"^timm/resnet10t: could not load pretrained weights \(.*\). Give a local file with"),
    ],
)
def test_a_hub_out_of_reach_is_one_line_at_once(name: str, message: str, no_network: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(name)
    assert len(str(caught.value).splitlines()) == 1


def test_what_was_downloaded_before_serves_without_network(folder: Path, no_network: Path) -> None:
    kept = no_network / "models--owner--net"
    shutil.copytree(folder, kept / "snapshots" / "0123456789012345678901234567890123456789")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123456789012345678901234567890123456789")
    network = load("hf/owner/net")
    assert network.labels == ("left", "right", "middle")
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.model(images).logits, load(f"hf/{folder}").model(images).logits)


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Session:
        def head(self, address: str, timeout: float) -> None:
            asked.append(address)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    with hub_or_cache():
        assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert asked == [huggingface_hub.constants.ENDPOINT]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KeyboardInterrupt), hub_or_cache():
        raise KeyboardInterrupt
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    assert len(asked) == 1


def test_threads_do_not_leave_the_hub_switched_off(no_network: Path) -> None:
    """Two loads at once: the second must not keep the first one's switch for the user's."""
    entered, leave = threading.Event(), threading.Event()

    def load_too() -> None:
        with hub_or_cache():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=load_too)
    with hub_or_cache():
        other.start()
        entered.wait(0.2)
    leave.set()
    other.join()
    assert entered.is_set()
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"integrative-cam\[hf\]"):
        load("hf/owner/net")


def test_a_pair_scales_to_exactly_that() -> None:
    picture = Image.new("RGB", (60, 20))
    picture.paste((255, 255, 255), (0, 0, 30, 20))
    view = Preprocessing((8, 6), (8, 6), "nearest", (0.0,) * 3, (1.0,) * 3)(picture)
    assert torch.equal(view.tensor[0, 0], torch.tensor([[1.0, 1, 1, 0, 0, 0]] * 8))
    assert view.picture.size == (60, 20)


def test_networks_have_no_notes_unless_something_was_assumed(folder: Path) -> None:
    network = load(f"hf/{folder}")
    assert isinstance(network, Network)
    assert network.notes == ()
