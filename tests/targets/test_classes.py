"""Targets of classification: by hand, against the twins, and what a map of a contrast must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples
from reference import targets as reference
from torch import Tensor, nn

from integrative_cam import Explanation, explain
from integrative_cam.errors import TargetError
from integrative_cam.targets import contrast, log_odds, probability, total, value

few = examples(40)
LOGITS = torch.tensor([1.0, 2.0, 4.0, -3.0])
numbers = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


def last(output: Tensor) -> Tensor:
    return output[-1]


@pytest.mark.parametrize(
    ("target", "score", "slopes", "name"),
    [
        (contrast(2, 1), 2, [0, -1, 1, 0], "2 - 1"),
        (contrast(2), 2, [0, -1, 1, 0], "2 - runner-up"),
        (contrast(0), -3, [1, 0, -1, 0], "0 - runner-up"),
        (contrast(3, last), 0, [0, 0, 0, 0], "3 - last"),
        (total([0, 2]), 5, [1, 0, 1, 0], "0 + 2"),
        (total([3]), -3, [0, 0, 0, 1], "3"),
        (total([0, last, contrast(1, 2)]), -4, [1, 1, -1, 1], "0 + last + (1 - 2)"),
        (contrast(total([0, 1]), 2), -1, [1, 1, -1, 0], "(0 + 1) - 2"),
        (contrast(total([0, 1]), total([2, 3])), 2, [1, 1, -1, -1], "(0 + 1) - (2 + 3)"),
        (value(2), 4, [0, 0, 1, 0], "value 2"),
        (value(3, sign=-1), 3, [0, 0, 0, -1], "-value 3"),
    ],
)
def test_by_hand(target: Callable[[Any], Tensor], score: float, slopes: list[float], name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    found = target(logits)
    assert found.shape == ()
    assert found.item() == score
    assert torch.autograd.grad(found, logits)[0].tolist() == slopes
    assert target.__name__ == name


def test_probabilities_by_hand() -> None:
    halves = torch.tensor([2.0, 3.0, 6.0]).log()
    assert probability(1)(halves).item() == pytest.approx(3 / 11)
    assert probability(1, exclusive=False)(halves).item() == pytest.approx(3 / 4)
    # log 3 - log(2 + 6), which is log((3/11) / (8/11)).
    assert contrast(1, "rest")(halves).exp().item() == pytest.approx(3 / 8)
    assert log_odds(1)(halves.softmax(0)).exp().item() == pytest.approx(3 / 8)
    assert log_odds(2)(halves.sigmoid()).item() == pytest.approx(halves[2].item(), rel=1e-5)
    assert [each.__name__ for each in (probability(1), log_odds(1), contrast(1, "rest"))] == [
        "probability of 1", "log-odds of 1", "1 - rest",
    ]  # fmt: skip


@few
@given(numbers, st.data())
def test_against_the_twins(values: list[float], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(values) - 1))
    logits = torch.tensor(values, dtype=torch.float64)
    expected = reference.probability(values, index)
    assert probability(index)(logits).item() == pytest.approx(expected)
    assert contrast(index, "rest")(logits).item() == pytest.approx(reference.log_odds(expected))
    assert log_odds(index)(logits.softmax(0)).item() == pytest.approx(reference.log_odds(expected))
    others = [each for place, each in enumerate(values) if place != index]
    assert contrast(index)(logits).item() == values[index] - max(others)
    assert contrast(index, "runner-up")(logits).item() == contrast(index)(logits).item()


@few
@given(numbers)
def test_probability_and_rest_point_the_same_way(values: list[float]) -> None:
    """dp = p (1 - p) d log(p / (1 - p))."""
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    share = probability(0)(logits)
    (slope,) = torch.autograd.grad(share, logits, retain_graph=True)
    (odds,) = torch.autograd.grad(contrast(0, "rest")(logits), logits)
    torch.testing.assert_close(slope, (share * (1 - share)).detach() * odds)


def test_certain_probabilities_stay_finite() -> None:
    sure = torch.tensor([1.0, 0.0], requires_grad=True)
    for index in (0, 1):
        found = log_odds(index)(sure)
        assert found.isfinite()
        assert torch.autograd.grad(found, sure)[0].isfinite().all()


torch.manual_seed(0)
BODY = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
HEAD = nn.Linear(8 * 16, 5)
MODEL = nn.Sequential(BODY, HEAD).eval()
IMAGES = torch.randn(3, 3, 8, 8)


def test_the_map_of_a_contrast_is_that_of_a_head_of_differences() -> None:
    head = nn.Linear(8 * 16, 1)
    with torch.no_grad():
        head.weight.copy_(HEAD.weight[4:] - HEAD.weight[:2].sum(0))
        head.bias.copy_(HEAD.bias[4:] - HEAD.bias[:2].sum(0))
    expected = explain(nn.Sequential(BODY, head).eval(), IMAGES)
    found = explain(MODEL, IMAGES, contrast(4, total([0, 1])))
    torch.testing.assert_close(found.score, expected.score)
    torch.testing.assert_close(found.map, expected.map)
    assert not torch.allclose(found.map, explain(MODEL, IMAGES, 4).map, atol=0.05)


def test_one_target_per_image_and_on_disk(tmp_path: Any) -> None:
    logits = MODEL(IMAGES).detach()
    found = explain(MODEL, IMAGES, [contrast(4), 2, total([0, 1])], score="logit")
    assert found.target_names == ("4 - runner-up", "2", "0 + 1")
    expected = [logits[0, 4] - logits[0, :4].max(), logits[1, 2], logits[2, :2].sum()]
    torch.testing.assert_close(found.score, torch.stack(expected))
    found.save(tmp_path / "e")
    assert Explanation.load(tmp_path / "e").target_names == found.target_names


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1)])
def test_any_form_of_one_value_per_class(shape: tuple[int, ...]) -> None:
    assert contrast(2, 1)({"loss": torch.tensor([9]), "logits": LOGITS.reshape(shape)}).item() == 2
    assert value()(torch.tensor(7.0)).item() == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contrast("cat"), "this must be a class index or a callable, but got 'cat'"),
        (lambda: contrast(True), "this must be a class index or a callable, but got True"),
        (
            lambda: contrast(1, "other"),
            "that must be a class index, a callable, 'runner-up' or 'rest', but got 'other'",
        ),
        (lambda: contrast(1, 2.0), "that must be a class index or a callable, but got 2.0"),
        (lambda: contrast(1, 1), "this and that are both 1, whose difference is always 0"),
        (lambda: contrast(last, last), "this and that are both last"),
        (lambda: contrast(last), "that='runner-up' needs `this` as a class index, but got last"),
        (lambda: total([]), r"of must hold one class or target at least, such as \[281, 282\], but got \[\]"),
        (lambda: total(3), "of must hold one class or target at least"),
        (lambda: total("12"), "of must hold one class or target at least"),
        (lambda: total([1, 2, 1]), r"The sum holds class 1 more than once: \[1, 2, 1\]"),
        (lambda: total([1, None]), "of must be a class index or a callable, but got None"),
        (lambda: value(0, sign=2), r"sign must be 1 .* or -1 .* but got 2"),
        (lambda: probability(0.5), "index must be a class index, but got 0.5"),
        (lambda: contrast(4, 0)(LOGITS), "this 4 is out of range: the model has 4 outputs, 0 to 3"),
        (lambda: contrast(0, -1)(LOGITS), "that -1 is out of range"),
        (lambda: contrast(4)(LOGITS), "this 4 is out of range"),
        (lambda: contrast(-1)(LOGITS), "this -1 is out of range"),
        (lambda: contrast(0, "rest")(LOGITS[:1]), r"contrast\(0, 'rest'\) needs another class, but the model has 1"),
        (lambda: total([1, 9])(LOGITS), "of 9 is out of range"),
        (lambda: probability(4)(LOGITS), "index 4 is out of range"),
        (lambda: log_odds(-1)(LOGITS), "index -1 is out of range"),
        (lambda: value(4)(LOGITS), "index 4 is out of range"),
        (
            lambda: log_odds(2)(LOGITS),
            "needs outputs that are probabilities, 0 to 1, but got 4. Of logits, take target=2",
        ),
        (lambda: probability(0)(torch.zeros(4, 6, 6)), r"probability\(0\) picks a class, .* shape \(4, 6, 6\)"),
        (lambda: contrast(0, 1)(torch.zeros(4, 6)), "Use targets.segmentation, targets.region or targets.step"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make()


def test_a_target_without_gradient_is_an_error_even_beside_others() -> None:
    def detached(output: Tensor) -> Tensor:
        return output.detach()[0]

    with pytest.raises(TargetError, match="target detached gave a value without gradient for sample 2"):
        explain(MODEL, IMAGES, [0, 1, detached])
