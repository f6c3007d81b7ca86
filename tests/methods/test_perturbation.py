"""Score-CAM and Ablation-CAM: by hand, against the twins and the peers, and the network as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import networks
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from reference import fusion
from reference import methods as reference
from reference.arrays import Array, relu
from torch import Tensor, nn

from integrative_cam import Explanation, explain, get_method
from integrative_cam.errors import OutputError, TapError
from integrative_cam.methods._perturbation import AT_ONCE, ablation_cam, score_cam

METHODS: dict[str, Callable[..., Explanation]] = {"scorecam": score_cam, "ablationcam": ablation_cam}
both = pytest.mark.parametrize("cam", METHODS.values(), ids=METHODS)


class Weighs(nn.Module):
    """S = sum of weight_k relu(x_k) + offset, as the first of two logits."""

    def __init__(self, *weights: float, offset: float = 0) -> None:
        super().__init__()
        self.weights, self.offset = torch.tensor(weights, dtype=torch.float64), offset

    def forward(self, x: Tensor) -> Tensor:
        score = (x.relu().sum((2, 3)) * self.weights).sum(1) + self.offset
        return torch.stack([score, torch.zeros_like(score)], 1)


def rows(*channels: list[float]) -> Tensor:
    """One image, each channel a row of pixels."""
    return torch.tensor([[[row] for row in channels]], dtype=torch.float64)


def test_score_cam_by_hand() -> None:
    # Masks [0, 1] and [1, 0] leave scores of 2 ln 3 and ln 3: weights 3/4 and 1/4. The third channel is constant.
    found = score_cam(Weighs(math.log(3), 0, 50), rows([1, 2], [4, 3], [0, 0]), 0)
    torch.testing.assert_close(found.map, torch.tensor([[[1.75 / 2.25, 1]]]).double())
    # 2 x [1, 2] + 3 x [4, 3] are the activations' own parts of the score.
    assert found.completeness.score.item() == pytest.approx(3 * math.log(3))
    assert found.completeness.activation.item() == pytest.approx(3 * math.log(3))
    assert found.recipe is None


def test_a_constant_channel_has_no_say_in_score_cam() -> None:
    found = score_cam(Weighs(math.log(3), 0, 50), rows([1, 2], [4, 3], [7, 7]), 0)
    torch.testing.assert_close(found.map, torch.tensor([[[1.75 / 2.25, 1]]]).double())


@pytest.mark.parametrize("offset", [0.0, -100.0])
def test_ablation_cam_by_hand(offset: float) -> None:
    """Falls of 6 and 7, whatever the sign of the score: 6 x [1, 2] + 7 x [3, 4] = [27, 40]."""
    found = ablation_cam(Weighs(2, 1, offset=offset), rows([1, 2], [3, 4]), 0)
    torch.testing.assert_close(found.map, torch.tensor([[[27 / 40, 1]]]).double())
    assert found.score.item() == 13 + offset
    assert found.completeness.bias.item() == offset
    assert found.layers[0].joint_score.item() == 13  # of the gradient: 2 x 3 + 1 x 7


def test_a_channel_that_speaks_against_is_subtracted() -> None:
    """Falls of 6 and -1: 6 x [1, 2] - [1, 0] = [5, 12]."""
    found = ablation_cam(Weighs(2, -1), rows([1, 2], [1, 0]), 0)
    torch.testing.assert_close(found.map, torch.tensor([[[5 / 12, 1]]]).double())


@both
def test_nothing_varies_nothing_is_active(cam: Callable[..., Explanation]) -> None:
    """One image of two without any active channel: blank, announced, and no harm to the other."""
    images = torch.cat([rows([-1, -2], [-3, -4]), rows([1, 2], [3, 4])])
    with pytest.warns(UserWarning, match="map of image 0 is blank"):
        found = cam(Weighs(2, 1), images, 0)
    assert not found.map[0].any()
    torch.testing.assert_close(found.map[1], cam(Weighs(2, 1), images[1:], 0).map[0])
    with pytest.warns(UserWarning, match="map of image 0 is blank"):
        assert not cam(Weighs(2, 1), images[:1], 0).map.any()


# --- twins


class Positions(nn.Module):
    """Features behind the positions, (batch, position, channel), in a module that can be hooked."""

    def __init__(self, option: networks.Options) -> None:
        super().__init__()
        self.embed = nn.Conv1d(networks.CHANNELS, 5, 3, padding=1, stride=2)
        self.wide = nn.Linear(5, 8)
        self.relu = nn.ReLU(option.inplace)
        self.head = nn.Linear(8, option.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.wide(self.embed(x).transpose(1, 2))).mean(1))


class Twin:
    """One image's run through copies of a network with hooks on their last ReLU that has space."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.image = model, image
        self.axis = -1 if isinstance(model, Positions) else 1
        seen: list[tuple[str, Tensor]] = []
        copied = copy.deepcopy(model)
        for name, layer in copied.named_modules():
            if isinstance(layer, nn.ReLU):
                layer.register_forward_hook(
                    lambda layer, args, value, name=name: seen.append((name, value.movedim(self.axis, 1)[0].clone()))
                )
        with torch.no_grad():
            copied(image[None])
        spatial = [(name, value) for name, value in seen if value.ndim == image.ndim and value[0].numel() > 1]
        self.name, self.activation = spatial[-1][0], spatial[-1][1].numpy()

    def score(self, index: int, image: Array | None = None) -> float:
        """The logit, of another image if given."""
        with torch.no_grad():
            return self.model(self.image[None] if image is None else torch.from_numpy(image)[None])[0, index].item()

    def score_without(self, index: int, channel: int) -> float:
        """The logit when the ReLU returns one channel as zeros."""
        copied = copy.deepcopy(self.model)

        def silence(layer: nn.Module, args: Any, value: Tensor) -> Tensor:
            value = value.clone()
            value.movedim(self.axis, 1)[0, channel] = 0
            return value

        copied.get_submodule(self.name).register_forward_hook(silence)
        with torch.no_grad():
            return copied(self.image[None])[0, index].item()


