"""Bootstrap intervals and ranks: by hand, by enumeration, and against scipy."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples, noise
from reference import metrics as reference
from scipy import stats
from torch import Tensor

from integrative_cam.errors import InputError
from integrative_cam.evaluate import Interval, bootstrap_mean, mean_rank, paired_difference, win_rate

few = examples(25)


def test_two_images_by_hand() -> None:
    """Means 0, 1/2, 1 come up in 1/4, 1/2 and 1/4 of the draws."""
    values = torch.tensor([0.0, 1.0])
    assert bootstrap_mean(values) == Interval(0.5, 0.0, 1.0, 2)
    assert bootstrap_mean(values, level=0.4) == Interval(0.5, 0.5, 0.5, 2)
    once = bootstrap_mean(values, 1)
    assert once.low == once.high
    assert bootstrap_mean(torch.tensor([3.0])) == Interval(3.0, 3.0, 3.0, 1)


def test_the_interval_is_that_of_all_possible_draws() -> None:
    """Five values of different size: 3125 draws, enumerated."""
    values = [0.0, 1.0, 3.0, 10.0, 40.0]
    means = torch.tensor([sum(draw) / 5 for draw in itertools.product(values, repeat=5)], dtype=torch.float64)
    for level in (0.5, 0.9, 0.95):
        tail = (1 - level) / 2
        found = bootstrap_mean(torch.tensor(values), 100_000, level)
        for end, quantile in ((found.low, tail), (found.high, 1 - tail)):
            # So much of the distribution may lie between: four standard errors of a frequency.
            near = [means.quantile(min(max(quantile + shift, 0), 1)).item() for shift in (-0.006, 0.006)]
            assert near[0] - 1e-9 <= end <= near[1] + 1e-9
        assert found.mean == pytest.approx(10.8)
        assert found.n == 5


@few
@given(st.integers(0, 1000), st.sampled_from([0.8, 0.95]))
def test_scipy_agrees(seed: int, level: float) -> None:
    values = noise(torch.Generator().manual_seed(seed), 40) * 2 + 5
    found = bootstrap_mean(values, level=level, seed=seed)
    peer = stats.bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis), n_resamples=10_000, confidence_level=level, method="percentile"
    ).confidence_interval
    # A quantile of 10000 draws of a mean whose standard error is 0.3.
    assert found.low == pytest.approx(peer.low, abs=0.04)
    assert found.high == pytest.approx(peer.high, abs=0.04)
    assert found.mean == pytest.approx(values.mean().item())


def test_many_images_are_drawn_in_parts() -> None:
    """300 000 values exceed what is drawn at once; the interval is the normal one, 1.96 standard errors."""
    values = noise(torch.Generator().manual_seed(0), 300_000)
    found = bootstrap_mean(values, 300)
    error = (values.std() / 300_000**0.5).item()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert found.low < found.mean < found.high


def test_the_seed_decides_and_no_other_random_number_is_drawn() -> None:
    values, before = noise(torch.Generator().manual_seed(0), 30), torch.get_rng_state()
    assert bootstrap_mean(values) == bootstrap_mean(values) == bootstrap_mean(values, seed=0)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_pairs_cancel_what_the_images_have_in_common() -> None:
    generator = torch.Generator().manual_seed(0)
    common, gain = noise(generator, 50) * 100, noise(generator, 50) * 0.1 + 1
    found = paired_difference(common + gain, common)
    expected = bootstrap_mean(gain)
    assert [found.mean, found.low, found.high] == pytest.approx([expected.mean, expected.low, expected.high])
    assert 0.9 < found.low < found.high < 1.1
    reverse = paired_difference(common, common + gain)
    assert reverse.mean == pytest.approx(-found.mean)
    assert paired_difference(common, common) == Interval(0.0, 0.0, 0.0, 50)


def test_pairs_keep_the_precision_of_float32_values() -> None:
    """Half-precision values a rounding step apart: their difference is exact."""
    left, right = torch.tensor([1.0, 1.0], dtype=torch.half), torch.tensor([1 - 2**-11] * 2, dtype=torch.half)
    assert paired_difference(left, right).mean == 2**-11


def test_wins_by_hand() -> None:
    left, right = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([1.0, 100.0, 2.0, 1.0])
    # Two wins, a loss however large, a tie.
    assert win_rate(left, right).mean == 0.625
    assert win_rate(right, left).mean == 0.375
    assert win_rate(left, left) == Interval(0.5, 0.5, 0.5, 4)
    assert win_rate(left, left - 1e-9 * 1e3) == Interval(1.0, 1.0, 1.0, 4)


@few
@given(st.integers(0, 1000), st.integers(1, 9))
def test_wins_are_the_twins(seed: int, count: int) -> None:
    left, right = torch.randint(0, 3, (2, count), generator=torch.Generator().manual_seed(seed)).double()
    found = win_rate(left, right, 500)
    assert found.mean == pytest.approx(reference.win_rate(left.tolist(), right.tolist()))
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_ranks_by_hand() -> None:
    # Ranks 1, 2, 3; then 1.5, 3, 1.5.
    table = torch.tensor([[0.9, 0.5, 0.1], [2.0, 1.0, 2.0]])
    assert mean_rank(table).tolist() == [1.25, 2.5, 2.25]
    assert mean_rank(torch.ones(4, 3)).tolist() == [2, 2, 2]
    assert mean_rank(-table).tolist() == [2.75, 1.5, 1.75]


@few
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 6))
def test_ranks_are_the_twins(seed: int, cases: int, methods: int) -> None:
    table = torch.randint(0, 4, (cases, methods), generator=torch.Generator().manual_seed(seed)).double()
    found = mean_rank(table)
    assert found.tolist() == pytest.approx(reference.mean_rank(table.tolist()))
    assert found.sum().item() == pytest.approx(methods * (methods + 1) / 2)


VALUES = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean(torch.zeros(0)), r"values must be .* shape \(n,\), n >= 1, but got shape \(0,\)"),
        (lambda: bootstrap_mean(torch.zeros(2, 2)), r"but got shape \(2, 2\)"),
        (lambda: bootstrap_mean([1.0]), "but got list"),
        (lambda: bootstrap_mean(VALUES / 0), "values hold NaN or infinite values"),
        (lambda: bootstrap_mean(VALUES, 0), "resamples must be at least 1, but got 0"),
        (lambda: bootstrap_mean(VALUES, level=95), "level must be above 0 and below 1, such as 0.95, but got 95"),
        (lambda: paired_difference(VALUES, torch.ones(1)), "same images in the same order, but have 2 and 1 values"),
        (lambda: paired_difference(VALUES, VALUES * torch.nan), "right hold NaN"),
        (lambda: win_rate(VALUES, torch.ones(1)), "same images in the same order, but have 2 and 1 values"),
        (lambda: win_rate(VALUES * torch.nan, VALUES), "left hold NaN"),
        (lambda: mean_rank(VALUES), r"table must hold .* got shape \(2,\)"),
        (lambda: mean_rank(VALUES[None] * torch.nan), "with NaN or infinite values"),
    ],
)
def test_unusable_arguments_are_refused(call: Callable[[], Tensor | Interval], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
