"""Named methods: each is what its paper says, and what pytorch-grad-cam computes where that is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import networks
import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from reference import evidence, fusion, measure
from reference import methods as reference
from reference.arrays import Array
from torch import Tensor, nn

from integrative_cam import Explanation, IntegrativeCAM, Recipe, explain, get_method, list_methods
from integrative_cam._maps.reduction import above_rounding
from integrative_cam.errors import RecipeError

PAPERS: dict[str, Callable[[Array, Array], Array]] = {
    "gradcam": reference.grad_cam,
    "gradcam++": lambda activation, gradient: evidence.grad_cam_plus_plus(activation, gradient, 0.0),
    "xgradcam": reference.xgrad_cam,
    "hirescam": reference.hires_cam,
    "layercam": reference.layer_cam,
}


def positive_part(values: Array) -> Array:
    """Cut at zero and divided by the maximum."""
    positive = np.maximum(values, 0)
    return positive / (positive.max() or 1)


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", PAPERS)
def test_single_layer_methods_equal_their_papers(name: str, dims: int) -> None:
    option = networks.Options(dims=dims, seed=21, norm="affine")
    model, images = networks.build("resnet", option), networks.images(option)
    measured = measure.measure(model, images)
    last = measured.calls[measured.of(nn.ReLU)[-1]]
    found = explain(model, images, recipe=get_method(name).recipe)
    assert len(found.layers) == 1
    for sample in range(len(images)):
        expected = PAPERS[name](last.value[sample].numpy(), last.gradient[sample].numpy())
        raw = found.layers[0].map[sample].numpy()
        scale = np.abs(raw).max() / np.abs(expected).max()
        np.testing.assert_allclose(raw, expected * scale, rtol=1e-9, atol=1e-12)
        upsampled = fusion.interpolate(expected / np.abs(expected).max(), tuple(images.shape[2:]))
        np.testing.assert_allclose(found.map[sample], positive_part(upsampled), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("name", ["layercam-fused", "refinecam"])
def test_fused_methods_equal_their_papers(name: str) -> None:
    option = networks.Options(dims=2, seed=23, norm="affine", stride=2)
    model, images = networks.build("vgg", option), networks.images(option)
    measured = measure.measure(model, images)
    by_size = {measured.calls[at].value.shape[2:]: at for at in measured.of(nn.ReLU)}
    assert len(by_size) > 1
    single = PAPERS["layercam" if name == "layercam-fused" else "gradcam++"]
    found = explain(model, images, recipe=get_method(name).recipe)
    assert len(found.layers) == len(by_size)
    for sample in range(len(images)):
        calls = [measured.calls[at] for at in by_size.values()]
        raw = [single(call.value[sample].numpy(), call.gradient[sample].numpy()) for call in calls]
        maps = [fusion.interpolate(positive_part(each), tuple(images.shape[2:])) for each in raw]
        fused = np.max(maps, 0) if name == "layercam-fused" else np.prod(maps, 0)
        np.testing.assert_allclose(found.map[sample], positive_part(fused), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("gradcam", pytorch_grad_cam.GradCAM),
        ("xgradcam", pytorch_grad_cam.XGradCAM),
        ("hirescam", pytorch_grad_cam.HiResCAM),
        ("layercam", pytorch_grad_cam.LayerCAM),
    ],
)
def test_methods_equal_pytorch_grad_cam(name: str, peer: type) -> None:
    """Features as large as the image, so that no resizing comes between; theirs is scaled from minimum to maximum."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 144, 4),
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 12, 12)
    theirs = peer(model=model, target_layers=[model[3]])(images, [ClassifierOutputTarget(1)] * 2)
    ours = explain(model, images, 1, get_method(name).recipe).map
    low = ours.amin((1, 2), keepdim=True)
    torch.testing.assert_close((ours - low) / (1 - low), torch.from_numpy(theirs).to(ours), atol=2e-4, rtol=0)


