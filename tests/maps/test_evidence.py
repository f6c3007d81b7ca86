"""Evidence, its saturation and its guard: numbers by hand, the slow twins, and Grad-CAM++ as others compute it."""

from __future__ import annotations

from fractions import Fraction

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from reference import evidence as reference
from reference import fusion, measure
from torch import Tensor, nn

from integrative_cam import explain
from integrative_cam._maps.evidence import FLOOR, evidence, evidence_and_sums, saturated_shift, saturation
from integrative_cam.recipe import PLAIN

GRAD_CAM_PLUS_PLUS = {
    "taps": "last",
    "readout": "exp",
    "aggregation": "channel",
    "negative_share": 0.0,
    "bias": "none",
    "weighting": "last",
    "signed": False,
    **PLAIN,
}


def row(*values: float | Fraction) -> Tensor:
    """One image, one channel, one spatial axis."""
    return torch.tensor([[[float(value) for value in values]]], dtype=torch.float64)


def one(value: float) -> Tensor:
    """The same rho for one image."""
    return torch.tensor([value], dtype=torch.float64)


# sum(A) = 6; with rho = 1 the denominators are 2 + 6|g| = 8, 8, 5.
ACTIVATION, GRADIENT = row(1, 2, 3), row(1, -1, 0.5)


def test_saturation_by_hand() -> None:
    denominator, clamped = saturation(ACTIVATION.sum(2), GRADIENT.abs(), one(1))
    assert denominator.tolist() == row(8, 8, 5).tolist()
    assert clamped.tolist() == [0]


def test_without_curvature_alpha_is_one_half() -> None:
    assert saturation(ACTIVATION.sum(2), GRADIENT.abs(), one(0))[0].unique().tolist() == [2]


@pytest.mark.parametrize(
    ("aggregation", "negative_share", "expected"),
    [
        ("position", 0, (Fraction(1, 8), 0, Fraction(3, 10))),
        ("position", 0.5, (Fraction(1, 8), Fraction(-1, 8), Fraction(3, 10))),
        ("position", 1, (Fraction(1, 8), Fraction(-1, 4), Fraction(3, 10))),
        # weights 1/8 + 1/10 = 9/40; 9/40 - 1/16 = 13/80; 9/40 - 1/8 = 1/10
        ("channel", 0, (Fraction(9, 40), Fraction(18, 40), Fraction(27, 40))),
        ("channel", 0.5, (Fraction(13, 80), Fraction(26, 80), Fraction(39, 80))),
        ("channel", 1, (Fraction(1, 10), Fraction(2, 10), Fraction(3, 10))),
        # weight (1/8 + 3/10) / 6 = 17/240
        ("active", 0, (Fraction(17, 240), Fraction(34, 240), Fraction(51, 240))),
    ],
)
def test_evidence_by_hand(aggregation: str, negative_share: float, expected: tuple[Fraction, ...]) -> None:
    found, clamped = evidence(ACTIVATION, GRADIENT, one(1), negative_share, aggregation)
    torch.testing.assert_close(found, row(*expected)[:, 0])
    assert clamped.tolist() == [0]


def test_the_guard_by_hand() -> None:
    # sum(A) = 2, rho = -1/2: 2 - |g| = 1, 3/2, 0. The first is at the floor, only the last below it.
    denominator, clamped = saturation(row(1, 1, 0).sum(2), row(1, 0.5, 2), one(-0.5))
    assert denominator.tolist() == row(1, 1.5, 1).tolist()
    assert clamped.tolist() == [1]
    # rho = -1: 2 - 6|g| = -4, -4, -1.
    denominator, clamped = saturation(ACTIVATION.sum(2), GRADIENT.abs(), one(-1))
    assert denominator.tolist() == row(1, 1, 1).tolist()
    assert clamped.tolist() == [3]
    assert FLOOR == 1


