"""The score splits exactly: at the input, and at every tap that all paths pass (method.md, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import networks
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from reference import measure
from torch import Tensor, nn

from integrative_cam import Completeness, trace
from integrative_cam._maps.completeness import completeness
from integrative_cam.models import Network, read_image

any_network = given(networks.options(), st.sampled_from(sorted(networks.BUILDERS)), st.booleans())
few = networks.examples(30)


def vgg11_bn() -> nn.Module:
    """Narrow between its linear layers, which hold 120 million weights of no consequence here."""
    model = torchvision.models.vgg11_bn(init_weights=False)
    model.classifier[0], model.classifier[3], model.classifier[6] = (
        nn.Linear(25088, 48),
        nn.Linear(48, 48),
        nn.Linear(48, 10),
    )
    return model


TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "vgg11_bn": vgg11_bn,
    "densenet121": torchvision.models.densenet121,
    "googlenet": lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False),
    "squeezenet1_1": torchvision.models.squeezenet1_1,
}


def network(name: str) -> nn.Module:
    """Random weights, every bias and statistic perturbed, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TORCHVISION[name]()
    return networks.perturbed(model.double().eval(), 1)


def noise_images() -> Tensor:
    """Noise of their shape."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def split_exactly(split: Completeness) -> None:
    """The input identity, and the cut identity at every cut tap, to 1e-9."""
    bound = 1e-9 * split.score.abs().clamp(min=1)
    assert (split.remainder.abs() <= bound).all()
    assert split.is_cut.any()
    assert (split.bypass[:, split.is_cut].abs() <= bound[:, None]).all()


def share_of_biases(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """d S / d t, with every bias and running mean multiplied by t, at t = 1: a difference of two plain runs.

    The network is piecewise linear in t, so that the difference is exact until a kink lies in between.
    """
    step, scores = 1e-6, []
    for factor in (1 + step, 1 - step):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for layer in scaled.modules():
                for each in (getattr(layer, "bias", None), getattr(layer, "running_mean", None)):
                    if each is not None:
                        each *= factor
            scores.append(scaled(images).gather(1, target[:, None])[:, 0])
    return (scores[0] - scores[1]) / (2 * step)


@few
@any_network
def test_tiny_networks(option: networks.Options, kind: str, odd: bool) -> None:
    spaces = networks.ODD_SPACES if odd else networks.SPACES
    model, images = networks.build(kind, option), networks.images(option, spaces[option.dims])
    split_exactly(completeness(trace(model, images)))


@few
@any_network
def test_the_parts_are_slopes_along_biases_and_input(option: networks.Options, kind: str, odd: bool) -> None:
    spaces = networks.ODD_SPACES if odd else networks.SPACES
    model, images = networks.build(kind, option), networks.images(option, spaces[option.dims])
    found = trace(model, images)
    split = completeness(found)
    assert found.index is not None
    torch.testing.assert_close(split.bias, share_of_biases(model, images, found.index), rtol=1e-5, atol=1e-7)
    measured = measure.measure(model, images)
    torch.testing.assert_close(split.input, measured.input_part, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(split.score, measured.score, rtol=1e-12, atol=0)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize(
    ("kind", "space"), [(networks.Decoder, (8, 6)), (networks.Decoder, (9, 7)), (networks.Tokens, (9,))]
)
def test_constants_of_every_kind(kind: type[nn.Module], space: tuple[int, ...], inplace: bool, frozen: bool) -> None:
    """Also where an in-place operation follows a view (a linear layer over positions, instance norm), where a constant
    is a Python number or is computed from parameters, and whether or not these are frozen.
    """
    option = networks.Options(dims=len(space), seed=16, inplace=inplace)
    model = networks.build(kind, option).requires_grad_(not frozen)
    split_exactly(completeness(trace(model, networks.images(option, space))))


def test_taps_survive_being_overwritten() -> None:
    """The same operations are found, with the same values and gradients, however the network stores its results."""
    for kind, taps, space in ((networks.Tokens, ["wide", "back"], (9,)), (networks.Decoder, ["norm", "mix"], (8, 6))):
        found = []
        for inplace in (False, True):
            option = networks.Options(dims=len(space), seed=16, inplace=inplace)
            found.append(trace(networks.build(kind, option), networks.images(option, space), taps=taps).taps)
        assert [tap.name for tap in found[0]] == [tap.name for tap in found[1]] == taps
        for left, right in zip(*found, strict=True):
            torch.testing.assert_close(left.activation, right.activation, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(left.gradient, right.gradient, rtol=1e-12, atol=1e-14)


@few
@any_network
def test_path_shares_are_those_of_a_walk(option: networks.Options, kind: str, odd: bool) -> None:
    model, images = networks.build(kind, option), networks.images(option)
    taps = measure.measure(model, images).of(nn.ReLU)
    assert [tap.path_share for tap in trace(model, images).taps] == [
        measure.path_share(model, images, tap) for tap in taps
    ]


@few
@any_network
def test_cut_taps_are_those_without_a_way_around(option: networks.Options, kind: str, odd: bool) -> None:
    model, images = networks.build(kind, option), networks.images(option)
    taps = measure.measure(model, images).of(nn.ReLU)
    assert [tap.is_cut for tap in trace(model, images).taps] == [measure.is_cut(model, images, tap) for tap in taps]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    """Both identities, and every bias site by itself against hooks that add zeros to each layer's output."""
    model, images = network(name), noise_images()
    found, measured = trace(model, images), measure.measure(model, images)
    split = completeness(found)
    split_exactly(split)
    assert [site.name for site in found.sites] == [measured.calls[at].name for at in measured.sites()]
    for site, at in zip(found.sites, measured.sites(), strict=True):
        call = measured.calls[at]
        assert call.shift is not None
        expected = (call.shift * call.gradient).flatten(1).sum(1)
        torch.testing.assert_close((site.shift * site.gradient).flatten(1).sum(1), expected, rtol=1e-8, atol=1e-9)
    assert found.index is not None
    slope = share_of_biases(model, images, found.index)
    torch.testing.assert_close(split.bias, slope, rtol=1e-4, atol=1e-4 * split.score.abs().max().item())
    # Leaving biases out would leave out a lot.
    assert (split.bias.abs() > 0.01 * split.score.abs()).all()


