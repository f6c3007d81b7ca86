"""Peers as shipped: what a user would get by hand, and nothing of it stays behind."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from networks import Options, build, images
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from integrative_cam import CamError, MissingExtraError, get_method, trace
from integrative_cam.cli._compare import print_methods
from integrative_cam.errors import InputError, OutputError, RecipeError, TapError, TargetError
from integrative_cam.integrations import _libraries as module
from integrative_cam.integrations._libraries import layers_of, named, peer, peers

pytest.importorskip("torchcam", reason="needs Python 3.11")
import torchcam.methods

RELUS = ["1", "4", "6"]
LAYERS = {"activations": RELUS, "stages": ["1", "6"], "last": ["6"]}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def small(inplace: bool = False) -> nn.Sequential:
    """Three activations at two resolutions; no peer's map of these images is blank."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        # Around 0 for these images, so that their top classes differ.
        model[-1].bias -= model(IMAGES).mean(0)
    return model


def top(model: nn.Module) -> list[int]:
    with torch.no_grad():
        return model(IMAGES).argmax(1).tolist()


def by_maximum(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True)


def by_hand(name: str, index: list[int], taps: str, inplace: bool = False, **options: Any) -> Tensor:
    """As the libraries' READMEs call them."""
    model = small(inplace)
    library, _, chosen = name.partition(":")
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    if library == "grad-cam":
        layers = [model.get_submodule(path) for path in LAYERS[taps]]
        with getattr(pytorch_grad_cam, chosen)(model=model, target_layers=layers, **options) as cam:
            return torch.from_numpy(cam(input_tensor=IMAGES, targets=[ClassifierOutputTarget(each) for each in index]))
    with getattr(torchcam.methods, chosen)(model, LAYERS[taps], **options) as extractor:
        maps = extractor(index, model(IMAGES))
        if len(maps) > 1:
            maps = [extractor.fuse_cams(maps)]
    return F.interpolate(maps[0][:, None], (16, 16), mode="bilinear")[:, 0]


def test_the_images_have_different_top_classes() -> None:
    assert len(set(top(small()))) > 1


