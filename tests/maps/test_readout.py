"""rho = f''' / f'' of every read-out, against three rounds of automatic differentiation and derivatives by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import networks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import readout as reference
from torch import Tensor

from integrative_cam import explain
from integrative_cam._maps.readout import RHO_LIMIT, differentiate, rho_of
from integrative_cam.errors import RecipeError
from integrative_cam.recipe import OF_0_1_0

SCORES = torch.linspace(-7.3, 7.1, 25, dtype=torch.float64)


def derivatives(f: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f', f'' and f''' at each point alone."""
    found = []
    for point in points:
        each = point.clone().requires_grad_()
        value, row = f(each), []
        for _ in range(3):
            (value,) = torch.autograd.grad(value, each, create_graph=True)
            row.append(value.detach())
        found.append(torch.stack(row))
    slope, second, third = torch.stack(found, 1)
    return slope, second, third


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("exp", torch.exp),
        ("softplus", torch.nn.functional.softplus),
        ("sigmoid", torch.sigmoid),
    ],
)
def test_functions_of_the_score_alone(name: str, f: Callable[[Tensor], Tensor]) -> None:
    slope, second, third = derivatives(f, SCORES)
    rho, direction = rho_of(name, SCORES, None)
    torch.testing.assert_close(rho, third / second, rtol=1e-8, atol=0)
    assert torch.equal(direction, slope.sign())


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_probabilities_hold_the_other_logits_fixed(name: str) -> None:
    others = torch.tensor([0.4, -1.3, 2.2], dtype=torch.float64)

    def f(score: Tensor) -> Tensor:
        logits = torch.cat([others[:1], score[None], others[1:]])
        return getattr(torch, name)(logits, 0)[1]

    slope, second, third = derivatives(f, SCORES)
    rho, direction = rho_of(name, SCORES, SCORES - others.logsumexp(0))
    torch.testing.assert_close(rho, third / second, rtol=1e-7, atol=0)
    assert torch.equal(direction, slope.sign())


@pytest.mark.parametrize("name", reference.NAMED)
@networks.examples(30)
@given(logits=st.lists(st.floats(-6, 6), min_size=2, max_size=5), data=st.data())
def test_twins(name: str, logits: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(logits) - 1))
    row = torch.tensor(logits, dtype=torch.float64)
    others = torch.cat([row[:target], row[target + 1 :]])
    rho, direction = rho_of(name, row[target : target + 1], (row[target] - others.logsumexp(0))[None])
    expected = reference.NAMED[name](logits, target)
    # Near the pole, where 1 - 2p is small, both sides lose digits in p.
    assert rho.item() == pytest.approx(reference.rho(expected), rel=1e-6) or abs(rho.item()) > 1e5
    assert direction.item() == reference.direction(expected) == 1


def test_numbers_by_hand() -> None:
    # p = 1/4 and p = 3/4: 1 - 6p + 6p^2 = -1/8, 1 - 2p = 1/2 and -1/2.
    margin = torch.tensor([1 / 3, 3.0], dtype=torch.float64).log()
    for name in ("sigmoid", "softmax"):
        torch.testing.assert_close(rho_of(name, margin, margin)[0], torch.tensor([-0.25, 0.25], dtype=torch.float64))
    for name in ("softplus", "log_softmax"):
        torch.testing.assert_close(rho_of(name, margin, margin)[0], torch.tensor([0.5, -0.5], dtype=torch.float64))
    assert rho_of("exp", margin, None)[0].tolist() == [1, 1]
    assert rho_of("identity", margin, None)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "far_below", "far_above"),
    [
        ("exp", 1, 1),
        ("identity", 0, 0),
        ("softplus", 1, -1),
        ("sigmoid", 1, -1),
        ("softmax", 1, -1),
        ("log_softmax", 1, -1),
    ],
)
def test_limits_where_the_derivatives_themselves_underflow(name: str, far_below: float, far_above: float) -> None:
    score = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    rho, direction = rho_of(name, score, score)
    assert rho.tolist() == [far_below, far_above]
    assert direction.tolist() == [1, 1]


CUSTOM: list[tuple[str, Callable[[Tensor], Tensor], Callable[[float], float], Callable[[float], float]]] = [
    ("s^3 + s", lambda s: s**3 + s, lambda s: 1 / s, lambda s: 1),
    ("atan", torch.atan, lambda s: (1 - 3 * s * s) / (s * (1 + s * s)), lambda s: 1),
    ("exp(s / 5)", lambda s: (s / 5).exp(), lambda s: 0.2, lambda s: 1),
    ("exp(-s)", lambda s: (-s).exp(), lambda s: -1, lambda s: -1),
    ("s^2", lambda s: s**2, lambda s: 0, lambda s: math.copysign(1, s)),
    (
        "1 / (1 + s^2)",
        lambda s: 1 / (1 + s * s),
        lambda s: 12 * s * (1 - s * s) / (3 * s * s - 1) / (1 + s * s),
        lambda s: -math.copysign(1, s),
    ),
    ("3 s + 1", lambda s: 3 * s + 1, lambda s: 0, lambda s: 1),
    ("-s", torch.neg, lambda s: 0, lambda s: -1),
]