def test_cut_taps_of_vgg() -> None:
    found = trace(network("vgg11_bn"), noise_images())
    assert [tap.name for tap in found.taps] == [f"features.{at}" for at in (2, 6, 10, 13, 17, 20, 24, 27)]
    assert all(tap.is_cut for tap in found.taps)


@pytest.mark.slow
def test_cut_taps_of_resnet() -> None:
    model, images = network("resnet18"), noise_images()
    found = trace(model, images)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [tap.name for tap in found.taps] == [
        "relu",
        *(f"{block}.relu{call}" for block in blocks for call in ("", "#2")),
    ]
    # Each block has a way around its inner activation.
    assert {tap.path_share for tap in found.taps if not tap.is_cut} == {Fraction(1, 2)}
    cuts = {tap.name for tap in found.taps if tap.is_cut}
    assert cuts == {"relu", *(f"{block}.relu#2" for block in blocks)}
    taps = measure.measure(model, images).of(nn.ReLU)
    assert [tap.is_cut for tap in found.taps] == [measure.is_cut(model, images, tap) for tap in taps]


@pytest.mark.parametrize(
    ("block", "skip"),
    [("layer1.0", "maxpool"), ("layer2.0", "layer2.0.downsample.1"), ("layer4.0", "layer4.0.downsample.1")],
)
def test_what_bypasses_a_branch_is_the_skip_paths_share(block: str, skip: str) -> None:
    """The block returns relu(branch + skip): inside the branch, <gradient of that sum, skip> goes around."""
    model, images = network("resnet18"), noise_images()
    found, measured = trace(model, images), measure.measure(model, images)
    calls = {call.name: call for call in measured.calls}
    # bn2 returns the branch, to which the skip path is added: the gradient there is the sum's.
    share = (calls[f"{block}.bn2"].gradient * calls[skip].value).flatten(1).sum(1)
    tap = [each.name for each in found.taps].index(f"{block}.relu")
    bypass = completeness(found).bypass[:, tap]
    assert (bypass.abs() > 1e-3 * found.score.abs()).all()
    torch.testing.assert_close(bypass, share, rtol=1e-9, atol=0)


