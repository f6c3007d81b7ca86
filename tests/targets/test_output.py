"""Outputs of any structure: what a target is given of them, and which tensor holds the scores of classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, targets
from integrative_cam.errors import OutputError, TargetError

torch.manual_seed(0)
NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
IMAGES = torch.rand(3, 1, 8, 8)
SCORES = NET(IMAGES).detach()
TEXTS = nn.Parameter(torch.rand(7, 3))


class Returning(nn.Module):
    """Returns what `make` makes of the scores, (batch, 3), and the images."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.make, self.texts = NET, make, TEXTS

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x), x)


def same_as_alone(model: nn.Module, target: Any, images: Tensor = IMAGES) -> Tensor:
    """The scores of a batch, after a check that each image alone has the same score and map."""
    together = explain(model, images, target)
    for index in range(len(images)):
        own = target[index] if isinstance(target, list) else target
        alone = explain(model, images[index : index + 1], own)
        torch.testing.assert_close(together.score[index], alone.score[0])
        torch.testing.assert_close(together.map[index], alone.map[0], atol=1e-5, rtol=1e-5)
    return together.score


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("kind", ["anchors", "texts"])
def test_what_was_not_computed_from_the_images_is_given_whole(count: int, kind: str) -> None:
    """Anchors, and features of texts, which may ask for gradients."""
    beside = torch.rand(1, count, 4) if kind == "anchors" else TEXTS[:count] * 2
    shapes = set()

    def target(output: Any) -> Tensor:
        shapes.add((tuple(output[0].shape), tuple(output[1].shape)))
        return output[0][1]

    found = same_as_alone(Returning(lambda scores, _: (scores, beside)), target)
    torch.testing.assert_close(found, SCORES[:, 1])
    assert shapes == {((3,), tuple(beside.shape))}
    torch.testing.assert_close(
        explain(Returning(lambda scores, _: (beside, scores)), IMAGES, 2, score="logit").score, SCORES[:, 2]
    )


@pytest.mark.filterwarnings("ignore:The map")
def test_as_many_texts_as_images_are_given_whole_with_a_warning() -> None:
    model = Returning(lambda scores, _: (scores, TEXTS[:3]))
    with pytest.warns(UserWarning, match=r"shape \(3, 3\) with as many rows .* not computed from them"):
        found = explain(model, IMAGES, lambda output: output[0] @ output[1][2])
    torch.testing.assert_close(found.score, SCORES @ TEXTS[2].detach())


def test_a_table_whose_second_axis_counts_images_is_not_split_along_the_first() -> None:
    """As of CLIP: likeness of each text with each image, here as many of both."""
    table = Returning(lambda scores, _: {"logits": scores, "by_text": (scores @ TEXTS[:3].T).T})
    per_image = [lambda output, own=index: output["by_text"][1, own] for index in range(3)]
    torch.testing.assert_close(explain(table, IMAGES, per_image).score, SCORES @ TEXTS[1].detach())
    with pytest.raises(TargetError, match="depends on other images of the batch"):
        explain(table, IMAGES, lambda output: output["by_text"][1].sum())


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda scores, _: (scores.mean(), scores), 1),
        (lambda scores, _: {"loss": scores.mean(), "scores": scores}, "scores"),
        (lambda scores, _: SimpleNamespace(loss=scores.mean(), scores=scores), "scores"),
    ],
    ids=["tuple", "dict", "object"],
)
def test_logits_behind_a_loss(make: Callable[[Tensor, Tensor], Any], key: Any) -> None:
    model = Returning(make)
    torch.testing.assert_close(same_as_alone(model, targets.part(key, 2)), SCORES[:, 2])
    torch.testing.assert_close(explain(model, IMAGES, score="logit").score, SCORES.amax(1))
    torch.testing.assert_close(explain(model, IMAGES, targets.contrast(1, 0)).score, SCORES[:, 1] - SCORES[:, 0])


def test_a_loss_of_the_batch_is_no_score_of_an_image() -> None:
    model = Returning(lambda scores, _: (scores.mean(), scores))
    with pytest.raises(TargetError, match=r"target <lambda> .* depends on other images .* Explain one image at a time"):
        explain(model, IMAGES, lambda output: output[0])
    torch.testing.assert_close(explain(model, IMAGES[:1], lambda output: output[0]).score, SCORES[:1].mean(1))


