"""The whole path of a user who comes from another library: file, preprocessing, class, layers, map, picture.

The peers are called as their READMEs call them, the bundled network has its real weights, and the photographs are real.
Where a peer is right the maps are equal once scaled alike; where it is not, the difference is the documented one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision.transforms as T
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    SemanticSegmentationTarget,
)
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from integrative_cam import IntegrativeCAM, evaluate, explain, get_method, targets, trace
from integrative_cam._maps.fusion import by_magnitude, by_range, resize
from integrative_cam.models import Network, read_image

pytest.importorskip("torchcam", reason="needs Python 3.11")
import torchcam.methods
from torchcam.utils import overlay_mask

LAST = "bn2.act"
LAYERS = ["blocks.3.0.bn1.act", "blocks.5.0.bn1.act", LAST]
NAMES = ("chelsea.png", "coffee.png")
SIZE = (224, 224)
PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


@pytest.fixture(scope="module")
def pictures(photographs: Path) -> list[Image.Image]:
    return [Image.open(photographs / name).convert("RGB") for name in NAMES]


@pytest.fixture(scope="module")
def their_images(pictures: list[Image.Image]) -> Tensor:
    """As a user of torchvision prepares them."""
    preprocess = T.Compose([
        T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(),
        T.Normalize((127 / 255,) * 3, (128 / 255,) * 3),
    ])  # fmt: skip
    return torch.stack([preprocess(each) for each in pictures])


@pytest.fixture(scope="module")
def images(lite0: Network, photographs: Path) -> Tensor:
    """As ours does."""
    return torch.cat([lite0.preprocessing(read_image(photographs / name)).tensor for name in NAMES])


def theirs(peer: type, model: nn.Module, layers: list[str], images: Tensor, aims: Any = None) -> Tensor:
    modules = [model.get_submodule(layer) for layer in layers]
    with peer(model=model, target_layers=modules) as cam:
        return torch.from_numpy(cam(input_tensor=images, targets=aims))


# pytorch-grad-cam


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (pytorch_grad_cam.GradCAM, "gradcam"),
        (pytorch_grad_cam.HiResCAM, "hirescam"),
        (pytorch_grad_cam.XGradCAM, "xgradcam"),
        (pytorch_grad_cam.LayerCAM, "layercam"),
        (pytorch_grad_cam.GradCAMElementWise, "gradcam-elementwise"),
    ],
)
def test_their_readme_from_files_to_picture(
    peer: type,
    name: str,
    lite0: Network,
    images: Tensor,
    their_images: Tensor,
    pictures: list[Image.Image],
) -> None:
    found = get_method(name)(lite0.model, images)
    maps = theirs(peer, lite0.model, [LAST], their_images)
    torch.testing.assert_close(by_range(found.map), maps, atol=1e-4, rtol=0)
    assert len(set(found.target.tolist())) == 2
    # What is left out of that: their minimum is zero, ours is the map's own.
    assert found.map.amin((1, 2)).min() > 0.01
    rgb = np.asarray(pictures[0].resize(SIZE), np.float32) / 255
    ours, other = (show_cam_on_image(rgb, each.numpy(), use_rgb=True) for each in (by_range(found.map)[0], maps[0]))
    assert np.abs(ours.astype(int) - other).max() <= 6  # a step of a colour map


def of_logits(index: int) -> Any:
    def target(output: Tensor) -> Tensor:
        return output[index] + output.log_softmax(0)[index]

    target.has_unit = True  # type: ignore[attr-defined]
    return target


def test_their_targets_work_here(lite0: Network, images: Tensor) -> None:
    chosen = [282, 967]
    for theirs_of, ours_of in (
        (ClassifierOutputTarget, lambda index: index),
        (ClassifierOutputSoftmaxTarget, targets.probability),
        (ClassifierOutputReST, of_logits),
    ):
        aims = [theirs_of(index) for index in chosen]
        ours = [ours_of(index) for index in chosen]
        # Callables are explained as they are; a class by its logit where it is not to be contrasted.
        expected = explain(lite0.model, images, ours, score="logit")
        found = explain(lite0.model, images, aims)
        torch.testing.assert_close(found.map, expected.map)
        torch.testing.assert_close(found.score, expected.score)
        plain = explain(lite0.model, images, ours, get_method("layercam").recipe).map
        maps = theirs(pytorch_grad_cam.LayerCAM, lite0.model, [LAST], images, aims)
        torch.testing.assert_close(by_range(plain), maps, atol=2e-3, rtol=0)


def test_their_segmentation_target_is_a_multiple_of_ours() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    images, mask = torch.randn(2, 3, 12, 12), np.zeros((12, 12), np.float32)
    mask[3:8, 2:9] = 1
    maps = theirs(pytorch_grad_cam.HiResCAM, model, ["1"], images, [SemanticSegmentationTarget(2, mask)] * 2)
    found = explain(model, images, targets.segmentation(2, torch.from_numpy(mask) > 0), get_method("hirescam").recipe)
    assert found.map.amax() == 1
    torch.testing.assert_close(by_range(found.map), maps, atol=1e-3, rtol=0)
    summed = torch.stack([SemanticSegmentationTarget(2, mask)(output) for output in model(images)])
    torch.testing.assert_close(found.score * mask.sum(), summed.detach())


@pytest.mark.parametrize("name", ["gradcam", "layercam"])
def test_their_mean_of_several_layers_is_ours_without_minima(name: str, lite0: Network, images: Tensor) -> None:
    peer = {"gradcam": pytorch_grad_cam.GradCAM, "layercam": pytorch_grad_cam.LayerCAM}[name]
    maps = theirs(peer, lite0.model, LAYERS, images)
    even = {"taps": LAYERS, "weighting": "uniform", "signed": False}
    found = explain(lite0.model, images, recipe=get_method(name).recipe, **even)
    assert [layer.name for layer in found.layers] == LAYERS
    parts = [layer.map.relu() for layer in found.layers]
    ranged = torch.stack([resize(by_range(each), SIZE) for each in parts]).mean(0)
    torch.testing.assert_close(by_range(ranged), maps, atol=1e-4, rtol=0)
    whole = torch.stack([resize(by_magnitude(each), SIZE) for each in parts]).mean(0)
    torch.testing.assert_close(found.map, by_magnitude(whole), atol=1e-5, rtol=0)
    # A background that all layers share is seen in ours.
    assert found.map.amin() > maps.amin()


def test_their_grad_cam_plus_plus_is_right_for_large_gradients_only(lite0: Network, images: Tensor) -> None:
    """It adds 1e-6 to squares of gradients, which for a logit are as small as that."""
    for factor, least, most in ((1.0, 1e-3, 0.1), (1000.0, 0, 1e-3)):

        def scaled(output: Tensor, factor: float = factor) -> Tensor:
            return factor * output.amax()

        scaled.has_unit = True  # type: ignore[attr-defined]
        maps = theirs(pytorch_grad_cam.GradCAMPlusPlus, lite0.model, [LAST], images, [scaled] * 2)
        found = explain(lite0.model, images, scaled, get_method("gradcam++").recipe)
        assert least <= (by_range(found.map) - maps).abs().max() <= most


# torchcam


def test_torchcam_from_extractor_to_overlay(lite0: Network, images: Tensor, pictures: list[Image.Image]) -> None:
    maps = []
    with torchcam.methods.LayerCAM(lite0.model) as extractor:
        # The module around our last tap; both have one output.
        assert extractor.target_names == ["bn2"]
        # One extractor for many images, one by one.
        for image in images:
            out = lite0.model(image[None])
            maps.append(extractor(out.squeeze(0).argmax().item(), out)[0])
    found = get_method("layercam")(lite0.model, images)
    (layer,) = found.layers
    torch.testing.assert_close(by_range(layer.map), torch.cat(maps), atol=1e-4, rtol=0)
    seen = pictures[0].resize(SIZE)
    overlays = [
        np.asarray(overlay_mask(seen, to_pil_image(each, mode="F"), alpha=0.5), int)
        for each in (maps[0][0], by_range(layer.map)[0])
    ]
    assert np.abs(overlays[0] - overlays[1]).max() <= 3


@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM"])
def test_torchcam_with_a_batch_and_its_classes(name: str, lite0: Network, images: Tensor) -> None:
    index = [281, 504]
    with getattr(torchcam.methods, name)(lite0.model, LAST) as extractor:
        (maps,) = extractor(index, lite0.model(images))
    found = get_method(name.lower())(lite0.model, images, index)
    torch.testing.assert_close(by_range(found.layers[0].map.relu()), maps, atol=1e-4, rtol=0)


def test_fuse_cams_is_ours_without_minima_and_bent(lite0: Network, images: Tensor) -> None:
    index = [282, 967]
    with torchcam.methods.LayerCAM(lite0.model, LAYERS) as extractor:
        maps = extractor.fuse_cams(extractor(index, lite0.model(images)), SIZE)
    found = explain(lite0.model, images, index, get_method("layercam-fused").recipe, taps=LAYERS)
    bent = torch.stack([resize((2 * by_range(layer.map)).tanh(), SIZE) for layer in found.layers])
    torch.testing.assert_close(bent.amax(0), maps, atol=1e-4, rtol=0)
    whole = torch.stack([resize(by_magnitude(layer.map), SIZE) for layer in found.layers])
    torch.testing.assert_close(found.map, by_magnitude(whole.amax(0)), atol=1e-5, rtol=0)


def test_their_grad_cam_plus_plus_is_never_divided(lite0: Network, images: Tensor) -> None:
    """Its weights are sums of g^2 relu(g), where equation 19 divides by 2 g^2 + g^3 sum(A)."""
    with torchcam.methods.GradCAMpp(lite0.model, LAST) as extractor:
        (maps,) = extractor([282, 967], lite0.model(images))
    (tap,) = trace(lite0.model, images, [282, 967], "last").taps
    undivided = (tap.gradient**2 * tap.gradient.relu()).sum((2, 3), keepdim=True)
    torch.testing.assert_close(by_range((undivided * tap.activation).sum(1)), maps, atol=1e-3, rtol=0)
    found = get_method("gradcam++")(lite0.model, images, [282, 967]).layers[0].map
    assert (by_range(found) - maps).abs().max() > 0.05


# captum


def test_captum_signed_and_enlarged(lite0: Network, images: Tensor) -> None:
    index = torch.tensor([282, 967])
    cam = LayerGradCam(lite0.model, lite0.model.get_submodule(LAST))
    found = IntegrativeCAM(lite0.model, get_method("gradcam").recipe)(images, index)
    for sign, aim in ((1, index), (-1, index.flip(0))):
        attribution = cam.attribute(images, target=aim)
        raw = explain(lite0.model, images, aim, get_method("gradcam").recipe).layers[0].map
        torch.testing.assert_close(by_magnitude(raw), by_magnitude(attribution[:, 0]), atol=1e-4, rtol=0)
        if sign == 1:
            enlarged = LayerAttribution.interpolate(attribution, SIZE, "bilinear")[:, 0]
            torch.testing.assert_close(found.map, by_magnitude(enlarged.relu()), atol=1e-4, rtol=0)
        else:
            # Signs differ here: what speaks against a class that is not there.
            assert raw.min() < 0


# The page


def test_the_page_translates_every_metric_and_method_it_names(lite0: Network, images: Tensor) -> None:
    """The right cells of its tables are Python that can be evaluated."""
    known: dict[str, Any] = {
        "IntegrativeCAM": IntegrativeCAM, "evaluate": evaluate, "explain": explain, "get_method": get_method,
        "torch": torch, "targets": targets, "model": lite0.model, "reference": torch.ones(3),
        "box": (0, 0, 9, 9), "decode": len, "mask": np.ones((4, 4)), "images": images[:1],
        "few": images[:1, :, ::4, ::4],
    }  # fmt: skip
    known["maps"] = torch.rand(1, *known["few"].shape[2:])
    cells = [line.strip("| \n").split(" | ")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    code = [each for cell in cells for each in re.findall(r"`([^`]+)`", cell)]
    tried = [each for each in code if re.match(r"(IntegrativeCAM|get_method|targets|evaluate|lambda)\b", each)]
    assert len(tried) > 25
    for each in tried:
        assert eval(each, dict(known)) is not None, each
    for taps in re.findall(
        r"IntegrativeCAM\(model, (?:get_method\(\S+\)\.recipe, )?taps=(\"[^\"]+\"|\[[^\]]+\])\)", "\n".join(code)
    ):
        assert IntegrativeCAM(lite0.model, taps=eval(taps)).taps(images[:1, :, :64, :64]), taps