def smooth() -> nn.Module:
    """Activations below zero; features as large as the image."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Linear(8 * 144, 4),
    ).eval()  # fmt: skip


def test_elementwise_counts_two_negatives_as_evidence_for() -> None:
    model, images = smooth(), torch.randn(2, 3, 12, 12)
    twin = measure.measure(model, images, torch.tensor([1, 1]))
    last = twin.calls[twin.of(nn.SiLU)[-1]]
    found = get_method("gradcam-elementwise")(model, images, 1)
    for sample in range(2):
        expected = reference.elementwise(last.value[sample].numpy(), last.gradient[sample].numpy())
        np.testing.assert_allclose(found.map[sample], expected / expected.max(), rtol=1e-4, atol=1e-6)
    theirs = pytorch_grad_cam.GradCAMElementWise(model=model, target_layers=[model[3]])
    maps = torch.from_numpy(theirs(images, [ClassifierOutputTarget(1)] * 2))
    low = found.map.amin((1, 2), keepdim=True)
    torch.testing.assert_close((found.map - low) / (1 - low), maps, atol=2e-4, rtol=0)
    layer = explain(model, images, 1, get_method("layercam").recipe)
    assert not torch.allclose(found.map, layer.map, atol=0.02)
    # Its own map, the gradient's account.
    assert torch.equal(found.layers[0].joint_score, layer.layers[0].joint_score)
    assert torch.equal(found.completeness.activation, layer.completeness.activation)


def test_elementwise_is_layercam_behind_a_relu() -> None:
    option = networks.Options(dims=2, seed=21, norm="affine")
    model, images = networks.build("resnet", option), networks.images(option)
    found, layer = get_method("gradcam-elementwise")(model, images), get_method("layercam")(model, images)
    torch.testing.assert_close(found.map, layer.map)


@pytest.mark.parametrize("name", [each.name for each in list_methods()])
def test_every_method_gives_what_evaluation_and_pictures_need(name: str, tmp_path: Path) -> None:
    option = networks.Options(dims=2, seed=20, norm="affine")
    model, images = networks.build("vgg", option), networks.images(option)
    found = get_method(name)(model, images)
    assert found.map.shape == (2, 8, 4)
    assert found.map.amax((1, 2)).tolist() == [1, 1]
    assert found.map.min() >= 0
    assert torch.equal(found.target, model(images).argmax(1))
    parts = found.completeness
    torch.testing.assert_close(parts.input + parts.bias, found.score)
    assert torch.equal(found.weights.sum(1) > 0, torch.full((2,), bool(found.layers)))
    found.save(tmp_path / "e")
    loaded = Explanation.load(tmp_path / "e")
    assert torch.equal(loaded.map, found.map)
    assert (loaded.recipe is None) == (found.recipe is None)
    with torch.inference_mode():
        assert torch.equal(get_method(name)(model, images, found.target).map, found.map)


def test_silent_channels_do_not_divide_by_zero() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, -x.abs()], 1).relu().sum((2, 3))

    found = explain(Silent(), torch.rand(1, 1, 4, 4), 0, get_method("xgradcam").recipe)
    assert found.map.isfinite().all()
    assert found.map.max() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evidence_that_cancels_is_blank(dtype: torch.dtype) -> None:
    """An instance norm takes each channel's mean, so that a gradient's mean in front of it is zero."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(6, affine=True)
    front = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 1), norm)
    model = nn.Sequential(front, nn.Flatten(), nn.Linear(6 * 36, 4)).to(dtype)
    images = torch.randn(2, 3, 8, 8, dtype=dtype)
    with pytest.warns(UserWarning, match="The map of image 0, 1 is blank"):
        assert not get_method("gradcam")(model, images, 1).layers[0].map.any()
    assert (get_method("hirescam")(model, images, 1).map.amax((1, 2)) == 1).all()


def test_weak_evidence_is_not_taken_for_rounding() -> None:
    """One part in a million of the evidence is left, at one of 10,000 positions."""
    left = torch.zeros(1, 100, 100)
    left[0, 3, 5] = 1e-6
    assert torch.equal(above_rounding(left, torch.ones(1), "position"), left)
    assert not above_rounding(left / 2e5, torch.ones(1), "position").any()
    assert torch.equal(above_rounding(left, torch.ones(1), "channel"), left)
    assert not above_rounding(left / 2, torch.ones(1), "channel").any()


def test_names_and_sources() -> None:
    assert list_methods()[0].name == "integrative"
    assert len({each.name for each in list_methods()}) == len(list_methods())
    for each in list_methods():
        assert get_method(each.name) is each
        assert each.description
        assert each.source.startswith(("arXiv:", "10.", "pytorch-grad-cam", "control"))
        if isinstance(each.way, Recipe):
            each.recipe.validate()
        else:
            with pytest.raises(RecipeError, match=f"method {each.name} has no ingredients that could be changed"):
                _ = each.recipe
    with pytest.raises(
        RecipeError, match=r"method must be one of integrative, .* but got 'gradcm'. Did you mean 'gradcam'"
    ):
        get_method("gradcm")


class ReadAtToken(nn.Module):
    """Two blocks on a class token and 16 patches; behind the last one only the token is read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attend": nn.MultiheadAttention(8, 2, batch_first=True),
                    "up": nn.Linear(8, 12),
                    "act": nn.GELU(),
                    "down": nn.Linear(12, 8),
                }
            )
            for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            x = x + block["attend"](x, x, x)[0]
            x = x + block["down"](block["act"](block["up"](x)))
        return self.head(x[:, 0])


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize(
    "name",
    [
        "gradcam",
        "gradcam++",
        "hirescam",
        "layercam",
        "xgradcam",
        "layercam-fused",
        "refinecam",
        "gradcam-elementwise",
        "scorecam",
        "ablationcam",
    ],
)
def test_one_layer_of_a_vision_transformer_is_the_last_whose_patches_matter(name: str) -> None:
    """The last block's patches have no gradient: nothing reads them."""
    model, images = ReadAtToken().eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # planned, and on the plan
        found = get_method(name)(model, images, 1)
        assert [layer.name for layer in found.layers] == ["blocks.1.act"]
    if isinstance(get_method(name).way, Recipe):
        named = explain(model, images, 1, get_method(name).recipe, taps="blocks.1.act")
        assert named.map.amax() > 0
        torch.testing.assert_close(found.map, named.map)


def test_a_saturated_first_image_settles_no_layer() -> None:
    """Its score has no gradient anywhere: a later image finds the layer that matters all the same."""
    model, images = ReadAtToken().eval(), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cam = IntegrativeCAM(model, get_method("hirescam").recipe)
    with pytest.warns(UserWarning, match="the gradient of its score is 0 in every layer"):
        cam(images, lambda output: output[1] * 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cam(images, lambda output: output[1]).layers[0].name == "blocks.1.act"