def expected(name: str, twin: Twin, index: int) -> Array:
    """The raw map of the papers' formulas, in loops."""
    if name == "scorecam":
        return reference.score_cam(twin.activation, twin.image.numpy(), lambda image: twin.score(index, image))
    without = [twin.score_without(index, channel) for channel in range(len(twin.activation))]
    return reference.ablation_cam(twin.activation, twin.score(index), without.__getitem__)


def upsampled(raw: Array, space: tuple[int, ...]) -> Array:
    """Positive part at the image's size, divided by the maximum."""
    return fusion.by_magnitude(relu(fusion.interpolate(raw, space)))


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("kind", "dims"), [("plain", 1), ("resnet", 2), ("vgg", 3), ("inception", 2), (Positions, 1)])
def test_twins(name: str, kind: str | type[nn.Module], dims: int, inplace: bool) -> None:
    option = networks.Options(dims=dims, seed=31, norm="affine", stride=2, inplace=inplace)
    model, images = networks.build(kind, option), networks.images(option)
    found = METHODS[name](model, images, [3, 0])
    assert (
        found.completeness.score.tolist() == explain(model, images, [3, 0], score="logit").completeness.score.tolist()
    )
    for sample, index in enumerate([3, 0]):
        raw = expected(name, Twin(model, images[sample]), index)
        scale = np.abs(raw).max() / found.layers[0].map[sample].abs().max().item()
        np.testing.assert_allclose(found.layers[0].map[sample] * scale, raw, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.map[sample], upsampled(raw, tuple(images.shape[2:])), rtol=1e-9, atol=1e-12)


