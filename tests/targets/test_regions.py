"""Targets inside of a region: by hand, against the twins, and no evidence from outside of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import AS_THEY_ARE, examples
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from reference import targets as reference
from torch import Tensor, nn

from integrative_cam import explain
from integrative_cam.errors import TargetError
from integrative_cam.targets import contrast, part, region, segmentation, total

few = examples(40)
# Two channels of 2 x 3 pixels.
OUTPUT = torch.tensor([[[1.0, 2, 3], [4, 5, 6]], [[9, 0, 0], [0, 7, 8]]])
MASK = torch.tensor([[True, False, False], [False, True, True]])


@pytest.mark.parametrize(
    ("target", "score", "name"),
    [
        (region(MASK, 0), 4, "channel 0 in mask"),  # 1, 5, 6
        (region(MASK, 1), 8, "channel 1 in mask"),  # 9, 7, 8
        (region(MASK), 6, "all in mask"),
        (segmentation(0, MASK), 4, "class 0 in mask"),
        (segmentation(1), 8, "class 1 where found"),  # larger than channel 0 at 9, 7 and 8
        (segmentation(0), 3, "class 0 where found"),  # at 2, 3 and 4
        (segmentation(1, (1, 1, 3, 2)), 7.5, "class 1 in box"),
        (region((0, 0, 1, 2), 0), 2.5, "channel 0 in box"),
        (region([0, 0, 3, 1]), 2.5, "all in box"),
        (region(torch.tensor([0.5, 0.5, 1.5, 1.5]), 0), 1, "channel 0 in box"),  # a centre on the left edge is inside
        (region((0.6, 0, 1.6, 1), 0), 2, "channel 0 in box"),
        (contrast(segmentation(1, MASK), segmentation(0, MASK)), 4, "class 1 in mask - class 0 in mask"),
        (total([segmentation(0), segmentation(1)]), 11, "class 0 where found + class 1 where found"),
    ],
)
def test_by_hand(target: Callable[[Any], Tensor], score: float, name: str) -> None:
    assert target(OUTPUT).item() == score
    assert target.__name__ == name
    assert part("out", target)({"out": OUTPUT, "aux": OUTPUT * 2}).item() == score


def test_one_channel_is_found_where_its_logit_is_above_0() -> None:
    """As of binary segmentation with a sigmoid behind."""
    output = torch.tensor([[[-3.0, 2.0, 4.0], [-1.0, 0.0, -9.0]]])
    assert segmentation(0)(output).item() == 3
    with pytest.raises(TargetError, match="the network finds class 0 nowhere"):
        segmentation(0)(output - 5)
    with pytest.warns(UserWarning, match=r"between 0 and 1: they are taken for probabilities, .* above 0\.5"):
        assert segmentation(0)(torch.tensor([[[0.25, 0.75, 1.0], [0.0, 0.5, 0.1]]])).item() == 0.875


def test_binary_segmentation_behind_a_sigmoid_has_the_mean_logit_where_found() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    images = torch.randn(2, 1, 12, 12)
    net[2].bias = nn.Parameter(net[2].bias - net(images).mean())
    logits = net(images).detach()
    expected = torch.stack([each[each > 0].mean() for each in logits])
    for model in (net, nn.Sequential(net, nn.Sigmoid())):
        torch.testing.assert_close(explain(model, images, segmentation(0)).score, expected)


def test_slopes_by_hand() -> None:
    output = OUTPUT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(segmentation(1)(output) * 3, output)
    assert slope[0].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert slope[1].tolist() == [[1, 0, 0], [0, 1, 1]]


@few
@given(st.integers(0, 10**6), st.tuples(*[st.floats(-1, 8)] * 2), st.tuples(*[st.floats(0.1, 6)] * 2))
def test_boxes_against_the_twin(seed: int, corner: tuple[float, float], size: tuple[float, float]) -> None:
    values = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed)).double()
    box = (*corner, corner[0] + size[0], corner[1] + size[1])
    inside = reference.inside_box(box, 5, 7)
    if inside.any():
        expected = reference.mean_inside(values[1].numpy(), inside)
        assert region(box, 1)(values).item() == pytest.approx(expected)
        assert segmentation(1, torch.from_numpy(inside))(values).item() == pytest.approx(expected)
        peer = SemanticSegmentationTarget(1, inside)(values.float()) / inside.sum()
        assert peer.item() == pytest.approx(expected, abs=1e-5)
    else:
        with pytest.raises(TargetError, match="holds the centre of no pixel of the output, 7 wide and 5 high"):
            region(box, 1)(values)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_no_evidence_from_outside_of_the_region(dims: int) -> None:
    """A network whose every pixel sees itself alone."""
    torch.manual_seed(2)
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    model = nn.Sequential(conv(3, 8, 1), nn.ReLU(), conv(8, 4, 1))
    images = torch.randn(2, 3, *[6, 5, 4][:dims])
    mask = torch.zeros(images.shape[2:], dtype=torch.bool)
    mask[1:3] = True
    for target in (segmentation(2, mask), region(mask)):
        found = explain(model, images, target, bias="none", **AS_THEY_ARE)
        assert found.map.amax(tuple(range(1, dims + 1))).tolist() == [1, 1]
        assert not found.map[:, ~mask].any()
    torch.testing.assert_close(
        explain(model, images, segmentation(2, mask)).score, model(images)[:, 2][:, mask].mean(1).detach()
    )


def test_each_image_has_its_own_found_region() -> None:
    torch.manual_seed(3)
    model, images = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)), torch.randn(2, 3, 6, 6)
    output = model(images).detach()
    found = explain(model, images, segmentation(1), bias="none")
    for sample in range(2):
        where = output[sample].argmax(0) == 1
        assert found.score[sample].item() == pytest.approx(output[sample, 1][where].mean().item(), rel=1e-5)
        assert not found.map[sample][~where].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: region(torch.zeros(2, 3, dtype=torch.bool)), "where is an empty mask: no pixel of it is True"),
        (lambda: region(torch.zeros(2, 3)), r"where as a mask must be boolean, .* torch.float32 of shape \(2, 3\)"),
        (lambda: region((0, 0, 3)), r"where must be a boolean mask or a box .* but got \(0, 0, 3\)"),
        (lambda: region("mask"), "where must be a boolean mask or a box"),
        (lambda: region((2, 0, 2, 1)), "where must be a box with right > left and bottom > top"),
        (lambda: region((0, 1, 2, 0)), "where must be a box with right > left and bottom > top"),
        (lambda: region(MASK, "red"), "channel must be an integer, but got 'red'"),
        (lambda: segmentation(None), "index must be a class index, but got None"),
        (lambda: segmentation(True, MASK), "index must be a class index, but got True"),
        (lambda: segmentation(0, ())(OUTPUT), "where must be a boolean mask or a box"),
        (lambda: region(MASK, 2)(OUTPUT), "channel 2 is out of range: the output has 2 channels, 0 to 1"),
        (lambda: segmentation(2, MASK)(OUTPUT), "is out of range: the output has 2 channels"),
        (lambda: segmentation(-1)(OUTPUT), "index -1 is out of range"),
        (lambda: segmentation(1)(-OUTPUT * torch.tensor([[[0.0]], [[1]]]) - 1), "finds class 1 nowhere"),
        (
            lambda: region(MASK)(OUTPUT[:, :1]),
            r"the space of the output, \(1, 3\), but has \(2, 3\); scale it, such as",
        ),
        (
            lambda: region((0, 0, 1, 1))(OUTPUT[None]),
            "where as a box needs .* two axes of space, but it has 3; use a mask",
        ),
        (lambda: region((5, 0, 9, 1))(OUTPUT), "Boxes count pixels of the output, not of the input"),
        (lambda: region(MASK)(torch.zeros(3)), r"A region needs an output with space, .* but it has shape \(3,\)"),
        (lambda: segmentation(0)(torch.zeros(3)), "For one value per class give the class"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make()
