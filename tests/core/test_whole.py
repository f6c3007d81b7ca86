"""The entire walk on tiny networks, against the twin that is fed by hooks of its own instead of the library's trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import evidence, fusion, measure, whole
from reference import readout as reference
from torch import Tensor, nn

from integrative_cam import Explanation, Recipe, explain, explain_trace, trace
from integrative_cam.explanation import Layer
from integrative_cam.recipe import PLAIN

pytestmark = pytest.mark.usefixtures("laid_as_in_0_1_0")  # the reference lays grids evenly


def falling(logits: Sequence[float], target: int) -> reference.Derivatives:
    """exp(-S)."""
    value = math.exp(-logits[target])
    return -value, value, -value


def slow(logits: Sequence[float], target: int) -> reference.Derivatives:
    """exp(S / 5)."""
    value = math.exp(logits[target] / 5)
    return value / 5, value / 25, value / 125


CALLABLES: dict[Callable[[Tensor], Tensor], reference.Readout] = {
    lambda s: (-s).exp(): falling,
    lambda s: (s / 5).exp(): slow,
}
READOUTS: dict[Any, reference.Readout] = {**reference.NAMED, **CALLABLES}

RECIPES = [
    {},
    {"score": "logit", "regions": None, "centred": False},
    *({"regions": regions} for regions in (None, 1, 3)),
    *({"regions": 3, "readout": readout} for readout in READOUTS),
    *({"regions": 3, "centred": False, "bias": bias} for bias in ("complete", "residual", "none")),
    {"centred": False},
    {"regions": 2, "aggregation": "channel", "score": "logit"},
    {"regions": 2, "weighting": "product", "negative_share": 0.5, "gamma": 0.5},
    *({"readout": readout} for readout in READOUTS),
    *({"readout": readout, "bias": "complete"} for readout in READOUTS),
    *({"readout": readout, "bias": "residual"} for readout in READOUTS),
    *(
        {"aggregation": "channel", "negative_share": negative_share, "bias": "none"}
        for negative_share in (0.0, 0.3, 1.0)
    ),
    *({"negative_share": negative_share} for negative_share in (0.0, 1.0)),
    {"negative_share": 0.0, "bias": "complete", "signed": False},
    {"bias": "complete", "readout": "identity", "negative_share": 1.0},
    {"bias": "residual", "signed": False},
    {"bias": "none", "signed": False, "weight_exponent": 1.0},
    *({"bias_share": share} for share in (0.0, 0.9)),
    *({"weighting": weighting} for weighting in ("product", "average", "geometric", "uniform", "last")),
    *({"weighting": weighting, "weight_exponent": 2.0} for weighting in ("joint", "product", "average", "geometric")),
    {"weight_exponent": 1.0},
    *(
        {"stride_exponent": stride_exponent, "stage_share": share}
        for stride_exponent in (0.0, 1.0)
        for share in (0.0, 1.0)
    ),
    *({"gamma": gamma} for gamma in (1.0, 2.0)),
    *({"fusion": fused} for fused in ("max", "geometric", "product")),
    *({"fusion": fused, "bias": "none", "negative_share": 0.0} for fused in ("max", "geometric", "product")),
    {"readout": "softmax", "aggregation": "channel", "weighting": "geometric", "fusion": "max", "bias": "none"},
]


def ingredients(recipe: dict[str, Any]) -> whole.Ingredients:
    """The same recipe for the twin."""
    return replace(whole.Ingredients(), **{**recipe, "readout": READOUTS[recipe.get("readout", "exp")]})


def named(recipe: dict[str, Any]) -> str:
    """For the test's name."""
    return " ".join(READOUTS[each].__name__ if callable(each) else str(each) for each in recipe.values()) or "default"


@dataclass(frozen=True)
class Case:
    """A network, images, and what hooks found in it."""

    model: nn.Module
    images: Tensor
    target: Tensor | None
    of_score: dict[str, list[whole.Sample]]

    def samples(self, recipe: dict[str, Any]) -> list[whole.Sample]:
        """Of the score that a recipe explains."""
        return self.of_score[recipe.get("score", "contrast")]


def case(kind: str, option: networks.Options, space: tuple[int, ...] | None = None, target: int | None = None) -> Case:
    """Build and measure."""
    model, images = networks.build(kind, option), networks.images(option, space)
    chosen = None if target is None else torch.tensor([target, (target + 1) % option.classes])
    of_score = {}
    for score in ("logit", "contrast"):
        measured = measure.measure(model, images, chosen, contrast=score == "contrast")
        of_score[score] = measure.samples(model, images, measured, measured.of(nn.ReLU))
    return Case(model, images, chosen, of_score)