@both
def test_all_but_the_map_is_the_gradient_methods_own(cam: Callable[..., Explanation]) -> None:
    option = networks.Options(seed=33, norm="affine")
    model, images = networks.build("vgg", option), networks.images(option)
    found, hires = cam(model, images), get_method("hirescam")(model, images)
    for name in ("score", "input", "bias", "activation", "tap_bias", "is_cut"):
        assert torch.equal(getattr(found.completeness, name), getattr(hires.completeness, name)), name
    assert torch.equal(found.layers[0].joint_score, hires.layers[0].joint_score)
    assert torch.equal(found.target, hires.target)
    torch.testing.assert_close(found.completeness.remainder, torch.zeros(2).double(), atol=1e-12, rtol=0)


# --- more channels than run at once, targets, batches


def many(channels: int = AT_ONCE + 9) -> nn.Module:
    """More channels than one run takes, the activation called twice under one name, evidence for every class."""
    torch.manual_seed(7)
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), relu, nn.Conv2d(6, channels, 3, padding=1), relu, nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(channels, 4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        model[-1].weight.abs_()
    return model


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@both
def test_neighbours_do_not_matter_and_runs_are_bounded(cam: Callable[..., Explanation]) -> None:
    model, sizes = many(), []
    # Before the first call: a hook that calls functions of torch makes another network, which is planned again.
    model.register_forward_hook(lambda model, args, output: sizes.append(len(output)))
    together = cam(model, IMAGES, [0, 1, 2])
    for sample in range(3):
        alone = cam(model, IMAGES[sample : sample + 1], sample)
        torch.testing.assert_close(together.map[sample], alone.map[0], rtol=1e-9, atol=1e-12)
    sizes.clear()
    cam(model, IMAGES, 0)
    # The trace itself, then a run per 32 of all images' channels together; blank ones need none.
    assert sizes[0] == 3
    assert set(sizes[1:-1]) == {AT_ONCE}
    assert sizes[-1] <= AT_ONCE
    assert 100 <= sum(sizes[1:]) <= 3 * (AT_ONCE + 9)


@both
def test_callables_are_targets_too(cam: Callable[..., Explanation]) -> None:
    model = many()
    by_index = cam(model, IMAGES, [2, 0, 1])

    def second(output: Tensor) -> Tensor:
        return output[0]

    mixed = cam(model, IMAGES, [lambda output: output[2], second, 1])
    assert torch.equal(mixed.map, by_index.map)
    assert mixed.target_names[1] == "second"
    difference = cam(model, IMAGES, lambda output: output[2] - output[0])
    assert torch.equal(difference.score, by_index.output[:, 2] - by_index.output[:, 0])
    if cam is ablation_cam:  # linear in the score
        maps = [cam(model, IMAGES, index).layers[0].map for index in (2, 0)]
        torch.testing.assert_close(difference.layers[0].map, maps[0] - maps[1])
    assert torch.equal(cam(model, IMAGES).map, cam(model, IMAGES, cam(model, IMAGES).target).map)


@both
def test_images_without_a_channel_axis(cam: Callable[..., Explanation]) -> None:
    class Unsqueezes(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x[:, None].expand(-1, 3, -1, -1))

    model = many()
    flat = IMAGES[:, 0]
    found = cam(Unsqueezes(model), flat, 1)
    assert torch.equal(found.map, cam(model, flat[:, None].expand(-1, 3, -1, -1), 1).map)


# --- peers


def fine(stride: int = 1) -> nn.Module:
    """Features as large as the image, so that no resizing comes between, and a positive score of class 1."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].weight *= 40
        model[-1].bias += 10
    return model


def theirs(peer: type, images: Tensor, model: nn.Module, layer: nn.Module) -> Tensor:
    return torch.from_numpy(peer(model=model, target_layers=[layer])(images, [ClassifierOutputTarget(1)] * len(images)))


def stretched(maps: Tensor) -> Tensor:
    """From minimum to maximum, as the peers show maps."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize(
    ("cam", "peer"), [(score_cam, pytorch_grad_cam.ScoreCAM), (ablation_cam, pytorch_grad_cam.AblationCAM)]
)
def test_pytorch_grad_cam_says_the_same(cam: Callable[..., Explanation], peer: type) -> None:
    model, images = fine(), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(6))
    ours = cam(model, images, 1)
    assert (ours.score > 0).all()
    assert (ours.map.flatten(1).std(1) > 0.1).all()
    torch.testing.assert_close(stretched(ours.map), theirs(peer, images, model, model[3]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("before", [False, True], ids=["pytorch_grad_cam", "torchcam"])
def test_peers_resize_score_cams_masks_in_other_ways(before: bool) -> None:
    """grad-cam aligns corners; torchcam scales before it resizes, so that a mask no longer reaches 1."""
    model, images = fine(stride=2), torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(6))
    activation = model[:4](images).detach()[0]
    if before:
        torchcam = pytest.importorskip("torchcam.methods", reason="needs Python 3.11")
        with torchcam.ScoreCAM(model, model[3], input_shape=(3, 12, 12)) as extractor:
            model(images)
            found = extractor([1])[0][0]
        low, high = activation.amin((1, 2), True), activation.amax((1, 2), True)
        masks = F.interpolate(((activation - low) / (high - low + 1e-12))[None], size=(12, 12), mode="bilinear")[0]
    else:
        peer = pytorch_grad_cam.ScoreCAM(model, [model[3]])
        weights = peer.get_cam_weights(images, model[3], [ClassifierOutputTarget(1)], activation[None].numpy(), None)
        found = torch.einsum("k,kij->ij", torch.from_numpy(weights)[0], activation)
        masks = F.interpolate(activation[None], size=(12, 12), mode="bilinear", align_corners=True)[0]
        low, high = masks.amin((1, 2), True), masks.amax((1, 2), True)
        masks = (masks - low) / (high - low + 1e-12)
    with torch.no_grad():
        expected = model(images * masks[:, None])[:, 1].softmax(0)
    expected = torch.einsum("k,kij->ij", expected, activation)
    torch.testing.assert_close(ranged(found), ranged(expected), atol=2e-4, rtol=0)
    ours = score_cam(model, images, 1).layers[0].map[0]
    assert (ranged(ours) - ranged(found)).abs().max() > 0.01


def ranged(raw: Tensor) -> Tensor:
    return (raw - raw.min()) / (raw.max() - raw.min())


def test_torchcam_says_the_same() -> None:
    torchcam = pytest.importorskip("torchcam.methods", reason="needs Python 3.11")
    model, images = fine(), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(6))
    ours = score_cam(model, images, 1).map
    with torchcam.ScoreCAM(model, model[3], input_shape=(3, 12, 12)) as extractor:
        model(images)
        (found,) = extractor([1, 1])
    torch.testing.assert_close(stretched(ours), found, atol=2e-4, rtol=0)