def clipped(kind: str, option: networks.Options) -> nn.Module:
    """With ReLU6 in place of every ReLU, and weights that drive activations beyond 6."""
    model = networks.build(kind, option)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(parent, name, nn.ReLU6(layer.inplace))
            elif isinstance(layer, tuple(networks.CONV.values())):
                with torch.no_grad():
                    layer.weight *= 3
    return model


def clipping(measured: measure.Measured, reached: list[bool] | None = None) -> Tensor:
    """sum of 6 * dS/d(out) over the outputs that ReLU6 holds at 6; `reached` picks calls."""
    total = torch.zeros_like(measured.score)
    for index, call in enumerate(measured.calls):
        if isinstance(call.layer, nn.ReLU6) and (reached is None or reached[index]):
            total += torch.where(call.value == 6, 6 * call.gradient, 0).flatten(1).sum(1)
    return total


def has_clipped(measured: measure.Measured) -> bool:
    """Whether some positions are at 6 and some are not, with a gradient there."""
    outputs = [call for call in measured.calls if isinstance(call.layer, nn.ReLU6)]
    return any(((call.value == 6) & (call.gradient != 0)).any() and (call.value < 6).any() for call in outputs)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", networks.BUILDERS)
def test_clipping_is_all_that_remains(kind: str, dims: int) -> None:
    option = networks.Options(dims=dims, seed=8, norm="affine", inplace=True)
    model, images = clipped(kind, option), networks.images(option) * 3
    split, measured = completeness(trace(model, images)), measure.measure(model, images)
    assert has_clipped(measured)
    assert (split.remainder.abs() > 1e-2).any()
    torch.testing.assert_close(split.remainder, clipping(measured), rtol=1e-9, atol=1e-9)


def test_behind_a_cut_tap_only_later_clipping_remains() -> None:
    option = networks.Options(seed=5, norm="affine")
    model, images = clipped("resnet", option), networks.images(option) * 3
    split, measured = completeness(trace(model, images)), measure.measure(model, images)
    taps = measured.of(nn.ReLU6)
    assert split.is_cut.tolist() == [True, False, True, False, True]
    for tap in split.is_cut.nonzero()[:, 0].tolist():
        reached = measure.behind(model, images, taps[tap])
        # The tap's own clipping lies in its activation.
        assert not reached[taps[tap]]
        torch.testing.assert_close(split.bypass[:, tap], clipping(measured, reached), rtol=1e-9, atol=1e-9)
    assert (split.bypass[:, 0].abs() > 1e-2).any()


def test_clipping_in_efficientnet_lite() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = networks.perturbed(timm.create_model("tf_efficientnet_lite0").double(), 4)
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        with torch.no_grad():
            for norm in norms:
                # Activations of about this standard deviation, some of them beyond 6.
                norm.weight.mul_(4)
                norm.momentum = 1.0
            model.train()(noise_images())
    model.eval()
    split, measured = completeness(trace(model, noise_images())), measure.measure(model, noise_images())
    assert sum(isinstance(call.layer, nn.ReLU6) for call in measured.calls) == 33
    assert has_clipped(measured)
    explained = clipping(measured)
    assert (explained.abs() > 0.01 * split.score.abs()).all()
    torch.testing.assert_close(split.remainder, explained, rtol=1e-8, atol=1e-9)


def test_clipping_in_the_bundled_network(lite0: Network, photographs: Path) -> None:
    """Real weights and a real photograph: the remainder that `icam explain` prints is ReLU6's."""
    images = lite0.preprocessing(read_image(photographs / "chelsea.png")).tensor.double()
    model = copy.deepcopy(lite0.model).double()
    split, measured = completeness(trace(model, images)), measure.measure(model, images)
    assert (split.remainder.abs() > 1).all()
    torch.testing.assert_close(split.remainder, clipping(measured), rtol=1e-9, atol=1e-9)
