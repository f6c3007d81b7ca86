"""Explanations are those of 0.1.0, to rounding: maps, weights, completeness, names; see `stored_maps`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import stored_maps
from stored_maps import CASES, VERSIONS, Case, Inputs, Stored, as_case, differences, output_of, with_way
from torch import Tensor

STORED, OUTPUTS, STORED_VERSIONS = stored_maps.read()


pytestmark = pytest.mark.usefixtures("laid_as_in_0_1_0")


def taken(inputs: Inputs, rows: list[int]) -> Inputs:
    """These samples of the inputs."""
    if isinstance(inputs, dict):
        return {name: each[rows] for name, each in inputs.items()}
    return tuple(each[rows] for each in inputs) if isinstance(inputs, tuple) else inputs[rows]


def batch_of(inputs: Inputs) -> int:
    first = (
        next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0] if isinstance(inputs, tuple) else inputs
    )
    return len(first)


def rows_of(stored: Stored, rows: list[int]) -> Stored:
    """The stored explanation of these samples."""
    numbers = {name: values if name == "is_cut" else values[rows] for name, values in stored.numbers.items()}
    return Stored({**stored.names, "targets": [stored.names["targets"][row] for row in rows]}, numbers)


def marks_of(case: Case) -> list[pytest.MarkDecorator]:
    """Networks of libraries are slow."""
    is_small = isinstance(case.make, partial) and case.make.func is not stored_maps.zoo
    return [] if is_small else [pytest.mark.slow]


def check_network(case: Case, output: Tensor) -> None:
    """Fail where the network is another one; skip where that is for another release of a library that builds it."""
    wanted = OUTPUTS[case.name]
    error = (output - wanted).abs().max()
    if error > case.tolerance * wanted.abs().max():
        if VERSIONS != STORED_VERSIONS:
            pytest.skip(f"another network than with {STORED_VERSIONS}: its output is off by {float(error):.2g}")
        pytest.fail(f"the network's output is off by {float(error):.2g}")


def check(case: Case, found: list[Any], rows: list[int] | None = None) -> None:
    stored = STORED[case.name]
    assert len(found) == len(stored)
    for explanation, kept in zip(found, stored, strict=True):
        wrong = differences(explanation, kept if rows is None else rows_of(kept, rows), case.tolerance)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks_of(case)) for case in CASES])
def test_explanations_are_those_of_0_1_0(case: Case) -> None:
    """The first call, the next ones, which know the network, and a batch of another size in between."""
    model, inputs = case.make()
    explainer = case.explainer(model)
    first = explainer(inputs, case.target)
    check_network(case, output_of(first[0]))
    check(case, first)
    check(case, explainer(inputs, case.target))
    rows = [1] if batch_of(inputs) > 1 else [0, 0, 0]
    target = [case.target[row] for row in rows] if isinstance(case.target, list) else case.target
    check(case, explainer(taken(inputs, rows), target), rows)
    check(case, explainer(inputs, case.target))


def test_every_stored_case_is_compared() -> None:
    assert [case.name for case in CASES] == list(STORED)
    assert len(CASES) == len({case.name for case in CASES}) >= 44


# What a mistake would change is more than what is forgiven.


@cache
def explained(name: str, **ingredients: Any) -> Any:
    case = as_case(name)
    model, inputs = case.make()
    return with_way(case, **ingredients).explainer(model)(inputs, case.target)[0]


SEVERAL_LAYERS = [
    "plain 2-D",
    "decoder",
    "tokens",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("resnet18", "mobilenet_v2", "test_convnext", "test_vit")),
    "unet",
]


def wrong_in(name: str, found: Any) -> set[str]:
    """The numbers that differ."""
    return {said.split(":")[0] for said in differences(found, STORED[name][0], as_case(name).tolerance)}


@pytest.mark.parametrize("name", SEVERAL_LAYERS)
def test_another_choice_of_taps_would_be_noticed(name: str) -> None:
    names = [layer.name for layer in explained(name).layers]
    for left_out in (names[0], names[-1]):
        found = explained(name, taps=tuple(each for each in names if each != left_out))
        assert {"layers", "weights"} <= wrong_in(name, found)
        # Also if nothing but the map were compared.
        assert differs(name, found)


@pytest.mark.parametrize("name", SEVERAL_LAYERS)
@pytest.mark.parametrize(
    "ingredients",
    [{"bias": "none"}, {"bias_share": 0.45}, {"gamma": 0.9}, {"weighting": "average"}],
    ids=str,
)
def test_other_arithmetic_would_be_noticed_in_the_map_alone(name: str, ingredients: dict[str, Any]) -> None:
    assert differs(name, explained(name, **ingredients))


def differs(name: str, found: Any) -> bool:
    """Whether the maps alone differ."""
    stored = STORED[name][0].numbers["map"]
    return bool((found.map.double() - stored).abs().max() > as_case(name).tolerance)


@pytest.mark.parametrize("name", SEVERAL_LAYERS)
def test_numbers_at_a_wrong_place_would_be_noticed(name: str) -> None:
    """Weights, parts of the score and biases one layer on, which leaves their sums the same; maps one position on."""
    found, kept = explained(name), STORED[name][0]
    assert not wrong_in(name, found)
    for moved in ("weights", "activation", "tap_bias", "bias_weights", "layer_bias", "map"):
        numbers = {**kept.numbers, moved: kept.numbers[moved].roll(1, -1)}
        if moved == "layer_bias":
            numbers[moved] = kept.numbers[moved] + 1  # zeros for biases that are layers
        said = differences(found, replace(kept, numbers=numbers), as_case(name).tolerance)
        assert [each.split(":")[0] for each in said] == [moved]
