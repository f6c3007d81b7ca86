"""Recipes are data; a wrong ingredient is named at once."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import nn

from integrative_cam import IntegrativeCAM, Recipe, RecipeError, explain, explain_trace, trace
from integrative_cam.recipe import PLAIN

torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
).eval()
IMAGES = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("ingredients", "message"),
    [
        ({"readout": "expp"}, "readout must be one of exp, identity,.*callable, but got 'expp'. Did you mean 'exp'"),
        ({"aggregation": "channels"}, "aggregation must be one of position, channel, active, but got 'channels'"),
        ({"bias": "full"}, "bias must be one of complete, residual, layers, none"),
        ({"weighting": "JOINT"}, "but got 'JOINT'. Did you mean 'joint'"),
        ({"weighting": "jont"}, "weighting must be one of .* Did you mean 'joint'"),
        ({"fusion": "mean"}, "fusion must be one of sum, max, geometric, product"),
        ({"negative": 1.5}, "negative must be between 0 and 1, but got 1.5"),
        ({"negative": float("nan")}, "negative must be between 0 and 1"),
        ({"bias_share": 1.0}, "bias_share must be at least 0 and below 1"),
        ({"temper": 0.0}, "temper must be above 0"),
        ({"fine": -1.0}, "fine must be at least 0"),
        ({"stage_share": 1.1}, "stage_share must be between 0 and 1"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"layers": "all"}, "unknown ingredient layers; there are taps, readout"),
        ({"method": "gradcam"}, r"Other methods are called by name: method\('gradcam'\)"),
        ({"recipe": "gradcam"}, r"recipe must be a Recipe, such as method\('gradcam'\).recipe, but got 'gradcam'"),
    ],
)  # fmt: skip
def test_errors(ingredients: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        IntegrativeCAM(MODEL, **ingredients)


def test_ingredients_change_a_given_recipe() -> None:
    recipe = Recipe(bias="none", temper=1.0)
    cam = IntegrativeCAM(MODEL, recipe, negative=0.0)
    assert cam.recipe == Recipe(bias="none", temper=1.0, negative=0.0)
    assert recipe == Recipe(bias="none", temper=1.0)
    with pytest.raises(FrozenInstanceError):
        recipe.bias = "layers"  # type: ignore[misc]


def test_ingredients_share_one_trace() -> None:
    """A trace holds all that other ingredients need; the network does not run again."""
    found = trace(MODEL, IMAGES, target=1)
    for recipe in (Recipe(), Recipe(bias="none"), Recipe(readout="softmax", fusion="max"), Recipe(weighting="last")):
        assert torch.equal(explain_trace(found, recipe).map, explain(MODEL, IMAGES, 1, recipe).map)


def test_softmax_readout_needs_a_class() -> None:
    with pytest.raises(RecipeError, match="readout='softmax' needs a class index as target"):
        explain(MODEL, IMAGES, lambda output: output[0] - output[1], readout="softmax")


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (lambda scores: scores.joint[:, :1], r"shape \(batch, taps\) = \(2, 2\), but gave shape \(2, 1\)"),
        (lambda scores: 1.0, "but gave float"),
        (lambda scores: -scores.joint, "finite weights >= 0"),
        (lambda scores: scores.joint * float("nan"), "finite weights >= 0"),
    ],
)
def test_weighting_callables_are_checked(weighting: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        explain(MODEL, IMAGES, weighting=weighting)


def test_weighting_callable_gets_the_scores() -> None:
    found = explain(MODEL, IMAGES, weighting=lambda scores: scores.gradient, **PLAIN)
    expected = torch.stack([layer.gradient_score for layer in found.layers], 1)
    torch.testing.assert_close(found.weights, expected)


def test_description_holds_plain_values_only() -> None:
    described = Recipe(readout=torch.tanh, taps=("last",), weighting=lambda scores: scores.joint).described()
    assert described["readout"] == "tanh"
    assert described["taps"] == ("last",)
    assert "lambda" in described["weighting"]
