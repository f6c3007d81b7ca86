"""Targets: one scalar per sample, whatever form it is asked for in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import Options, build, images
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, get_method
from integrative_cam.errors import TargetError
from integrative_cam.targets import top_classes

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)).eval()
IMAGES = torch.randn(3, 3, 8, 8)
LOGITS = MODEL(IMAGES).detach()


def contrasts(classes: list[int]) -> Tensor:
    """Of each image's class: its logit minus 0.8 of the others' mean, weighted by exp(logit / 2)."""
    found = []
    for logits, own in zip(LOGITS.tolist(), classes, strict=True):
        others = [value for index, value in enumerate(logits) if index != own]
        parts = [math.exp(value / 2) for value in others]
        mean = sum(part * value for part, value in zip(parts, others, strict=True)) / sum(parts)
        found.append(logits[own] - 0.8 * mean)
    return torch.tensor(found)


def test_none_takes_each_images_own_top_class() -> None:
    found = explain(MODEL, IMAGES)
    assert torch.equal(found.target, LOGITS.argmax(1))
    torch.testing.assert_close(found.score, contrasts(LOGITS.argmax(1).tolist()))
    assert torch.equal(explain(MODEL, IMAGES, score="logit").score, LOGITS.amax(1))
    assert torch.equal(found.output, LOGITS)


@pytest.mark.parametrize(
    "target",
    [[4, 0, 2], (4, 0, 2), torch.tensor([4, 0, 2]), torch.tensor([4, 0, 2], dtype=torch.int32), np.array([4, 0, 2])],
    ids=["list", "tuple", "tensor", "int32", "numpy"],
)
def test_one_class_per_image(target: Any) -> None:
    found = explain(MODEL, IMAGES, target)
    assert found.target.tolist() == [4, 0, 2]
    assert found.target_names == ("4", "0", "2")
    torch.testing.assert_close(found.score, contrasts([4, 0, 2]))
    expected = LOGITS[torch.arange(3), torch.tensor([4, 0, 2])]
    assert torch.equal(explain(MODEL, IMAGES, target, score="logit").score, expected)


@pytest.mark.parametrize("target", [3, torch.tensor(3), np.int64(3)])
def test_one_class_for_all(target: Any) -> None:
    assert explain(MODEL, IMAGES, target).target.tolist() == [3, 3, 3]


def difference(output: Tensor) -> Tensor:
    return output[1] - output[2]


def test_callable_sees_one_samples_output() -> None:
    found = explain(MODEL, IMAGES, difference)
    assert found.target is None
    assert found.target_names == ("difference",) * 3
    torch.testing.assert_close(found.score, LOGITS[:, 1] - LOGITS[:, 2])
    alone = explain(MODEL, IMAGES[1:2], difference)
    torch.testing.assert_close(found.map[1], alone.map[0])


def test_classes_and_callables_may_be_mixed() -> None:
    found = explain(MODEL, IMAGES, [2, difference, 0], score="logit")
    assert found.target_names == ("2", "difference", "0")
    torch.testing.assert_close(found.score, torch.stack([LOGITS[0, 2], LOGITS[1, 1] - LOGITS[1, 2], LOGITS[2, 0]]))


def test_callable_sees_the_structure_that_the_model_returns() -> None:
    class Structured(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"heads": (MODEL(x), MODEL(2 * x)), "names": "ab"}

    found = explain(Structured(), IMAGES, lambda output: output["heads"][1][4] if output["names"] == "ab" else None)
    torch.testing.assert_close(found.score, MODEL(2 * IMAGES).detach()[:, 4])


def test_dense_output_by_callable() -> None:
    torch.manual_seed(0)  # of some networks the map is blank, which warns
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = explain(model, IMAGES, lambda output: output[1, :3].mean())
    torch.testing.assert_close(found.score, model(IMAGES).detach()[:, 1, :3].mean((1, 2)))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1, 1)])
def test_a_single_value_per_image_needs_no_target(shape: tuple[int, ...]) -> None:
    class Regression(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return MODEL(x)[:, 2].reshape(shape)

    assert torch.equal(explain(Regression(), IMAGES).score, LOGITS[:, 2])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "target 5 is out of range: the model has 5 outputs, 0 to 4"),
        (-1, "target -1 is out of range"),
        ([0, 1, 9], "target 9 is out of range"),
        ([0, 1], "target has 2 entries for 3 images"),
        ([0, 1, 2, 3], "target has 4 entries for 3 images"),
        (torch.tensor([0, 1]), "target has 2 entries for 3 images"),
        ([], "target has 0 entries"),
        (torch.tensor([0.5, 1, 2]), r"integers, shape \(batch,\).*torch.float32"),
        (torch.zeros(3, 5, dtype=torch.long), r"of shape \(3, 5\)"),
        ("tabby", "must be a class index or a callable, but got 'tabby'"),
        (True, "must be a class index or a callable, but got True"),
        (2.0, "target must be None, a class index, a callable"),
        ([0, 1, "cat"], "target must be None, a class index, a callable"),
        (
            lambda output: output,
            r"<lambda> must give one floating-point scalar .* but gave shape \(5,\)",
        ),
        (lambda output: 1.0, "gave float"),
        (lambda output: output.argmax(), "must give one floating-point scalar"),
        ([0, difference, 7], "target 7 is out of range"),
    ],
)
def test_errors(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        explain(MODEL, IMAGES, target)


def test_class_of_a_dense_output_is_ambiguous() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for target in (None, 2, [0, 1, 2]):
        with pytest.raises(TargetError, match=r"shape \(3, 4, 6, 6\): more than one value per class. Give a callable"):
            explain(model, IMAGES, target)


OPTION = Options(seed=3, norm="affine", stride=2)


def test_several_targets_share_one_forward_and_give_what_each_gives_alone() -> None:
    model, seen = build("resnet", OPTION), images(OPTION)
    runs = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    cam = IntegrativeCAM(model)
    asked: list[Any] = [None, 1, [2, 0], lambda output: output[0] - output[1]]
    together = cam.explain_targets(seen, asked)
    assert len(runs) == 1
    handle.remove()
    for found, target in zip(together, asked, strict=True):
        alone = cam(seen, target)
        for name in ("map", "weights", "score"):
            assert torch.equal(getattr(found, name), getattr(alone, name))
        assert torch.equal(found.completeness.bias, alone.completeness.bias)
        assert found.target_names == alone.target_names
    assert not torch.equal(together[0].map, together[1].map)


@pytest.mark.parametrize("name", ["integrative", "winsorcam"])
def test_a_number_of_targets_means_the_highest_classes(name: str) -> None:
    model, seen = build("plain", OPTION), images(OPTION)
    found = get_method(name).explain_targets(model, seen, 2)
    order = model(seen).detach().argsort(1, descending=True)
    assert [each.target.tolist() for each in found] == order[:, :2].T.tolist()
    torch.testing.assert_close(found[1].map, get_method(name)(model, seen, order[:, 1]).map)
    assert len(get_method(name).explain_targets(model, seen, 99)) == order.shape[1]


def test_equal_scores_are_taken_in_the_order_of_classes() -> None:
    assert [each.tolist() for each in top_classes(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4)] == [[1], [2], [4], [3]]


@pytest.mark.parametrize("targets", [[], 0, -1, True, "cat", 1.5, None])
def test_errors_of_several_targets(targets: Any) -> None:
    with pytest.raises(TargetError, match="targets must be a sequence of targets or a number of classes >= 1"):
        IntegrativeCAM(build("plain", OPTION)).explain_targets(images(OPTION), targets)
    with pytest.raises(TargetError, match="targets must be a sequence of targets or a number of classes >= 1"):
        get_method("uniform").explain_targets(build("plain", OPTION), images(OPTION), targets)