@pytest.mark.parametrize("taps", LAYERS)
@pytest.mark.parametrize(
    "name",
    [
        *(f"grad-cam:{each}" for each in ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM", "EigenCAM")),
        *("grad-cam:ScoreCAM", "grad-cam:AblationCAM", "grad-cam:RandomCAM"),
        *("torchcam:GradCAM", "torchcam:GradCAMpp", "torchcam:LayerCAM", "torchcam:ScoreCAM"),
        "torchcam:SmoothGradCAMpp",
    ],
)
def test_a_peer_gives_what_its_library_gives(name: str, taps: str) -> None:
    model = small()
    found = named(f"{name}@{taps}")(model, IMAGES)
    assert found.target.tolist() == top(model)
    expected = by_hand(name, top(model), taps)
    assert expected.amax((1, 2)).min() > 0.5
    torch.testing.assert_close(found.map, by_maximum(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grad-cam:HiResCAM@stages", "torchcam:LayerCAM@activations"])
def test_the_class_can_be_chosen(name: str) -> None:
    model = small()
    chosen, taps = name.split("@")
    for target, index in ((2, [2, 2, 2]), ([0, 3, 1], [0, 3, 1]), (torch.tensor([1, 1, 0]), [1, 1, 0])):
        found = named(name)(model, IMAGES, target)
        expected = by_maximum(by_hand(chosen, index, taps))
        torch.testing.assert_close(found.map, expected.nan_to_num(), rtol=1e-5, atol=1e-5)
        assert found.target.tolist() == index
        torch.testing.assert_close(found.score, model(IMAGES).detach()[range(3), index])


def test_finer_cam_of_grad_cam_makes_its_own_targets() -> None:
    """Class against its nearest rivals, which explicit targets would switch off."""
    model, index = small(), [1, 0, 2]
    found = named("grad-cam:FinerCAM@last")(model, IMAGES, index)
    cam = pytorch_grad_cam.FinerCAM(model, [model[6]])
    expected = [torch.from_numpy(cam(IMAGES[at : at + 1], target_idx=each)) for at, each in enumerate(index)]
    torch.testing.assert_close(found.map, by_maximum(torch.cat(expected)).nan_to_num(), rtol=1e-5, atol=1e-5)
    plain = named("grad-cam:GradCAM@last")(model, IMAGES, index).map
    assert (found.map - plain).abs().max() > 0.1


def test_full_grad_takes_no_layers() -> None:
    model = small()
    found = named("grad-cam:FullGrad")(model, IMAGES)
    cam = pytorch_grad_cam.FullGrad(model, [])
    expected = torch.from_numpy(cam(IMAGES, [ClassifierOutputTarget(each) for each in top(model)]))
    torch.testing.assert_close(found.map, by_maximum(expected), rtol=1e-5, atol=1e-5)


def test_in_place_activations_are_met_as_shipped() -> None:
    """pytorch-grad-cam hooks the ReLU's own output, which no later layer overwrites here: in place is no matter."""
    for name in ("grad-cam:LayerCAM", "torchcam:LayerCAM"):
        found = named(f"{name}@activations")(small(inplace=True), IMAGES).map
        expected = by_maximum(by_hand(name, top(small()), "activations", inplace=True))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", peers())
def test_every_listed_peer_runs(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = named(name)(small(), IMAGES[:2])
    assert named(name).name == name
    assert found.map.shape == (2, 16, 16)
    assert found.map.min() >= 0
    torch.testing.assert_close(found.map.amax((1, 2)), torch.ones(2))
    again = named(name)(small(), IMAGES[:2])
    assert torch.equal(found.map, again.map)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "it/s" not in shown.err


def test_names_and_sources() -> None:
    assert named("gradcam") is get_method("gradcam")
    found = peer("torchcam:LayerCAM@stages")
    assert found.source == "torchcam 0.5.0"
    assert "the last of them at each resolution" in found.description
    assert {"grad-cam:FullGrad", "torchcam:CAM@last"} < set(peers())
    assert len(peers()) == len(set(peers()))


def test_the_command_lists_peers(capsys: pytest.CaptureFixture[str]) -> None:
    print_methods()
    shown = " ".join(capsys.readouterr().out.split())
    assert "grad-cam:HiResCAM@TAPS" in shown
    assert "grad-cam:FullGrad as shipped grad-cam 1.5.7" in shown
    assert "torchcam:CAM@TAPS as shipped; TAPS: last torchcam 0.5.0" in shown


# What a layer is


class Shapes(nn.Module):
    """A module called twice, a function, a block whose output is its last activation, and a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.block = Block()
        self.stage = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(nn.Identity(), nn.Tanh()))
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.stage(self.block(x))
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(self.conv(x)) - 0.1)


def test_taps_become_the_modules_whose_output_they_are() -> None:
    torch.manual_seed(0)
    model, seen = Shapes().eval(), torch.randn(2, 2, 6, 6)
    found = {tap.name: tap for tap in trace(model, seen, 0).taps}
    assert list(found) == [":relu", "block.relu", "block.relu#2", "stage.1.1"]
    assert layers_of(model, seen, [found["block.relu#2"], found["stage.1.1"]]) == ["block", "stage.1.1"]
    for name in (":relu", "block.relu"):
        with pytest.raises(TapError, match=f"tap {name} is not the output .* of a module that is called once"):
            layers_of(model, seen, [found[name]])
    assert not any(each._forward_hooks for each in model.modules())


def test_a_layer_out_of_reach_is_named() -> None:
    with pytest.raises(TapError, match=r"^grad-cam:LayerCAM@activations: tap :relu is not .* name a module"):
        named("grad-cam:LayerCAM@activations")(Shapes().eval(), torch.randn(2, 2, 6, 6))
    found = named("grad-cam:LayerCAM@last")(Shapes().eval(), torch.randn(2, 2, 6, 6), 0)
    assert found.map.shape == (2, 6, 6)


def test_a_residual_network() -> None:
    option = Options(seed=3, stride=2)
    model, seen = build("resnet", option).float(), images(option).float()
    taps = trace(model, seen, 0, "stages").taps
    assert layers_of(model, seen, taps) == ["1.relu", "2.relu"]
    found = named("grad-cam:HiResCAM@stages")(model, seen, 0).map
    cam = pytorch_grad_cam.HiResCAM(model, [model[1].relu, model[2].relu])
    expected = torch.from_numpy(cam(seen, [ClassifierOutputTarget(0)] * 2))
    torch.testing.assert_close(found, by_maximum(expected), rtol=1e-5, atol=1e-5)


# Nothing stays behind


class Fragile(nn.Module):
    """A network with batch statistics, dropout, in-place layers and a hook; its copies fail where asked to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(6, 4)
        self.fails, self.original, self.hooked = fails, id(self), 0
        self.body[2].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.hooked += 1

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and id(self) != self.original:
            raise ValueError("on purpose\nand more")
        return self.head(self.body(x).mean((2, 3)))


def state_of(model: nn.Module) -> list[Any]:
    """All that a user could notice."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, id(each), each.training, sorted(vars(each))) for name, each in model.named_modules()],
        [(name, id(each), each.requires_grad, each._version, each.tolist()) for name, each in tensors],
        [(name, None if each.grad is None else each.grad.tolist()) for name, each in tensors],
        [list(getattr(each, hook)) for each in model.modules() for hook in hooks],
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        torch.get_rng_state().tolist(),
        (random.getstate(), str(np.random.get_state())),  # noqa: NPY002
        (id(pytorch_grad_cam.ablation_cam.tqdm), id(pytorch_grad_cam.score_cam.tqdm)),
    ]


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "name",
    [
        *("grad-cam:GradCAM@last", "grad-cam:AblationCAM@last", "grad-cam:RandomCAM@last", "grad-cam:FullGrad"),
        *("torchcam:SmoothGradCAMpp@last", "torchcam:LayerCAM@last"),
    ],
)
def test_nothing_changes(name: str, training: bool, fails: bool) -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    model = Fragile(fails).train(training)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.body[0].weight.requires_grad_(False)
    seen = IMAGES.clone()
    before = state_of(model)
    if fails:
        with pytest.raises(CamError, match=rf"^{name} failed: ValueError: on purpose$") as caught:
            named(name)(model, seen)
        assert isinstance(caught.value.__cause__, ValueError)
    else:
        named(name)(model, seen)
    for one, other in zip(before, state_of(model), strict=True):
        assert one == other
    assert model.hooked == 1
    assert torch.equal(seen, IMAGES)
    assert seen.grad is None


def test_an_interruption_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pytorch_grad_cam.GradCAM, "forward", interrupted)
    model = small()
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        named("grad-cam:GradCAM@last")(model, IMAGES)
    assert before == state_of(model)
    assert module._one_at_a_time.acquire(blocking=False)
    module._one_at_a_time.release()


@pytest.mark.parametrize("build_model", [small, Fragile])
@pytest.mark.parametrize("name", ["grad-cam:ScoreCAM@last", "grad-cam:RefineCAM@last", "torchcam:LayerCAM@stages"])
def test_a_call_keeps_no_memory(
    name: str, build_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until the garbage collector runs, also where a hook of the user's holds its own module."""
    copies: list[weakref.ref[nn.Module]] = []
    copied = module._copied

    def watched(*arguments: Any) -> nn.Module:
        made = copied(*arguments)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(module, "_copied", watched)
    gc.collect()
    gc.disable()
    try:
        named(name)(build_model().eval(), IMAGES)
        assert [copy() for copy in copies] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["grad-cam:GradCAM@last", "torchcam:GradCAM@last"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_frozen_networks_and_contexts_without_gradients(name: str, context: Callable[[], Any]) -> None:
    """Both libraries fail there when called by hand."""
    expected = named(name)(small(), IMAGES).map
    model = small().requires_grad_(False)
    with context():
        found = named(name)(model, IMAGES).map
    assert torch.equal(found, expected)
    assert not any(each.requires_grad for each in model.parameters())


class Overwrites(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


@pytest.mark.parametrize("name", ["grad-cam:GradCAM@last", "torchcam:GradCAM@last"])
def test_networks_that_overwrite_their_images(name: str) -> None:
    seen = IMAGES.clone()
    found = named(name)(Overwrites(*small()).eval(), seen, 1).map
    assert torch.equal(seen, IMAGES)
    assert torch.equal(found, named(name)(small(), IMAGES * 2, 1).map)


def test_training_mode_explains_as_evaluation_mode_does() -> None:
    torch.manual_seed(0)
    model = Fragile().train()
    found = named("grad-cam:LayerCAM@last")(model, IMAGES, 1).map
    assert torch.equal(found, named("grad-cam:LayerCAM@last")(model.eval(), IMAGES, 1).map)


@pytest.mark.parametrize("name", ["grad-cam:AblationCAM@last", "torchcam:LayerCAM@stages"])
def test_threads_may_share_a_model(name: str) -> None:
    """Called by hand on one model, both libraries mix their threads' maps up."""
    model = small()
    expected = [named(name)(model, IMAGES, index).map for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: named(name)(model, IMAGES, index).map, list(range(4)) * 3))
    for one, other in zip(found, expected * 3, strict=True):
        assert torch.equal(one, other)


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradcam:GradCAM@last", "peer must be one of grad-cam, torchcam, but got 'gradcam'. Did you mean 'grad-cam'"),
        ("grad-cam:HiresCAM@last", "grad-cam method must be one of .* Did you mean 'HiResCAM'"),
        ("torchcam:LeGrad@last", "torchcam method must be one of"),
        ("grad-cam:GradCAM", "must be grad-cam:GradCAM@TAPS with TAPS one of activations, stages, last"),
        ("grad-cam:FullGrad@last", r"must be grad-cam:FullGrad\.$"),
        ("lastcam", "method must be one of integrative"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        named(name)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torchcam" else name)
    with pytest.raises(MissingExtraError, match=r"torchcam:GradCAM@last needs .*`torchcam`.*integrative-cam\[peers\]"):
        named("torchcam:GradCAM@last")
    assert {name.partition(":")[0] for name in peers()} == {"grad-cam"}


def test_classes_only() -> None:
    with pytest.raises(TargetError, match="torchcam:GradCAM@last explains classes"):
        named("torchcam:GradCAM@last")(small(), IMAGES, lambda output: output[0])


def test_maps_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch_grad_cam.GradCAM, "forward", lambda *_, **__: np.full((3, 16, 16), np.nan))
    with pytest.raises(OutputError, match="grad-cam:GradCAM@last gave NaN or infinite values"):
        named("grad-cam:GradCAM@last")(small(), IMAGES)
    monkeypatch.setattr(pytorch_grad_cam.GradCAM, "forward", lambda *_, **__: np.ones((3, 8, 16)))
    with pytest.raises(OutputError, match=r"gave a map of shape \(3, 8, 16\), .* \(3, 16, 16\) are wanted"):
        named("grad-cam:GradCAM@last")(small(), IMAGES)


def test_a_model_that_cannot_be_copied() -> None:
    model = small()
    model.lock = module._one_at_a_time
    with pytest.raises(InputError, match=r"grad-cam:GradCAM@last runs on a copy of the model, which copy\.deepcopy"):
        named("grad-cam:GradCAM@last")(model, IMAGES)
