"""Recipes are data; a wrong ingredient is named at once."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import nn

from integrative_cam import IntegrativeCAM, LayerScores, Recipe, explain, explain_trace, get_method, trace
from integrative_cam.errors import RecipeError
from integrative_cam.recipe import DEPRECATED, PLAIN, RENAMED
from integrative_cam.storage import recipe_of

torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
).eval()
IMAGES = torch.randn(2, 3, 8, 8)
RENAMED_BACK = {new: old for old, new in RENAMED.items()}


@pytest.mark.parametrize(
    ("ingredients", "message"),
    [
        ({"readout": "expp"}, "readout must be one of exp, identity,.*callable, but got 'expp'. Did you mean 'exp'"),
        ({"aggregation": "channels"}, "aggregation must be one of position, channel, active, but got 'channels'"),
        ({"bias": "full"}, "bias must be one of complete, residual, layers, none"),
        ({"weighting": "JOINT"}, "but got 'JOINT'. Did you mean 'joint'"),
        ({"weighting": "jont"}, "weighting must be one of .* Did you mean 'joint'"),
        ({"fusion": "mean"}, "fusion must be one of sum, max, geometric, product"),
        ({"negative_share": 1.5}, "negative_share must be between 0 and 1, but got 1.5"),
        ({"negative_share": float("nan")}, "negative_share must be between 0 and 1"),
        ({"bias_share": 1.0}, "bias_share must be at least 0 and below 1"),
        ({"weight_exponent": 0.0}, "weight_exponent must be above 0"),
        ({"stride_exponent": -1.0}, "stride_exponent must be at least 0"),
        ({"stage_share": 1.1}, "stage_share must be between 0 and 1"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"layers": "all"}, "unknown ingredient layers; there are taps, score, readout"),
        ({"method": "gradcam"}, r"Other methods are called by name: get_method\('gradcam'\)"),
        ({"recipe": "gradcam"}, r"recipe must be a Recipe, such as get_method\('gradcam'\).recipe, but got 'gradcam'"),
    ],
)  # fmt: skip
def test_errors(ingredients: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        IntegrativeCAM(MODEL, **ingredients)


def test_ingredients_change_a_given_recipe() -> None:
    recipe = Recipe(bias="none", weight_exponent=1.0)
    cam = IntegrativeCAM(MODEL, recipe, negative_share=0.0)
    assert cam.recipe == Recipe(bias="none", weight_exponent=1.0, negative_share=0.0)
    assert recipe == Recipe(bias="none", weight_exponent=1.0)
    with pytest.raises(FrozenInstanceError):
        recipe.bias = "layers"  # type: ignore[misc]


def test_ingredients_share_one_trace() -> None:
    """A trace holds all that other ingredients need; the network does not run again."""
    found = trace(MODEL, IMAGES, target=1, contrast=True)
    others = Recipe(regions=2), Recipe(bias="none"), Recipe(readout="softmax", fusion="max"), Recipe(weighting="last")
    for recipe in (Recipe(), *others):
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


OLD_NAMES = {"negative": 0.25, "temper": 1.0, "branch": 2.0, "fine": 0.5}
PRESENT = Recipe(negative_share=0.25, weight_exponent=1.0, path_exponent=2.0, stride_exponent=0.5)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_names_of_the_first_release(old: str, new: str) -> None:
    """They work wherever ingredients are given or read, with a warning at the line that uses them."""
    value = OLD_NAMES[old]
    recipe = Recipe(**{new: value})
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        recipes = [
            Recipe(**{old: value}),
            replace(Recipe(bias="none"), **{old: value}, bias="layers"),
            IntegrativeCAM(MODEL, **{old: value}).recipe,
            explain(MODEL, IMAGES, **{old: value}).recipe,
        ]
        assert getattr(recipe, old) == value
    assert recipes == [recipe] * 4
    assert [(warning.category, warning.filename) for warning in issued] == [(DeprecationWarning, __file__)] * 5
    assert all(f"{old} is now called {new}" in str(warning.message) for warning in issued)


def test_a_description_of_the_first_release_is_read_without_a_warning() -> None:
    described = {RENAMED_BACK.get(name, name): value for name, value in PRESENT.described().items()}
    assert OLD_NAMES.keys() <= described.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recipe_of(described) == PRESENT


def test_unknown_attributes_stay_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tempers'"):
        Recipe().tempers  # type: ignore[attr-defined]  # noqa: B018
    assert copy.deepcopy(PRESENT) == pickle.loads(pickle.dumps(PRESENT)) == PRESENT


VALUES: dict[str, Any] = {
    "aggregation": "channel",
    "centred": False,
    "bias_share": 0.1,
    "path_exponent": 1.0,
    "stride_exponent": 1.0,
    "stage_share": 0.25,
    "signed": False,
    "fusion": "max",
}


@pytest.mark.parametrize("name", DEPRECATED)
def test_ingredients_of_named_methods_warn_when_given_by_hand(name: str) -> None:
    """They still work; a method's own recipe and a change of another field of it are silent."""
    given = {name: VALUES[name]}
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        recipes = [Recipe(**given), Recipe.plain(**given), IntegrativeCAM(MODEL, **given).recipe]
    assert [getattr(recipe, name) for recipe in recipes] == [VALUES[name]] * 3
    texts = [str(warning.message) for warning in issued if warning.category is DeprecationWarning]
    assert [warning.filename for warning in issued] == [__file__] * 3
    assert all(text.startswith(f"the ingredient {name} goes with the next release: ") for text in texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(recipes[0], taps="last")
        IntegrativeCAM(MODEL, recipes[0], bias="none")
        get_method("refinecam")(MODEL, IMAGES)


def test_a_plain_recipe_leaves_weights_and_map_as_they_are() -> None:
    def weighting(scores: LayerScores) -> torch.Tensor:
        return scores.joint.new_tensor([[1.0, 3.0], [2.0, 2.0]])

    found = explain(MODEL, IMAGES, recipe=Recipe.plain(weighting=weighting, bias="none"))
    torch.testing.assert_close(found.weights, torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    torch.testing.assert_close(found.map, found.signed_map.relu() / found.signed_map.amax((1, 2), keepdim=True))
