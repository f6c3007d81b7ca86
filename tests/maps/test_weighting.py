"""Layer scores and layer weights: fractions by hand, the twins, and what weights must always satisfy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples, noise, trace_of
from reference import weighting as reference
from torch import Tensor

from integrative_cam import LayerScores
from integrative_cam._maps.weighting import (
    WEIGHTINGS,
    adjust_for_resolution,
    coarseness,
    layer_scores,
    layer_weights,
    shares,
)
from integrative_cam.errors import RecipeError

few = examples(30)


def rows(*values: Fraction | float) -> Tensor:
    """One image's row."""
    return torch.tensor([[float(value) for value in values]], dtype=torch.float64)


# Two layers: mean|g| = 3/2 and 1/2, mean|A| = 1 and 3, sum|g A| = 2 and 6.
FIRST = torch.tensor([[[2.0, 0.0]]]).double(), torch.tensor([[[-1.0, 2.0]]]).double()
SECOND = (
    torch.tensor([[[1.0, 3.0, 5.0], [-3.0, 6.0, 0.0]]]).double(),
    torch.tensor([[[0, -2.0, 0], [0, 0, 1.0]]]).double(),
)


def test_scores_by_hand() -> None:
    scores = layer_scores(trace_of([FIRST, SECOND]))
    torch.testing.assert_close(scores.gradient, rows(Fraction(3, 4), Fraction(1, 4)))
    torch.testing.assert_close(scores.activation, rows(Fraction(1, 4), Fraction(3, 4)))
    torch.testing.assert_close(scores.joint, rows(2, 6))


BY_HAND = {
    # Scores G = 3/4, 1/4; C = 1/4, 3/4; J = 2, 6.
    "joint": (Fraction(1, 4), Fraction(3, 4)),
    "product": (Fraction(1, 2), Fraction(1, 2)),
    "average": (Fraction(1, 2), Fraction(1, 2)),
    # sqrt(1/2 * 1/4) : sqrt(1/2 * 3/4) = 1 : sqrt(3)
    "geometric": (1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5)),
    "uniform": (Fraction(1, 2), Fraction(1, 2)),
    "last": (0, 1),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_by_hand(weighting: str) -> None:
    scores = layer_scores(trace_of([FIRST, SECOND]))
    torch.testing.assert_close(layer_weights(scores, weighting, 1, 0), rows(*BY_HAND[weighting]))


def test_tempering_by_hand() -> None:
    # Shares 1/10, 9/10: square roots 1 : 3, squares 1 : 81.
    scores = LayerScores(rows(1, 1), rows(1, 1), rows(2, 18), torch.ones(2))
    torch.testing.assert_close(layer_weights(scores, "joint", 0.5, 0), rows(Fraction(1, 4), Fraction(3, 4)))
    torch.testing.assert_close(layer_weights(scores, "joint", 2, 0), rows(Fraction(1, 82), Fraction(81, 82)))


def test_layers_in_branches_by_hand() -> None:
    # Shares 1/4, 3/4; half of the paths pass the second layer: 3/4 / 2 against 1/4, and 3/4 / 4.
    scores = LayerScores(rows(1, 1), rows(1, 1), rows(2, 6), torch.tensor([1, 0.5], dtype=torch.float64))
    torch.testing.assert_close(layer_weights(scores, "joint", 1, 0), rows(Fraction(1, 4), Fraction(3, 4)))
    torch.testing.assert_close(layer_weights(scores, "joint", 1, 1), rows(Fraction(2, 5), Fraction(3, 5)))
    torch.testing.assert_close(layer_weights(scores, "joint", 1, 2), rows(Fraction(4, 7), Fraction(3, 7)))
    # The exponent acts on the score alone: 1/2 and sqrt(3) / 2 / 2.
    torch.testing.assert_close(layer_weights(scores, "joint", 0.5, 1), rows(2 / (2 + 3**0.5), 3**0.5 / (2 + 3**0.5)))