def test_pytorch_grad_cam_turns_ablation_cam_round_where_the_score_is_negative() -> None:
    model, images = fine(), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(6))
    expected = ablation_cam(model, images, 1).map
    with torch.no_grad():
        model[-1].bias -= 100
    ours = ablation_cam(model, images, 1)
    assert (ours.score < 0).all()
    torch.testing.assert_close(ours.map, expected, atol=1e-4, rtol=0)
    peer = theirs(pytorch_grad_cam.AblationCAM, images, model, model[3])
    correlation = torch.corrcoef(torch.stack([expected.flatten(), peer.flatten()]))[0, 1]
    assert correlation < 0


# --- the network as it was


class Busy(nn.Module):
    """Dropout, random numbers, buffers written to and replaced, in-place layers, its input overwritten."""

    def __init__(self, fault: type[BaseException] | None = None, runs: int = 2) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, AT_ONCE + 2, 3, padding=1), nn.BatchNorm2d(AT_ONCE + 2)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout()
        self.head = nn.Linear(AT_ONCE + 2, 4)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("last", torch.zeros(()))
        self.fault, self.left = fault, [runs]

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        if self.fault is not None:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise self.fault("on purpose")
        self.scale += 1
        self.last = x.detach().mean()
        x *= self.scale / 2
        x = x + torch.rand(1)
        return self.head(self.dropout(self.relu(self.norm(self.conv(x))).mean((2, 3))))