class Detector(nn.Module):
    """Lists dicts, one for each image: image i has i boxes, or all have as many as there are images."""

    def __init__(self, equal: bool) -> None:
        super().__init__()
        self.net, self.equal = NET, equal

    def forward(self, x: Tensor) -> Any:
        counts = [len(x)] * len(x) if self.equal else range(1, len(x) + 1)
        rows = [row.expand(count, -1) for row, count in zip(self.net(x), counts, strict=True)]
        return [{"boxes": row, "scores": row[:, 0], "labels": torch.zeros(len(row), dtype=int)} for row in rows]


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("equal", [True, False])
def test_lists_of_dicts_have_one_for_each_image(equal: bool) -> None:
    shapes = []

    def target(output: Any) -> Tensor:
        shapes.append((output["boxes"].ndim, output["labels"].ndim))
        return output["scores"][0]

    torch.testing.assert_close(same_as_alone(Detector(equal), target), SCORES[:, 0])
    torch.testing.assert_close(
        explain(Detector(equal), IMAGES, targets.part("boxes", targets.step(0, 2))).score, SCORES[:, 2]
    )
    assert set(shapes) == {(2, 1)}
    with pytest.raises((OutputError, TargetError)):
        explain(Detector(equal), IMAGES)


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_lists_of_layers_are_not_split_by_image(layers: int) -> None:
    """As many layers as images or not: of each layer one row."""
    model = Returning(
        lambda scores, _: {"logits": scores, "hidden": [scores * index for index in range(1, layers + 1)]}
    )
    found = same_as_alone(model, lambda output: output["hidden"][layers - 1][1])
    torch.testing.assert_close(found, SCORES[:, 1] * layers)


@pytest.mark.filterwarnings("ignore:The map")
def test_a_tensor_for_each_image_in_a_list() -> None:
    model = Returning(lambda scores, _: ({"sizes": "any"}, [row.expand(5, 3) for row in scores]))
    torch.testing.assert_close(same_as_alone(model, lambda output: output[1][4, 2]), SCORES[:, 2])


@pytest.mark.parametrize(
    ("make", "listed"),
    [
        (lambda scores, _: (scores[:, :2], scores), r"output\[0\] \(.*2,?\), output\[1\] \(.*3,?\)"),
        (lambda scores, _: {"boxes": scores, "found": 2 * scores}, r"output\['boxes'\] .* output\['found'\]"),
        (lambda scores, _: (scores / scores.norm(dim=1, keepdim=True), TEXTS, scores.exp()), r"output\[2\]"),
    ],
)
@pytest.mark.parametrize("target", [None, 1, [0, 1, 2], targets.probability(1)])
def test_of_several_tensors_none_is_guessed(make: Callable[[Tensor, Tensor], Any], listed: str, target: Any) -> None:
    with pytest.raises(TargetError, match=f"several tensors, and none is called logits: .*{listed}.* targets.part"):
        explain(Returning(make), IMAGES, target)


def test_taps_are_listed_whatever_the_output() -> None:
    model = Returning(lambda scores, _: (scores, 2 * scores))
    assert [tap.name for tap in IntegrativeCAM(model).taps(IMAGES)] == ["net.1"]


def test_an_entry_of_an_embedding_is_no_class() -> None:
    model = Returning(lambda scores, _: nn.functional.normalize(scores))
    for target in (lambda: explain(model, IMAGES), lambda: IntegrativeCAM(model).explain_targets(IMAGES, 2)):
        with pytest.raises(TargetError, match="rows of length 1: it is an embedding, which has no top class"):
            target()
    assert explain(model, IMAGES, 1).target_names == ("1", "1", "1")


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize(
    "fill",
    [
        lambda scores: torch.cat([scores, torch.full((len(scores), 1), 99.0)], 1),
        lambda scores: torch.cat([scores, scores.new_full((len(scores), 1), 99.0)], 1)[:, [0, 1, 2, 3]] * 2,
        lambda scores: nn.functional.pad(scores, (0, 1), value=99.0),
        lambda scores: nn.functional.pad(scores, (0, 1)).masked_fill(torch.tensor([False, False, False, True]), 99.0),
    ],
    ids=["cat", "index", "pad", "fill"],
)
def test_a_label_without_a_gradient_is_no_top_class(fill: Callable[[Tensor], Tensor]) -> None:
    model = Returning(lambda scores, _: fill(scores))
    assert explain(model, IMAGES).target.tolist() == SCORES.argmax(1).tolist()
    best = IntegrativeCAM(model).explain_targets(IMAGES, 4)
    assert [each.target.tolist() for each in best[:3]] == SCORES.argsort(1, descending=True).T.tolist()


def test_a_label_that_is_set_in_place_is_no_top_class() -> None:
    def filled(scores: Tensor, _: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 1] = 99
        return scores

    expected = SCORES.clone()
    expected[:, 1] = -torch.inf
    assert explain(Returning(filled), IMAGES).target.tolist() == expected.argmax(1).tolist()


def test_nothing_is_warned_of_where_all_is_known() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(
            Returning(lambda scores, _: (scores, torch.rand(1, 5, 4))), IMAGES, lambda output: output[0].exp().sum()
        )