def test_fine_layers_count_less_by_hand() -> None:
    # Of 8 x 8 pixels: strides 1, 2, 4 and sqrt(2 * 8); half of them, at most 1.
    spaces, image = [(8, 8), (4, 4), (2, 2), (4, 1)], (8, 8)
    assert coarseness(spaces, image).tolist() == [0.5, 1, 1, 1]
    assert coarseness([(8, 4)], image).tolist() == pytest.approx([2**0.5 / 2])
    assert coarseness([(12,), (3,)], (12,)).tolist() == [0.5, 1]
    assert coarseness([(4, 4, 4), (8, 8, 8)], (8, 8, 8)).tolist() == pytest.approx([1, 0.5])
    # Weights 4 : 1 : 1 : 2 with the first times 1/2, or 1/2 to the power 2.
    weights = rows(4, 1, 1, 2)
    torch.testing.assert_close(adjust_for_resolution(weights, spaces, image, 1, 0), rows(2, 1, 1, 2) / 6)
    torch.testing.assert_close(adjust_for_resolution(weights, spaces, image, 2, 0), rows(1, 1, 1, 2) / 5)
    torch.testing.assert_close(adjust_for_resolution(weights, spaces, image, 0, 0), weights / 8)


def test_the_last_layer_of_each_resolution_adds_by_hand() -> None:
    # The second and the fourth are the last of their resolution, with weights 3 : 1; they share the added half.
    spaces = [(4,), (4,), (2,), (2,)]
    found = adjust_for_resolution(rows(1, 3, 3, 1), spaces, (8,), 0, 0.5)
    torch.testing.assert_close(found, rows(1, 3, 3, 1) / 16 + rows(0, 3, 0, 1) / 8)
    torch.testing.assert_close(adjust_for_resolution(rows(1, 3, 3, 1), spaces, (8,), 0, 1), rows(0, 3, 0, 1) / 4)
    # Where these have no weight, nothing is added.
    torch.testing.assert_close(adjust_for_resolution(rows(1, 0, 3, 0), spaces, (8,), 0, 0.5), rows(1, 0, 3, 0) / 4)


def test_gradient_and_activation_scores_differ_from_each_other() -> None:
    scores = LayerScores(
        rows(Fraction(9, 10), Fraction(1, 10)), rows(Fraction(1, 2), Fraction(1, 2)), rows(1, 1), torch.ones(2)
    )
    torch.testing.assert_close(layer_weights(scores, "average", 1, 0), rows(Fraction(7, 10), Fraction(3, 10)))
    torch.testing.assert_close(layer_weights(scores, "product", 1, 0), rows(Fraction(9, 10), Fraction(1, 10)))
    torch.testing.assert_close(layer_weights(scores, "geometric", 1, 0), rows(Fraction(3, 4), Fraction(1, 4)))


