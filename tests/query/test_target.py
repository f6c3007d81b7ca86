"""What a question means on one network's output: classes, regions, boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from integrative_cam.errors import TargetError
from integrative_cam.models import Network, Preprocessing
from integrative_cam.query import Prediction, Question, ResolvedTarget, parse_target, resolve_targets
from integrative_cam.query._target import classes_named, combine_classes
from integrative_cam.targets._scoring import as_target

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
    assert classes_named(option, NETWORK) == classes


@pytest.mark.parametrize(("text", "meaning"), [("top1", 1), ("top12", 12), ("rum", (4,)), ("gin+3", (2, 3))])
def test_a_target_text_is_a_number_of_top_classes_or_names(text: str, meaning: int | tuple[int, ...]) -> None:
    assert parse_target(text, NETWORK) == meaning


@pytest.mark.parametrize("option", ["beer", "gin+beer", "gin+", "+", "top1", "gin+top1", ""])
def test_unknown_classes(option: str) -> None:
    with pytest.raises(TargetError, match="is no class of bar"):
        classes_named(option, NETWORK)


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
def test_sums_and_contrasts_of_classes(
    classes: tuple[int, ...], versus: str | None, label: str, score: float, against: tuple[int, ...]
) -> None:
    resolved = combine_classes(classes, versus, NETWORK)
    assert (resolved.label, resolved.classes, resolved.against, resolved.index) == (label, classes, against, None)
    assert callable(resolved.target)
    assert resolved.target(LOGITS).item() == pytest.approx(score)


def test_one_class_stays_an_index() -> None:
    resolved = combine_classes((3,), None, NETWORK)
    assert (resolved.target, resolved.index, resolved.label) == (3, 3, "tonic")


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
        combine_classes(classes, versus, NETWORK)


# Outputs of one photograph, 40 wide and 20 high, whose crop of 20 x 20 in the middle the network takes as 10 x 10.


def predicted(output: Tensor, task: str = "classification", labels: tuple[str, ...] = NETWORK.labels) -> Prediction:
    preprocessing = Preprocessing(resize=10, crop=(10, 10))
    photograph = Image.new("RGB", (40, 20), "grey")
    network = Network("bar", nn.Identity(), preprocessing, labels, task=task)
    return Prediction(network, photograph, preprocessing(photograph), output)


def resolve(question: Question, prediction: Prediction) -> list[ResolvedTarget]:
    question.check(prediction.network)
    return resolve_targets(question, prediction)


def value(resolved: ResolvedTarget, output: Tensor) -> float:
    return float(as_target(resolved.target, "target")(output))


def test_probability_of_one_class_and_of_a_label() -> None:
    output = torch.tensor([0.0, 0, float(torch.tensor(2.0).log())])
    (resolved,) = resolve(Question("2", probability=True), predicted(output))
    assert (value(resolved, output), resolved.label) == (pytest.approx(0.5), "the probability of gin, geneva")
    (resolved,) = resolve(Question("2", probability=True), predicted(output, "multi-label"))
    assert value(resolved, output) == pytest.approx(2 / 3)
    assert predicted(output, "multi-label").ranking.classes[0].value == pytest.approx(2 / 3)
    assert predicted(output).ranking.classes[0].value == pytest.approx(0.5)


def test_values_are_no_probabilities() -> None:
    output = torch.tensor([7.0])
    seen = predicted(output, "regression", ())
    (resolved,) = resolve(Question(negate=True), seen)
    assert (value(resolved, output), resolved.label, seen.ranking.measure) == (-7, "not value 0", "value")
    assert seen.ranking.classes[0].value == 7
    with pytest.raises(TargetError, match="bar gives 5 values: say which with --target"):
        resolve(Question(), predicted(LOGITS, "regression"))


def test_a_step() -> None:
    output = torch.stack([LOGITS, 10 * LOGITS, -LOGITS])
    (resolved,) = resolve(Question("3", versus="rum", step=1), predicted(output[1]))
    assert (value(resolved, output), resolved.label) == (-80, "tonic rather than rum at step 1")


# Classes C++, gin+tonic, gin: of 2 x 2 pixels, each half of the network's 10; the second row is rum's.
DENSE = torch.tensor([[[5.0, 1], [0, 0]], [[0, 3], [0, 0]], [[0.0, 0], [7, 9]]])


def test_segmentation_where_found_and_by_area() -> None:
    ranking = predicted(DENSE).ranking
    assert [(each.index, each.value) for each in ranking.classes] == [(2, 0.5), (0, 0.25), (1, 0.25)]
    (first, second) = resolve(Question("top2"), predicted(DENSE))
    assert (value(first, DENSE), first.outline.tolist()) == (8, [[False, False], [True, True]])
    assert (value(second, DENSE), second.outline.tolist()) == (5, [[True, False], [False, False]])
    assert (first.label, ranking.as_text(first.ranked.value)) == ("gin, geneva", "50.0%")
    (resolved,) = resolve(Question("geneva", versus="c++"), predicted(DENSE))
    assert value(resolved, DENSE) == 8 - 0
    with pytest.raises(TargetError, match=r"finds C\+\+ nowhere in this photograph \(but gin\+tonic, gin, geneva\)"):
        resolve(Question("0"), predicted(DENSE - torch.tensor([9.0, 0, 0])[:, None, None]))
    with pytest.raises(TargetError, match=r"--versus rest has no meaning for bar.*name the rival class"):
        resolve(Question("geneva", versus="rest"), predicted(DENSE))


@pytest.mark.parametrize(
    ("box", "score", "inside"),
    [
        # The network sees 10 to 30 across; a pixel of the output is 10 of the photograph.
        ("10,0,20,10", 1, [[True, False], [False, False]]),
        ("0,0,40,9", 2, [[True, True], [False, False]]),
        ("21,0,30,20", 6, [[False, True], [False, True]]),
    ],
)
def test_a_box_counts_pixels_of_the_photograph(box: str, score: float, inside: list[list[bool]]) -> None:
    output = DENSE.clone()
    output[1] = torch.tensor([[1.0, 3], [5, 9]])
    (resolved,) = resolve(Question("1", within=box), predicted(output))
    assert (resolved.outline.tolist(), value(resolved, output)) == (inside, score)
    assert resolved.label == f"gin+tonic within {box}"


def test_top_class_within_a_box_is_its_most_frequent() -> None:
    (resolved,) = resolve(Question(within="20,0,30,10"), predicted(DENSE))
    assert resolved.classes == (1,)
    with pytest.raises(TargetError, match="which covers 10,0,30,20 of the photograph"):
        resolve(Question(within="0,0,9,20"), predicted(DENSE))


def test_a_mask_is_the_photographs(tmp_path: Path) -> None:
    mask = Image.new("RGB", (40, 20))
    mask.paste((0, 0, 128), (20, 10, 40, 20))  # as dark as a mask's palette gets
    mask.save(tmp_path / "mask.png")
    (resolved,) = resolve(Question("2", within=str(tmp_path / "mask.png")), predicted(DENSE))
    assert (resolved.outline.tolist(), value(resolved, DENSE)) == ([[False, False], [False, True]], 9)
    Image.new("RGB", (20, 20), "white").save(tmp_path / "small.png")
    with pytest.raises(TargetError, match="must have the photograph's size, 40 x 20 pixels, but has 20 x 20"):
        resolve(Question("2", within=str(tmp_path / "small.png")), predicted(DENSE))


def test_an_image_that_the_network_makes() -> None:
    output = torch.arange(8.0).reshape(2, 2, 2)
    (resolved,) = resolve(Question(), predicted(output, "image", ()))
    assert (value(resolved, output), resolved.label, resolved.outline) == (3.5, "the output", None)
    (resolved,) = resolve(Question("1", within="20,0,30,20"), predicted(output, "image", ()))
    assert (value(resolved, output), resolved.label) == (6, "channel 1 of the output within 20,0,30,20")


def boxes(*found: tuple[int, int, float, list[float]]) -> Tensor:
    """FastestDet's output of 4 x 4 cells: (row, column, objectness, probabilities), boxes half of the input wide."""
    output = torch.zeros(5 + 3, 4, 4)
    for row, column, sure, classes in found:
        output[0, row, column] = sure
        output[5:, row, column] = torch.tensor(classes)
    return output


