"""Scores without a unit of their own: the same map in any unit (method.md, Units)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
from networks import Options
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, Recipe, explain, explain_trace, targets, trace
from integrative_cam._call import EVIDENCE

torch.manual_seed(0)
BODY = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU()
).eval()
HEAD = nn.Linear(12, 4)
IMAGES = torch.randn(2, 3, 12, 12)


class Scaled(nn.Module):
    """The outputs times a factor, of images or of a vector."""

    def __init__(self, factor: float, dense: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.factor, self.dense = BODY, HEAD, factor, dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = self.head(x.movedim(1, -1)).movedim(-1, 1) if self.dense else self.head(x.mean((2, 3)))
        return self.factor * x


def correlation(found: Tensor, expected: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([found.double().flatten(), expected.double().flatten()]))[0, 1])


def own(output: Tensor) -> Tensor:
    return output[1] - output[2]


WITHOUT_UNIT: dict[str, Callable[[Any], Tensor]] = {
    "value": targets.value(1),
    "lower value": targets.value(1, -1),
    "similarity": targets.similarity(torch.tensor([1.0, -2.0, 0.5, 0.1])),
    "own": own,
    "sum": targets.total([targets.value(0), 2]),
    "contrast": targets.contrast(own, 3),
}


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e4, 1e9])
@pytest.mark.parametrize("name", WITHOUT_UNIT)
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(bias="complete", readout="softplus")], ids=["default", "softplus"])
def test_the_map_does_not_depend_on_the_unit(name: str, factor: float, recipe: Recipe) -> None:
    target = WITHOUT_UNIT[name]
    expected = explain(Scaled(1.0), IMAGES, target, recipe)
    cam = IntegrativeCAM(Scaled(factor), recipe)
    for _ in range(2):  # planned, and on the plan
        found = cam(IMAGES, target)
        torch.testing.assert_close(found.map, expected.map, atol=2e-4, rtol=0)
        torch.testing.assert_close(found.weights, expected.weights, atol=1e-5, rtol=1e-4)
        assert (found.map.amax((1, 2)) == expected.map.amax((1, 2))).all()
    if name == "value":
        torch.testing.assert_close(found.score, expected.score * factor)


@pytest.mark.parametrize("factor", [1e-6, 1e9])
def test_regions_have_the_same_map_in_any_unit(factor: float) -> None:
    target = targets.region((1, 0, 4, 3), 2)
    found, expected = (explain(Scaled(of, dense=True), IMAGES, target) for of in (factor, 1.0))
    torch.testing.assert_close(found.map, expected.map, atol=2e-4, rtol=0)


def test_the_unit_by_hand() -> None:
    """A tenth of what |gradient * activation| sum up to at the last tap; the read-out's rho is divided by it."""
    traced = trace(Scaled(7.0), IMAGES, own)
    tap = traced.taps[-1]
    unit = (tap.gradient * tap.activation).abs().flatten(1).sum(1) / EVIDENCE
    torch.testing.assert_close(traced.unit, unit)
    t = (tap.gradient.abs() * tap.activation.sum((2, 3), keepdim=True)) / unit[:, None, None, None]
    alpha = 1 / (2 + t)
    by_hand = (alpha * (tap.gradient.relu() - 0.5 * (-tap.gradient).relu()) * tap.activation).sum(1)
    torch.testing.assert_close(
        explain_trace(traced, Recipe.plain(bias="none", negative_share=0.5)).layers[-1].map, by_hand
    )


def test_each_image_has_the_unit_of_its_own_target() -> None:
    asked = [own, 2]
    found = trace(Scaled(3.0), IMAGES, asked)
    assert found.unit is not None
    assert found.unit[1] == 1
    torch.testing.assert_close(found.unit[:1], trace(Scaled(3.0), IMAGES[:1], own).unit)
    alone = explain(Scaled(3.0), IMAGES[1:], 2)
    torch.testing.assert_close(explain(Scaled(3.0), IMAGES, asked).map[1:], alone.map)


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize(
    "target",
    [
        1,
        targets.contrast(1, 2),
        targets.contrast(1, "rest"),
        targets.total([1, 2]),
        targets.log_odds(1),
        targets.part(0, 1),
    ],
    ids=["class", "contrast", "rest", "total", "log-odds", "part"],
)
def test_logits_and_probabilities_are_explained_as_they_are(target: Any) -> None:
    class Net(Scaled):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            name = getattr(target, "__name__", "")
            return (found,) if name.endswith("of 0") else found.sigmoid() if "odds" in name else found

    assert trace(Net(1.0), IMAGES, target).unit is None


def test_a_target_of_logits_can_say_so() -> None:
    def logit(output: Tensor) -> Tensor:
        return output[1]

    logit.has_unit = True  # type: ignore[attr-defined]
    torch.testing.assert_close(
        explain(Scaled(50.0), IMAGES, logit).map, explain(Scaled(50.0), IMAGES, 1, score="logit").map
    )


@pytest.mark.parametrize("kind", ["plain", "resnet"])
def test_a_score_of_any_size_has_a_map(kind: str) -> None:
    """Saturated evidence is small beside a large score, and is no rounding for that."""
    option = Options(seed=5, norm="affine")
    model, images = networks.build(kind, option).float(), networks.images(option).float()
    scaled = nn.Sequential(model, Factor(1e12))
    found = explain(scaled, images, 1)
    assert found.score.abs().min() > 1e9
    assert found.map.amax((1, 2)).tolist() == [1.0] * len(images)
    exact = explain(scaled.double(), images.double(), 1)
    assert correlation(found.map, exact.map) > 0.98  # every channel counts alike, those of rounding too


class Factor(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def rewritten(kind: str) -> tuple[nn.Module, nn.Module]:
    """A network, and one of the same function: its batch norm folded, activations doubled, or a convolution split."""
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
    (
        nn.init.uniform_(norm.running_mean),
        nn.init.uniform_(norm.running_var, 0.5, 2),
        nn.init.uniform_(norm.weight, -1, 1),
    )
    nn.init.uniform_(norm.bias)
    second, head = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)
    tail = (nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model = nn.Sequential(conv, norm, *tail).eval().double()
    if kind == "folded":
        return model, nn.Sequential(nn.utils.fuse_conv_bn_eval(conv, norm), *tail)
    if kind == "doubled":
        doubled = nn.Conv2d(8, 6, 3).double()
        doubled.weight, doubled.bias = nn.Parameter(second.weight / 2), second.bias
        return model, nn.Sequential(conv, norm, nn.ReLU(), Factor(2.0), doubled, *tail[2:])

    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = nn.functional.conv2d(x[:, :3], second.weight[:, :3], second.bias)
            return first + nn.functional.conv2d(x[:, 3:], second.weight[:, 3:])

    return model, nn.Sequential(conv, norm, nn.ReLU(), Split(), *tail[2:])


@pytest.mark.parametrize("kind", ["folded", "doubled", "split"])
def test_networks_of_the_same_function_have_the_same_map(kind: str) -> None:
    images = torch.randn(2, 3, 12, 12, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found, expected = (explain(model, images, 1).map for model in rewritten(kind))
    assert correlation(found, expected) > 0.9995