@st.composite
def layers(draw: st.DrawFn) -> list[tuple[Tensor, Tensor]]:
    """(activation, gradient) of several layers of any size and scale, for two images."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dims = draw(st.integers(1, 3))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        shape = (2, *(draw(st.integers(1, 4)) for _ in range(dims + 1)))
        scale = 10.0 ** draw(st.integers(-6, 6))
        found.append((noise(generator, *shape).relu() * scale, noise(generator, *shape)))
    return found


@few
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([(8, 6), (4, 3), (4, 6), (1, 1)])), min_size=1, max_size=6),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_twins_of_places(
    given_layers: list[tuple[int, tuple[int, int]]], stride_exponent: float, stage_share: float
) -> None:
    values, spaces = [float(value) for value, _ in given_layers], [space for _, space in given_layers]
    found = adjust_for_resolution(rows(*values), spaces, (8, 6), stride_exponent, stage_share)
    torch.testing.assert_close(
        found, rows(*reference.adjust_for_resolution(values, spaces, (8, 6), stride_exponent, stage_share))
    )
    torch.testing.assert_close(found.sum(1), torch.ones(1, dtype=torch.float64))


@few
@given(layers(), st.sampled_from(sorted(WEIGHTINGS)), st.sampled_from([0.25, 0.5, 1.0, 3.0]), st.floats(0, 5))
def test_twins(
    given_layers: list[tuple[Tensor, Tensor]], weighting: str, weight_exponent: float, path_exponent: float
) -> None:
    paths = [Fraction(index + 1, len(given_layers)) for index in range(len(given_layers))]
    found = trace_of(given_layers)
    taps = tuple(replace(tap, path_share=share) for tap, share in zip(found.taps, paths, strict=True))
    scores = layer_scores(replace(found, taps=taps))
    weights = layer_weights(scores, weighting, weight_exponent, path_exponent)
    for sample in range(2):
        expected = reference.layer_scores(
            [activation[sample].numpy() for activation, _ in given_layers],
            [gradient[sample].numpy() for _, gradient in given_layers],
        )
        for found, by_loop in zip((scores.gradient, scores.activation, scores.joint), expected, strict=True):
            assert found[sample].tolist() == pytest.approx(by_loop, rel=1e-10)
        by_loop = reference.weights(
            *expected, [float(share) for share in paths], weighting, weight_exponent, path_exponent
        )
        assert weights[sample].tolist() == pytest.approx(by_loop, rel=1e-9)


@few
@given(layers(), st.sampled_from(sorted(WEIGHTINGS)), st.floats(0.05, 4))
def test_weights_sum_to_one(given_layers: list[tuple[Tensor, Tensor]], weighting: str, weight_exponent: float) -> None:
    weights = layer_weights(layer_scores(trace_of(given_layers)), weighting, weight_exponent, 0)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", ["joint", "product", "average", "geometric", "uniform"])
def test_layers_without_any_score_share_equally(weighting: str) -> None:
    nothing = (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    assert layer_weights(layer_scores(trace_of([nothing] * 4)), weighting, 0.5, 0).tolist() == [[0.25] * 4]


def test_shares_by_hand() -> None:
    assert shares(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_tempering_stays_within_float32(scale: float) -> None:
    """A power of the raw scores, (1e-30)^2, would be 0 or infinite; of their shares it is not."""
    row = torch.tensor([[1.0, 3.0]])
    weights = layer_weights(LayerScores(row / 4, row / 4, row * scale, torch.ones(2)), "joint", 2, 0)
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.9]]))


@few
@given(layers(), st.floats(1e-3, 1e3))
def test_the_scale_of_the_score_does_not_matter(given_layers: list[tuple[Tensor, Tensor]], scale: float) -> None:
    scaled = [(activation, gradient * scale) for activation, gradient in given_layers]
    for weighting in WEIGHTINGS:
        torch.testing.assert_close(
            layer_weights(layer_scores(trace_of(scaled)), weighting, 0.5, 0),
            layer_weights(layer_scores(trace_of(given_layers)), weighting, 0.5, 0),
            rtol=1e-9,
            atol=1e-12,
        )


def test_a_callable_sees_the_scores_and_is_normalised_and_tempered() -> None:
    scores = LayerScores(rows(0.2, 0.8), rows(0.5, 0.5), rows(1, 9), torch.ones(2))
    assert layer_weights(scores, lambda seen: seen.gradient * 10, 1, 0).tolist() == [[0.2, 0.8]]
    torch.testing.assert_close(layer_weights(scores, lambda seen: seen.joint, 0.5, 0), rows(0.25, 0.75))
    assert layer_weights(scores, lambda seen: torch.zeros_like(seen.joint), 1, 0).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (lambda scores: scores.joint - 2, "finite weights >= 0"),
        (lambda scores: scores.joint / 0, "finite weights >= 0"),
        (lambda scores: scores.joint * float("nan"), "finite weights >= 0"),
        (lambda scores: scores.joint[:, :1], r"shape \(batch, taps\) = \(1, 2\), but gave shape \(1, 1\)"),
        (lambda scores: 3, "but gave int"),
    ],
)
def test_unusable_weights_are_refused(weighting: Callable[[LayerScores], Tensor], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        layer_weights(LayerScores(rows(0.5, 0.5), rows(0.5, 0.5), rows(1, 9), torch.ones(2)), weighting, 1, 0)
