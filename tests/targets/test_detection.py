"""Boxes that match: by hand, against the twins, and evidence from the matched box alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import AS_THEY_ARE, examples
from reference import targets as reference
from torch import Tensor, nn

from integrative_cam import explain
from integrative_cam.errors import TargetError
from integrative_cam.targets import Detections, contrast, detection, fastestdet, overlap

few = examples(40)
corner, side = st.floats(0, 10), st.floats(0.5, 6)
boxes = st.tuples(corner, corner, side, side).map(lambda each: [*each[:2], each[0] + each[2], each[1] + each[3]])


def fixed(output: Tensor) -> Detections:
    """Four boxes of two classes, whose scores are the output."""
    found = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [1, 0, 5, 4], [6, 6, 8, 8]])
    return Detections(found, output.reshape(4, 2))


SCORES = torch.tensor([[5.0, 1], [8, 8], [6, 9], [9, 9]])


def test_overlap_by_hand() -> None:
    others = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [1, 0, 5, 4], [6, 6, 8, 8], [4, 0, 8, 4], [2, 2, 2, 2]])
    # All; half; 3 of 5 columns; apart; edges that touch; no area.
    torch.testing.assert_close(overlap(others[0], others), torch.tensor([1, 0.5, 0.6, 0, 0, 0]))


@pytest.mark.parametrize(
    ("box", "index", "least", "place"),
    [
        # Overlap times score: 5, 4, 3.6; the fourth lies apart.
        ((0, 0, 4, 4), 0, 0.5, 0),
        # 1, 4, 5.4 for class 1: the third overlaps less, but is surer by far.
        ((0, 0, 4, 4), 1, 0.5, 2),
        # Without it and the second, the first is left.
        ((0, 0, 4, 4), 1, 0.7, 0),
        # Exactly the least overlap counts.
        ((0, 0, 4, 4), 1, 0.6, 2),
        ((6, 6, 8, 8), 1, 1, 3),
    ],
)
def test_the_match_by_hand(box: tuple[float, ...], index: int, least: float, place: int) -> None:
    scores = SCORES.clone().requires_grad_()
    found = detection(box, index, fixed, least)(scores)
    assert found.item() == SCORES[place, index]
    slope = torch.zeros(4, 2)
    slope[place, index] = 1
    assert torch.equal(torch.autograd.grad(found, scores)[0], slope)


@few
@given(boxes, st.lists(st.tuples(boxes, st.floats(0, 1)), min_size=1, max_size=8), st.floats(0.05, 1))
def test_the_match_against_the_twin(box: list[float], found: list[Any], least: float) -> None:
    others, scores = [each for each, _ in found], [score for _, score in found]
    twin = [reference.overlap(box, each) for each in others]
    given = torch.tensor(others, dtype=torch.float64)
    np.testing.assert_allclose(overlap(torch.tensor(box, dtype=torch.float64), given), twin, atol=1e-12)
    if any(abs(each - least) < 1e-9 for each in twin):
        return
    target = detection(box, 0, lambda output: Detections(given, output[:, None]), least)
    place = reference.match(box, others, scores, least)
    if place is None:
        with pytest.raises(TargetError, match=rf"No detected box overlaps .* the best has {max(twin):.2f}"):
            target(torch.tensor(scores, dtype=torch.float64))
    else:
        assert target(torch.tensor(scores, dtype=torch.float64)).item() == scores[place]


def test_fastestdet_by_hand() -> None:
    cells = torch.zeros(7, 2, 3)
    cells[0, 1, 2], cells[5, 1, 2], cells[6, 1, 2] = 1, 0, 1
    cells[1, 1, 2] = 100  # tanh 1: one cell to the right
    cells[3, 1, 2] = -100  # sigmoid 0: no width
    found = fastestdet(cells)
    assert found.boxes.shape == (6, 4)
    assert found.scores.shape == (6, 2)
    # The cell in the second row, third column: centre (48, 16), and half of the image's 32 pixels high.
    assert found.boxes[5].tolist() == [48, 8, 48, 24]
    assert found.scores[5].tolist() == pytest.approx([0, 1])
    # The first cell: centre (0, 0), half of 48 wide, half of 32 high.
    assert found.boxes[0].tolist() == [-12, -8, 12, 8]


@few
@given(st.integers(0, 10**6))
def test_fastestdet_against_the_twin(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(8, 3, 4, generator=generator).double()
    cells[0], cells[5:] = cells[0].sigmoid(), cells[5:].softmax(0)
    found = fastestdet(cells)
    for place, (box, scores) in enumerate(reference.fastestdet(cells.numpy())):
        np.testing.assert_allclose(found.boxes[place], box, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.scores[place], scores, rtol=1e-9)


def test_impossible_classes_leave_gradients_finite() -> None:
    cells = torch.full((7, 1, 1), 0.5)
    cells[6] = 0
    cells.requires_grad_()
    (slope,) = torch.autograd.grad(detection((2, 2, 12, 12), 0, fastestdet)(cells), cells)
    assert slope.isfinite().all()
    # o^0.6 p^0.4 at one half each: 0.6 and 0.4 are the slopes; the box has none.
    assert slope.flatten().tolist() == pytest.approx([0.6, 0, 0, 0, 0, 0.4, 0])


class Detector(nn.Module):
    """Scores are mean brightnesses of the quarters of an image, classes its channels."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.relu(), 4)