@both
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fault", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("surrounding", [nullcontext, torch.no_grad, torch.inference_mode])
def test_nothing_changes(
    cam: Callable[..., Explanation],
    training: bool,
    fault: type[BaseException] | None,
    surrounding: Callable[[], Any],
) -> None:
    torch.manual_seed(0)
    model = Busy(fault).train(training)
    model.conv.requires_grad_(False)
    model.norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    images = torch.randn(2, 3, 6, 6)
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept, asked = list(model.buffers()), [each.requires_grad for each in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    copied, random, modes = images.clone(), torch.get_rng_state(), torch.overrides._len_torch_function_stack()
    with surrounding(), pytest.raises(fault, match="on purpose") if fault else nullcontext():
        cam(model, images, 0)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(now is before for now, before in zip(model.buffers(), kept, strict=True))
    assert [each.requires_grad for each in model.parameters()] == asked
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(each.grad is None for name, each in model.named_parameters() if name != "head.weight")
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(images, copied)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.overrides._len_torch_function_stack() == modes
    assert torch.is_grad_enabled()
    leaf = torch.ones(2, requires_grad=True)
    leaf.square().sum().backward()
    assert leaf.grad.tolist() == [2, 2]


@both
def test_every_run_finds_the_network_as_the_first_did(cam: Callable[..., Explanation]) -> None:
    """The scale and the random number are the same in all runs, and training mode changes nothing."""
    torch.manual_seed(0)
    model, images = Busy().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    drawn = torch.get_rng_state()
    together = cam(model.train(), images, 0)
    torch.set_rng_state(drawn)
    assert torch.equal(together.map, cam(model.eval(), images, 0).map)
    seen: list[float] = []
    model.register_forward_hook(lambda model, args, output: seen.append(float(model.scale)))
    cam(model, images, 0)
    assert len(seen) > 2
    assert set(seen) == {2}


@both
def test_half_precision_and_autocast(cam: Callable[..., Explanation]) -> None:
    model, images = many().float(), IMAGES.float()
    expected = cam(model, images, 1)
    assert expected.map.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = cam(model, images, 1)
    low = cam(many().bfloat16(), images.bfloat16(), 1)
    for found in (cast, low):
        assert found.map.dtype == torch.float32
        assert (found.map - expected.map).abs().mean() < 0.05


@both
def test_compiled_models_run_eagerly(cam: Callable[..., Explanation]) -> None:
    model = many()
    expected = cam(model, IMAGES[:1], 1).map
    assert torch.equal(cam(torch.compile(model, backend="eager"), IMAGES[:1], 1).map, expected)


# --- errors


class Once(nn.Module):
    """Its activation is another module's from the second call on, or its output infinite."""

    def __init__(self, output: float = 1) -> None:
        super().__init__()
        self.first, self.second, self.output = nn.ReLU(), nn.ReLU(), output
        self.called = []

    def forward(self, x: Tensor) -> Tensor:
        self.called.append(1)
        later = len(self.called) > 1
        return (self.second if later else self.first)(x).mean((2, 3)) * (self.output if later else 1)


def test_a_network_that_does_not_do_the_same_twice() -> None:
    with pytest.raises(TapError, match="The network called first once and not again"):
        ablation_cam(Once(), IMAGES)


@both
def test_scores_that_are_not_finite(cam: Callable[..., Explanation]) -> None:
    model = Once(float("inf"))
    model.second = model.first
    with pytest.raises(OutputError, match="score of a changed image is NaN or infinite"):
        cam(model, IMAGES)