def agree(found: Explanation, samples: list[whole.Sample], recipe: dict[str, Any]) -> None:
    """Every number of the explanation is the twin's."""
    walked = [whole.walk(sample, ingredients(recipe)) for sample in samples]
    for index, (sample, expected) in enumerate(zip(samples, walked, strict=True)):
        close(found.score[index], sample.score)
        assert found.target is not None
        assert found.target[index] == sample.target
        assert found.clamped[index] == expected.clamped
        assert len(found.layers) == len(expected.layer_maps)
        for at, layer in enumerate(found.layers):
            close(layer.map[index], expected.layer_maps[at])
            close(layer.bias[index], expected.layer_biases[at])
            close(scores_of(layer, index), [row[at] for row in expected.scores])
        close(found.weights[index], expected.weights)
        assert len(found.bias_layers) == len(expected.bias_layer_maps)
        for at, bias_layer in enumerate(found.bias_layers):
            close(bias_layer.map[index], expected.bias_layer_maps[at])
            close(bias_layer.weight[index], expected.bias_layer_weights[at])
        # A power below 1 of a map's zeros magnifies what rounding leaves there.
        np.testing.assert_allclose(found.map[index], expected.map, rtol=1e-7, atol=1e-7)
        split = whole.split(sample)
        close(found.completeness.bias[index], split.bias)
        close(found.completeness.activation[index], split.activation)
        close(found.completeness.tap_bias[index], split.tap_bias)


def scores_of(layer: Layer, index: int) -> list[float]:
    """(G, C, J) of one image."""
    return [score[index].item() for score in (layer.gradient_score, layer.activation_score, layer.joint_score)]


def close(found: Any, expected: Any) -> None:
    """Equal to float64's rounding."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-8, atol=1e-11)


CASES = {
    "plain 1-D": lambda: case("plain", networks.Options(dims=1, seed=1, groups=2)),
    "resnet 2-D": lambda: case("resnet", networks.Options(dims=2, seed=2, norm="affine", stride=2)),
    "inception 2-D": lambda: case("inception", networks.Options(dims=2, seed=3, norm="plain", dilation=2), target=1),
    "vgg 3-D": lambda: case("vgg", networks.Options(dims=3, seed=7, norm="affine", bias=False), target=0),
}


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest) -> Case:
    """One of the cases, measured once."""
    return CASES[request.param]()


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_recipes(made: Case, recipe: dict[str, Any]) -> None:
    agree(explain(made.model, made.images, made.target, **recipe), made.samples(recipe), recipe)


recipes = st.fixed_dictionaries(
    {
        "score": st.sampled_from(["contrast", "logit"]),
        "regions": st.sampled_from([None, 2, 3, 14]),
        "centred": st.booleans(),
        "readout": st.sampled_from(["exp", "identity", "softplus", "softmax", "log_softmax", "sigmoid"]),
        "aggregation": st.sampled_from(["position", "channel"]),
        "negative_share": st.sampled_from([0.0, 0.5, 1.0]),
        "bias": st.sampled_from(["layers", "complete", "residual", "none"]),
        "bias_share": st.sampled_from([0.2, 0.5]),
        "weighting": st.sampled_from(["joint", "product", "average", "geometric", "uniform", "last"]),
        "weight_exponent": st.sampled_from([0.5, 1.0]),
        "stride_exponent": st.sampled_from([0.0, 4.0]),
        "stage_share": st.sampled_from([0.0, 0.5]),
        "signed": st.booleans(),
        "fusion": st.sampled_from(["sum", "max"]),
        "gamma": st.sampled_from([0.75, 1.0]),
    }
)


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("kind", networks.BUILDERS)
@networks.examples(15)
@given(option=networks.options(), recipe=recipes, odd=st.booleans(), target=st.none() | st.integers(0, 3))
def test_any_network_and_recipe(
    kind: str, option: networks.Options, recipe: dict[str, Any], odd: bool, target: int | None
) -> None:
    made = case(kind, option, networks.ODD_SPACES[option.dims] if odd else None, target)
    found = explain(made.model, made.images, made.target, **recipe)
    agree(found, made.samples(recipe), recipe)
    assert found.map.shape == (2, *made.images.shape[2:])


@pytest.mark.filterwarnings("ignore:The map of image")
def test_one_trace_serves_every_recipe(made: Case) -> None:
    once = trace(made.model, made.images, made.target, contrast=True)
    before = [(tap.activation.clone(), tap.gradient.clone()) for tap in once.taps]
    for recipe in ({}, {"bias": "complete"}, {"readout": next(iter(CALLABLES))}, {"fusion": "geometric"}):
        again = explain(made.model, made.images, made.target, **recipe)
        assert torch.equal(explain_trace(once, Recipe(**recipe)).map, again.map)
    for tap, (activation, gradient) in zip(once.taps, before, strict=True):
        assert torch.equal(tap.activation, activation)
        assert torch.equal(tap.gradient, gradient)


@pytest.mark.parametrize("taps", ["last", "*.1", "stages"])
def test_other_taps_meet_the_same_formulas(taps: str) -> None:
    option = networks.Options(seed=9, norm="affine", stride=2)
    model, images = networks.build("vgg", option), networks.images(option, (16, 12))
    measured = measure.measure(model, images, contrast=True)
    relus, norms = measured.of(nn.ReLU), measured.of(measure.NORMS)
    # Sizes 16x12, then 4x3 twice.
    chosen = {"last": relus[-1:], "*.1": norms, "stages": [relus[0], relus[2]]}[taps]
    assert len(relus) == len(norms) == 3
    samples = measure.samples(model, images, measured, chosen)
    agree(explain(model, images, taps=taps, bias="complete"), samples, {"bias": "complete"})


def test_in_place_activations_change_nothing() -> None:
    for kind in networks.BUILDERS:
        option = networks.Options(seed=12, norm="affine", stride=2)
        images = networks.images(option)
        maps = [
            explain(networks.build(kind, replace(option, inplace=inplace)), images, bias="complete").map
            for inplace in (False, True)
        ]
        assert torch.equal(*maps)


def test_float32_agrees_to_its_rounding(made: Case) -> None:
    found = explain(copy.deepcopy(made.model).float(), made.images.float(), made.target)
    assert found.map.dtype == torch.float32
    expected = explain(made.model, made.images, made.target).map.float()
    torch.testing.assert_close(found.map, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", ["layers", "complete", "residual", "none"])
def test_a_falling_readout_explains_the_opposite_score(bias: str) -> None:
    """f(S) = exp(-S) is exp of the negated network's score."""
    option = networks.Options(seed=13, norm="affine", stride=2)
    model, opposite, images = (
        networks.build("resnet", option),
        networks.build("resnet", option),
        networks.images(option),
    )
    last = next(layer for layer in reversed(list(opposite.modules())) if isinstance(layer, nn.Linear))
    with torch.no_grad():
        last.weight.neg_()
        last.bias.neg_()
    found = explain(model, images, 2, score="logit", readout=lambda score: (-score).exp(), bias=bias)
    expected = explain(opposite, images, 2, score="logit", readout="exp", bias=bias)
    torch.testing.assert_close(found.map, expected.map, rtol=1e-10, atol=1e-12)
    for layer, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(layer.map, other.map, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.weights, expected.weights)


