"""What `--target` and `--versus` stand for, without the process around them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from integrative_cam import TargetError
from integrative_cam.cli.explain import aim_at, classes_of
from integrative_cam.models import Network, Preprocessing

NETWORK = Network("bar", nn.Identity(), Preprocessing(), ("C++", "gin+tonic", "gin, geneva", "tonic", "rum"))
LOGITS = torch.tensor([1.0, 2, 4, 8, 16])


@pytest.mark.parametrize(
    ("option", "classes"),
    [
        ("3", (3,)),
        ("Geneva", (2,)),
        ("c++", (0,)),
        ("gin+tonic", (1,)),
        ("gin + tonic", (2, 3)),
        ("4+ gin+1", (4, 2, 1)),
    ],
)
def test_classes(option: str, classes: tuple[int, ...]) -> None:
    assert classes_of(option, NETWORK) == classes


@pytest.mark.parametrize("option", ["beer", "gin+beer", "gin+", "+", "top1", "gin+top1", ""])
def test_unknown_classes(option: str) -> None:
    with pytest.raises(TargetError, match="is no class of bar"):
        classes_of(option, NETWORK)


@pytest.mark.parametrize(
    ("classes", "versus", "label", "score", "against"),
    [
        ((2, 3), None, "gin, geneva + tonic", 12, ()),
        ((4,), "gin", "rum rather than gin, geneva", 12, (2,)),
        ((4,), "gin + 3", "rum rather than gin, geneva + tonic", 4, (2, 3)),
        ((2, 4), "gin+tonic", "gin, geneva + rum rather than gin+tonic", 18, (1,)),
        ((3,), "runner-up", "tonic rather than the runner-up", -8, ()),
        ((4,), "rest", "rum rather than the rest", 16 - float(LOGITS[:4].logsumexp(0)), ()),
    ],
)
def test_aims(classes: tuple[int, ...], versus: str | None, label: str, score: float, against: tuple[int, ...]) -> None:
    aim = aim_at(classes, versus, NETWORK)
    assert (aim.label, aim.classes, aim.against, aim.index) == (label, classes, against, None)
    assert callable(aim.target)
    assert aim.target(LOGITS).item() == pytest.approx(score)


def test_one_class_stays_an_index() -> None:
    aim = aim_at((3,), None, NETWORK)
    assert (aim.target, aim.index, aim.label) == (3, 3, "tonic")


@pytest.mark.parametrize(
    ("classes", "versus", "message"),
    [
        ((2, 3), "rest", "--versus rest needs one class as --target, but got gin, geneva . tonic; name the rival"),
        ((2, 3), "runner-up", "--versus runner-up needs one class"),
        ((3,), "tonic", "--versus: tonic is the target itself; name another class"),
        ((2, 3), "rum + tonic", "--versus: tonic is the target itself"),
        ((3,), "beer", "'beer' is no class of bar"),
        ((3,), "rum + rum", r"The sum holds class 4 more than once: \[4, 4\]"),
        ((3, 3), None, r"The sum holds class 3 more than once: \[3, 3\]"),
    ],
)
def test_errors(classes: tuple[int, ...], versus: str | None, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        aim_at(classes, versus, NETWORK)