def test_each_image_has_its_own_rho() -> None:
    twice = torch.cat([ACTIVATION, ACTIVATION]), torch.cat([GRADIENT, GRADIENT])
    found, clamped = evidence(*twice, torch.tensor([1.0, -1.0]), 1, "position")
    torch.testing.assert_close(found[0], row(Fraction(1, 8), Fraction(-1, 4), Fraction(3, 10))[0, 0])
    assert found[1].tolist() == [1, -2, 1.5]
    assert clamped.tolist() == [0, 3]


def test_a_spiky_channel_does_not_own_the_map() -> None:
    # t = g sum(A): 1000 and 10, a hundredfold apart, become t / (2 + t).
    found, _ = evidence(row(1000, 0), row(1, 1), one(1), 0, "position")
    calm, _ = evidence(row(0, 10), row(1, 1), one(1), 0, "position")
    torch.testing.assert_close(found + calm, row(Fraction(1000, 1002), Fraction(10, 12))[:, 0])


def test_saturated_shift_by_hand() -> None:
    # Products 2, -1, 4 in the first channel and -3, 0, 1 in the second.
    shift = torch.tensor([[[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    gradient = torch.tensor([[[1.0, -0.5, 2.0], [-3.0, 0.0, 1.0]]], dtype=torch.float64)
    positive = row(Fraction(2, 8), 0, Fraction(4, 8) + Fraction(1, 3))[:, 0]
    against = row(Fraction(3, 5), Fraction(1, 3), 0)[:, 0]
    for same in (shift, shift[..., :1].expand(1, 2, 3)):
        found, mass, total = saturated_shift(gradient, same, one(1), 0)
        torch.testing.assert_close(found, positive)
        assert mass.tolist() == [11]
        assert total.tolist() == [3]
        torch.testing.assert_close(saturated_shift(gradient, same, one(1), 0.5)[0], positive - against / 2)
        assert saturated_shift(gradient, same, one(0), 1)[0].tolist() == [[-0.5, -0.5, 2.5]]


def test_saturated_shift_without_space_by_hand() -> None:
    shift, gradient = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[3.0, -1.0, 0.0]])
    found, mass, total = saturated_shift(gradient, shift, torch.ones(1), 1)
    torch.testing.assert_close(found, torch.tensor([6 / 8 - 1 / 3]))
    assert mass.tolist() == [7]
    assert total.tolist() == [5]


@st.composite
def feature_maps(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Activation (ReLU-like or signed), gradient and rho of any sign, in 1 to 3 dimensions."""
    shape = draw(st.lists(st.integers(1, 4), min_size=3, max_size=5).filter(lambda sizes: sizes[0] < 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    activation, gradient = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        activation, gradient = activation.relu(), gradient * (activation > 0)
    rho = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return activation, gradient, rho * draw(st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e6]))


@networks.examples(40)
@given(feature_maps(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from(["position", "channel", "active"]))
def test_twins_of_evidence(maps: tuple[Tensor, Tensor, Tensor], negative_share: float, aggregation: str) -> None:
    activation, gradient, rho = maps
    found, clamped = evidence(activation, gradient, rho, negative_share, aggregation)
    for sample in range(len(rho)):
        expected, touched = reference.evidence(
            activation[sample].numpy(), gradient[sample].numpy(), rho[sample].item(), negative_share, aggregation
        )
        np.testing.assert_allclose(found[sample], expected, rtol=1e-10, atol=1e-12)
        assert clamped[sample] == touched


@networks.examples(40)
@given(feature_maps(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from(["position", "channel", "active"]))
def test_one_walk_finds_evidence_and_sums(
    maps: tuple[Tensor, Tensor, Tensor], negative_share: float, aggregation: str
) -> None:
    activation, gradient, rho = maps
    expected = evidence(*maps, negative_share, aggregation)
    for is_positive in {False, bool((activation >= 0).all())}:
        found, clamped, sums = evidence_and_sums(*maps, negative_share, aggregation, is_positive)
        torch.testing.assert_close(found, expected[0], rtol=1e-10, atol=1e-12)
        assert clamped.tolist() == expected[1].tolist()
        for sample in range(len(rho)):
            pairs = list(zip(activation[sample].flatten().tolist(), gradient[sample].flatten().tolist(), strict=True))
            assert sums.product[sample].item() == pytest.approx(sum(a * g for a, g in pairs), rel=1e-9, abs=1e-12)
            assert sums.magnitude[sample].item() == pytest.approx(sum(abs(a * g) for a, g in pairs), rel=1e-9)
            assert sums.gradient[sample].item() == pytest.approx(sum(abs(g) for _, g in pairs) / len(pairs), rel=1e-9)
            assert sums.activation[sample].item() == pytest.approx(sum(abs(a) for a, _ in pairs) / len(pairs), rel=1e-9)


@networks.examples(40)
@given(feature_maps(), st.floats(-30, 30))
def test_the_exponential_is_grad_cam_plus_plus(maps: tuple[Tensor, Tensor, Tensor], score: float) -> None:
    activation, gradient = maps[0].relu(), maps[1]
    found, clamped = evidence(activation, gradient, torch.ones(len(activation)), 0, "channel")
    assert clamped.sum() == 0
    for sample in range(len(activation)):
        # The paper's weights carry f'(S) = exp(S), which cancels when the map is normalised.
        expected = reference.grad_cam_plus_plus(activation[sample].numpy(), gradient[sample].numpy(), score)
        np.testing.assert_allclose(found[sample], expected * np.exp(-score), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "resnet"])
def test_explained_as_grad_cam_plus_plus(kind: str, dims: int) -> None:
    option = networks.Options(dims=dims, seed=8, norm="affine", stride=2)
    model, images = networks.build(kind, option), networks.images(option)
    found = explain(model, images, **GRAD_CAM_PLUS_PLUS)
    measured = measure.measure(model, images)
    last = measured.calls[measured.of(nn.ReLU)[-1]]
    for sample in range(len(images)):
        expected = reference.grad_cam_plus_plus(
            last.value[sample].numpy(), last.gradient[sample].numpy(), measured.score[sample].item()
        )
        fused = fusion.fuse([expected], [1.0], tuple(images.shape[2:]), "sum")
        np.testing.assert_allclose(found.map[sample], fused, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "vgg", "resnet"])
@pytest.mark.parametrize(("scale", "least"), [(10.0, 0.999), (1e4, None)])
def test_explained_as_pytorch_grad_cam_does(kind: str, scale: float, least: float | None) -> None:
    """Its alpha carries 1e-6 beside g^2: with gradients this large it drops out; otherwise it costs a little."""
    option = networks.Options(seed=12)
    model, images = networks.build(kind, option), networks.images(option, (16, 12))
    layers = list(model.modules())
    with torch.no_grad():
        next(layer for layer in reversed(layers) if isinstance(layer, nn.Linear)).weight *= scale
    spatial = [layer for layer in layers if isinstance(layer, nn.ReLU)][: -1 if kind == "vgg" else None]
    assert not any(layer.inplace for layer in spatial)
    explanation = explain(model, images, **GRAD_CAM_PLUS_PLUS)
    found = explanation.map.flatten(1)
    # They subtract the minimum; we never do.
    least_of = found.amin(1, keepdim=True)
    ours = (found - least_of) / (found.amax(1, keepdim=True) - least_of)
    targets = [ClassifierOutputTarget(int(name)) for name in explanation.target_names]
    theirs = GradCAMPlusPlus(model, [spatial[-1]])(images, targets)
    peer = torch.from_numpy(theirs).double().flatten(1)
    if least is None:
        torch.testing.assert_close(ours, peer, rtol=0, atol=1e-5)
    else:
        for left, right in zip(ours, peer, strict=True):
            assert torch.corrcoef(torch.stack([left, right]))[0, 1] > least