def test_a_single_layer_by_hand() -> None:
    """Two 1x1 convolutions of ones: everything as fractions.

    x = 1, 3; A = relu(x + 1) = 2, 4; S = mean(A) + 1/2 = 7/2; g = 1/2 each, sum(A) = 6, alpha = 1/(2 + 3) = 1/5.
    """
    model = nn.Sequential(
        nn.Conv1d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(1, 1)
    ).double()
    with torch.no_grad():
        for layer, bias in ((model[0], 1.0), (model[4], 0.5)):
            layer.weight.fill_(1)
            layer.bias.fill_(bias)
    plain = Recipe(centred=False)
    found = explain(model.eval(), torch.tensor([[[1.0, 3.0]]], dtype=torch.float64), recipe=plain)
    (layer,) = found.layers
    close(found.score, [3.5])
    close(layer.map, [[0.2, 0.4]])
    close(layer.weight, [1])
    # The convolution's bias 1 pulls with 1/2 at each position: t = 1/2, sum 1: 1/6 each; mass 1, all of the share.
    (bias_layer,) = found.bias_layers
    close(bias_layer.map, [[1 / 6, 1 / 6]])
    close(bias_layer.weight, [0.2])
    # 0.8 * (1/2, 1) + 0.2 * (1, 1) = 0.6, 1.
    close(found.map, [[0.6, 1]])
    # S = <dS/dx, x> + biases = 2 + (1 + 1/2); at the tap 3 + 1/2.
    close(found.completeness.input, [2])
    close(found.completeness.bias, [1.5])
    close(found.completeness.activation, [[3]])
    close(found.completeness.tap_bias, [[0.5]])
    # The site behind the tap has no space: 1/2 saturates to (1/2)/(2 + 1/2) = 1/5, half to each position.
    complete = explain(model, torch.tensor([[[1.0, 3.0]]], dtype=torch.float64), recipe=plain, bias="complete")
    close(complete.layers[0].map, [[0.3, 0.5]])
    close(complete.map, [[0.6, 1]])


def test_grad_cam_plus_plus_on_several_layers_is_their_average() -> None:
    """Uniform weights over channel evidence: each layer by its own maximum, resized, averaged."""
    option = networks.Options(seed=14, norm="affine", stride=2)
    model, images = networks.build("resnet", option), networks.images(option)
    measured = measure.measure(model, images)
    relus = measured.of(nn.ReLU)
    found = explain(
        model,
        images,
        aggregation="channel",
        negative_share=0.0,
        bias="none",
        weighting="uniform",
        signed=False,
        **PLAIN,
    )
    for sample in range(len(images)):
        score = measured.score[sample].item()
        maps = []
        for at in relus:
            call = measured.calls[at]
            maps.append(evidence.grad_cam_plus_plus(call.value[sample].numpy(), call.gradient[sample].numpy(), score))
        fused = fusion.fuse(maps, [1 / len(relus)] * len(relus), tuple(images.shape[2:]), "sum")
        close(found.map[sample], fused)