def detector(output: Tensor) -> Prediction:
    preprocessing = Preprocessing(resize=(64, 64), crop=(64, 64))
    photograph = Image.new("RGB", (128, 64))
    network = Network("eye", nn.Identity(), preprocessing, ("cat", "dog", "cow"), task="fastestdet")
    return Prediction(network, photograph, preprocessing(photograph), output)


# Centres (x, y) at (16, 16), (48, 48) and (32, 16); the last overlaps the first by a third, too little to be the same.
FOUND = boxes((1, 1, 1.0, [1.0, 0.5, 0]), (3, 3, 1.0, [0, 0.4, 0.2]), (1, 2, 0.2, [0.9, 0, 0]))


def test_detections_are_listed_best_first() -> None:
    ranking = detector(FOUND).ranking
    assert [each.index for each in ranking.classes] == [0, 1, 0]
    assert [each.value for each in ranking.classes] == pytest.approx([1, 0.4**0.4, 0.2**0.6 * 0.9**0.4])
    assert ranking.classes[0].box == pytest.approx((0, 0, 32, 32))
    assert ranking.classes[1].box == pytest.approx((32, 32, 64, 64))
    same = boxes((1, 1, 1.0, [1.0, 0, 0]), (1, 1, 1.0, [1.0, 0, 0]))
    same[:, 1, 2], same[1, 1, 2] = same[:, 1, 1] * 0.9, -0.5  # a shift of half a cell: overlap above 0.45
    assert len(detector(same).ranking.classes) == 1