@pytest.mark.parametrize(
    ("f", "rho_by_hand", "direction_by_hand"), [each[1:] for each in CUSTOM], ids=[each[0] for each in CUSTOM]
)
def test_callables_against_derivatives_by_hand(
    f: Callable[[Tensor], Tensor], rho_by_hand: Callable[[float], float], direction_by_hand: Callable[[float], float]
) -> None:
    rho, direction = rho_of(f, SCORES, None)
    assert rho.tolist() == pytest.approx([rho_by_hand(score) for score in SCORES.tolist()], rel=1e-9, abs=1e-9)
    assert direction.tolist() == [direction_by_hand(score) for score in SCORES.tolist()]


def test_a_callable_is_differentiated_in_float64_and_inside_no_grad() -> None:
    score = torch.tensor([0.3, -1.7])
    with torch.no_grad():
        slope, second, third = differentiate(torch.sigmoid, score)
    p = [reference.logistic(each) for each in score.tolist()]
    expected = torch.tensor([reference.of_probability(each) for each in p], dtype=torch.float64).T
    torch.testing.assert_close(torch.stack([slope, second, third]), expected, rtol=1e-12, atol=1e-15)


def test_rho_is_bounded_at_the_pole() -> None:
    margin = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64)
    for name in ("sigmoid", "softmax"):
        rho, _ = rho_of(name, margin, margin)
        assert rho.abs().tolist() == [RHO_LIMIT] * 3
        assert rho[0] < 0 < rho[2]
    assert rho_of(lambda s: s**3 + s, torch.tensor([1e-8, -1e-8]), None)[0].tolist() == [RHO_LIMIT, -RHO_LIMIT]


@pytest.mark.parametrize("aggregation", ["position", "channel"])
def test_two_equal_logits_give_a_finite_map_and_are_reported(aggregation: str) -> None:
    option = networks.Options(seed=4, classes=2)
    model = networks.build("plain", option)
    last = next(layer for layer in reversed(list(model.modules())) if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        last.weight[1], last.bias[1] = last.weight[0], last.bias[0]
    found = explain(model, networks.images(option), 0, readout="softmax", aggregation=aggregation, **OF_0_1_0)
    assert torch.equal(found.output[:, 0], found.output[:, 1])
    assert found.map.isfinite().all()
    assert found.map.amax((1, 2)).tolist() == [1, 1]
    assert (found.clamped > 0).all()
    assert (explain(model, networks.images(option), 0, readout="exp", **OF_0_1_0).clamped == 0).all()


@pytest.mark.parametrize(
    ("f", "scores", "message"),
    [
        (functools.partial(torch.softmax, dim=0), [0.1, 0.7], "must be elementwise: a sample's value changes"),
        (lambda s: s - s.mean(), [0.1, 0.7], "must be elementwise: a sample's value changes"),
        (lambda s: s.sum(), [0.1, 0.7], r"same shape \(2,\), elementwise; it gave shape \(\)"),
        (lambda s: s[:, None], [0.1, 0.7], r"it gave shape \(2, 1\)"),
        (lambda s: 3.0, [0.1, 0.7], "it gave float"),
        (torch.log, [0.5, -0.5], r"finite.* at scores \[0.5, -0.5\]"),
        (torch.sqrt, [0.0, 4.0], r"finite.* at scores \[0.0, 4.0\]"),
        (lambda s: s**3, [1.0, 0.0], r"f'' = 0 but f''' != 0 at scores \[1.0, 0.0\]"),
        (torch.sin, [0.0], "f'' = 0 but f''' != 0"),
        (lambda s: 2 * s.detach(), [0.1], "differentiable"),
    ],
    ids=["softmax", "mean", "sum", "axis", "number", "log", "sqrt", "cube", "sin", "detached"],
)
def test_what_is_no_smooth_elementwise_function_is_refused(
    f: Callable[[Tensor], Tensor], scores: list[float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        rho_of(f, torch.tensor(scores, dtype=torch.float64), None)


def test_the_error_names_the_function() -> None:
    with pytest.raises(RecipeError, match=r"readout sqrt .*finite"):
        rho_of(torch.sqrt, torch.tensor([0.0]), None)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_probability_needs_a_class(name: str) -> None:
    with pytest.raises(RecipeError, match=f"readout='{name}' needs a class index as target"):
        rho_of(name, torch.zeros(1), None)


def test_at_the_cubes_inflection_other_scores_are_fine() -> None:
    assert rho_of(lambda s: s**3, torch.tensor([2.0, -4.0]), None)[0].tolist() == [0.5, -0.25]