def quarters(output: Tensor) -> Detections:
    found = [[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]]
    return Detections(torch.tensor(found), output.flatten(1).T)


def test_evidence_comes_from_the_matched_box_alone() -> None:
    images = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    ours = [detection((4, 0, 8, 4), 0, quarters), detection((0, 4, 4, 7), 1, quarters)]
    found = explain(Detector(), images, ours, **AS_THEY_ARE)
    assert found.target_names == ("class 0 in box", "class 1 in box")
    expected = torch.stack([images[0, 0, :4, 4:].mean(), images[1, 1, 4:, :4].mean()])
    torch.testing.assert_close(found.score, expected)
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[0, :4, 4:] = inside[1, 4:, :4] = True
    assert (found.map[inside] > 0).all()
    assert not found.map[~inside].any()


def test_detections_combine_with_other_targets() -> None:
    box = (0, 0, 4, 4)
    target = contrast(detection(box, 0, fixed), detection(box, 1, fixed))
    assert target(SCORES).item() == 5 - 9
    assert target.__name__ == "class 0 in box - class 1 in box"


def none(output: Tensor) -> Detections:
    return Detections(torch.zeros(0, 4), output[:0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: detection((0, 0, 4), 0, fixed), r"box must be \(left, top, right, bottom\) .* but got \(0, 0, 4\)"),
        (lambda: detection((4, 0, 0, 4), 0, fixed), "with right > left and bottom > top"),
        (lambda: detection((0, 4, 4, 4), 0, fixed), "with right > left and bottom > top"),
        (lambda: detection("box", 0, fixed), "but got 'box'"),
        (lambda: detection(torch.ones(2, 4), 0, fixed), "box must be"),
        (lambda: detection((0, 0, 4, 4), "cat", fixed), "index must be a class index, but got 'cat'"),
        (lambda: detection((0, 0, 4, 4), 0, fixed, 0), "least must be .* above 0 and at most 1, but got 0"),
        (lambda: detection((0, 0, 4, 4), 0, fixed, 1.5), "least must be"),
        (
            lambda: detection((0, 0, 4, 4), 2, fixed)(SCORES),
            "index 2 is out of range: the decoder gives 2 classes, 0 to 1",
        ),
        (lambda: detection((0, 0, 4, 4), -1, fixed)(SCORES), "index -1 is out of range"),
        (lambda: detection((0, 3, 4, 9), 0, fixed)(SCORES), r"No detected box overlaps \(0.0, 3.0, 4.0, 9.0\) by 0.5"),
        (
            lambda: detection((0, 0, 4, 4), 0, none)(SCORES),
            r"No detected box overlaps .* \(intersection over union\). Check",
        ),
        (
            lambda: detection((0, 0, 4, 4), 0, lambda output: Detections(output, output))(SCORES),
            r"decode must give boxes of shape \(box, 4\) .* but gave \(4, 2\) and \(4, 2\)",
        ),
        (lambda: fastestdet(SCORES), r"fastestdet reads \(5 \+ classes, height, width\) .* shape \(4, 2\)"),
        (lambda: fastestdet(torch.zeros(5, 2, 2)), r"shape \(5, 2, 2\); write a decoder for it"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make()