def test_the_box_that_matches() -> None:
    seen = detector(FOUND)
    (resolved,) = resolve(Question("dog"), seen)
    assert (resolved.classes, resolved.outline) == ((1,), pytest.approx((0, 0, 32, 32)))  # 0.5 here, 0.4 there
    assert value(resolved, FOUND) == pytest.approx(0.5**0.4)
    (resolved,) = resolve(Question("dog", within="64,32,128,64"), seen)  # in pixels of the photograph, twice as wide
    assert value(resolved, FOUND) == pytest.approx(0.4**0.4)
    assert resolved.outline == pytest.approx((32, 32, 64, 64))
    (resolved,) = resolve(Question(within="64,32,128,64", versus="cow"), seen)
    assert (resolved.label, resolved.classes) == ("dog rather than cow within 64,32,128,64", (1,))
    assert value(resolved, FOUND) == pytest.approx(0.4**0.4 - 0.2**0.4)
    assert [each.classes for each in resolve(Question("top2"), seen)] == [(0,), (1,)]
    with pytest.raises(TargetError, match=r"no detected box overlaps it by 0.5 or more .*; the best has 0.25"):
        resolve(Question(within="0,0,32,16"), seen)


def test_boxes_go_to_the_photograph_and_back() -> None:
    seen = predicted(LOGITS)
    assert seen.to_photograph((0, 0, 10, 10)) == (10, 0, 30, 20)
    assert seen.to_input((12, 2, 20, 20)) == (1, 1, 5, 10)


def test_labels_of_a_pixel_do_not_exclude_each_other() -> None:
    seen = predicted(DENSE - 0.5, "multi-label")
    assert [(each.index, each.value) for each in seen.ranking.classes] == [(0, 0.5), (2, 0.5), (1, 0.25)]
