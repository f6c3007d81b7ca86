"""From a question to answers and their records, on networks small enough to compute by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from integrative_cam import explain, get_method
from integrative_cam.errors import TargetError
from integrative_cam.models import Network, Preprocessing
from integrative_cam.query import (
    RECORD,
    Question,
    answer_question,
    area_above_half,
    predict,
    probabilities,
    rank_outputs,
    read_record,
    score_parts,
    short_name,
)

VIEW = Preprocessing(resize=16, crop=(16, 16))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(4, 3)
    nn.init.uniform_(head.weight)  # evidence for every class
    return nn.Sequential(*layers, head).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    noise = torch.randint(0, 256, (16, 20, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        ("classification", [0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]),
        ("classification", [0.0], [0.5]),
        ("multi-label", [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]),
        ("multi-label", [0.0], [0.5]),
        ("regression", [-3.0, 7.5], [-3.0, 7.5]),
    ],
)
def test_outputs_are_read_by_the_task(task: str, logits: list[float], expected: list[float]) -> None:
    assert probabilities(torch.tensor(logits), task).tolist() == pytest.approx(expected)
    batch = torch.tensor([logits, [value + 1 for value in logits]])
    assert probabilities(batch, task)[0].tolist() == pytest.approx(expected)
    assert rank_outputs(torch.tensor(logits), task).classes[0].value == pytest.approx(max(expected))


def test_half_precision_loses_no_small_probability() -> None:
    logits = torch.tensor([0.0, -30.0], dtype=torch.float16)
    assert float(probabilities(logits, "classification")[1]) == pytest.approx(float(torch.tensor(-30.0).double().exp()))


@pytest.mark.parametrize(
    ("task", "measure", "text"), [("multi-label", "probability", "50.0%"), ("regression", "value", "0")]
)
def test_a_value_as_text(task: str, measure: str, text: str) -> None:
    ranking = rank_outputs(torch.zeros(2), task)
    assert (ranking.measure, ranking.as_text(ranking.classes[0].value)) == (measure, text)


def test_answers_are_what_the_package_explains(model: nn.Module, file: Path) -> None:
    network = Network("tiny", model, VIEW, ("cat", "dog", "owl, bird"))
    prediction = predict(file, network)
    logits = model(prediction.view.tensor)[0].detach()
    assert torch.equal(prediction.output, logits)
    answers = answer_question(Question("top2"), prediction, get_method("gradcam"))
    assert [answer.target.index for answer in answers] == logits.topk(2).indices.tolist()
    for answer in answers:
        expected = get_method("gradcam")(model, prediction.view.tensor, answer.target.index)
        torch.testing.assert_close(answer.explanation.map, expected.map)
        probability = float(logits.double().softmax(0)[answer.target.index])
        assert answer.title == f"{network.label(answer.target.index)} {probability:.1%}"


def test_the_record_of_an_answer(model: nn.Module, file: Path) -> None:
    network = Network("tiny", model, VIEW, ("cat", "dog", "owl, bird"), task="multi-label")
    prediction = predict(file, network)
    (answer,) = answer_question(Question("bird"), prediction, get_method("integrative"))
    record = answer.record
    logits = prediction.output
    explanation = explain(model, prediction.view.tensor, 2, score="logit")
    assert (record["image"], record["size"], record["seen"]) == (str(file), [20, 16], [2, 0, 18, 16])
    assert record["target"] == {"index": 2, "label": "owl, bird", "classes": [2]}
    assert record["probability"] == pytest.approx(float(logits[2].double().sigmoid()))
    assert [entry["index"] for entry in record["top"]] == logits.argsort(descending=True).tolist()
    assert record["top"][0]["probability"] == pytest.approx(float(logits.max().double().sigmoid()))
    assert record["score"] == pytest.approx(float(logits[2]), rel=1e-5)
    assert sum(record["parts"].values()) == pytest.approx(record["score"], rel=1e-4)
    assert record["area_above_half"] == pytest.approx(float((explanation.map > 0.5).double().mean()))
    assert [layer["name"] for layer in record["layers"]] == [layer.name for layer in explanation.layers]
    (file.parent / RECORD).write_text(json.dumps(record))
    assert read_record(file.parent) == record


def test_parts_and_area_are_of_one_sample(model: nn.Module) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    explanation = explain(model, images, 1)
    alone = explain(model, images[1:], 1)
    for name, values in score_parts(explanation).items():
        assert values[1:] == pytest.approx(score_parts(alone)[name], abs=1e-5)
    assert score_parts(explanation)["score"][0] != pytest.approx(score_parts(alone)["score"][0], abs=1e-5)
    maps = torch.zeros(2, 4, 5)
    maps[1, :2] = 0.6
    maps[1, 3] = 0.5
    assert area_above_half(maps).tolist() == [0, 0.5]


def test_a_step_is_one_of_the_outputs(model: nn.Module, file: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.body(images)
            return torch.stack([logits, -logits], 1)

    network = Network("steps", Twice().eval(), VIEW)
    (answer,) = answer_question(Question("1", step=-1), predict(file, network, -1), get_method("gradcam"))
    assert float(answer.explanation.score) == pytest.approx(
        -model(answer.prediction.view.tensor)[0, 1].item(), rel=1e-5
    )
    assert answer.target.label == "class 1 at step -1"
    with pytest.raises(TargetError, match=r"--step 2 needs an output of \(step, class\) with that many steps"):
        predict(file, network, 2)


@pytest.mark.parametrize(
    ("named", "short"),
    [
        ("tiger cat 39.5%", "tiger cat 39.5%"),
        ("grey fox, gray fox, Urocyon 96.7%", "grey fox 96.7%"),
        ("cougar, puma rather than jaguar, panther", "cougar rather than jaguar"),
        ("tabby, tabby cat + lynx, catamount rather than the rest", "tabby + lynx rather than the rest"),
    ],
)
def test_pictures_name_a_class_by_its_first_name(named: str, short: str) -> None:
    assert short_name(named) == short


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)])
def test_a_network_of_probabilities_has_its_own_probabilities(model: nn.Module, file: Path, end: nn.Module) -> None:
    """Not their softmax; and its map is that of the logits."""
    prediction = predict(file, Network("tiny", nn.Sequential(model, end), VIEW))
    task = "multi-label" if isinstance(end, nn.Sigmoid) else "classification"
    plain = predict(file, Network("tiny", model, VIEW, task=task))
    torch.testing.assert_close(prediction.output, plain.output)
    p = plain.output.double().sigmoid() if isinstance(end, nn.Sigmoid) else plain.output.double().softmax(0)
    assert [entry.value for entry in prediction.ranking.classes] == pytest.approx(p.sort(descending=True)[0].tolist())
    (found,), (expected,) = (
        answer_question(Question(), each, get_method("integrative")) for each in (prediction, plain)
    )
    torch.testing.assert_close(found.explanation.map, expected.explanation.map)
    first, *others = plain.output.double().sort(descending=True)[0]
    rivals = (torch.stack(others) / 2).softmax(0) @ torch.stack(others)
    score = first if isinstance(end, nn.Sigmoid) else first - 0.8 * rivals
    assert found.explanation.score.item() == pytest.approx(float(score))


def test_probabilities_out_of_reach_are_the_networks_own(model: nn.Module, file: Path) -> None:
    """Made without softmax: of classes, and of labels behind thresholds."""

    class Ending(nn.Module):
        def __init__(self, of_labels: bool) -> None:
            super().__init__()
            self.model, self.of_labels = model, of_labels

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.model(x)
            if not self.of_labels:
                return x.exp() / x.exp().sum(1, keepdim=True)
            p = x.sigmoid()
            return torch.where(p < 0.3, p / 0.6, 1 - (1 - p) / 1.4)

    for of_labels in (False, True):
        network = Ending(of_labels).eval()
        prediction = predict(file, Network("tiny", network, VIEW))
        p = network(prediction.view.tensor)[0].detach().sort(descending=True)[0].tolist()
        assert [entry.value for entry in prediction.ranking.classes] == pytest.approx(p, rel=1e-5)
        (answer,) = answer_question(Question(), prediction, get_method("integrative"))
        assert any("are probabilities" in note for note in answer.notes)


def test_a_value_between_0_and_1_stays_a_value(model: nn.Module, file: Path) -> None:
    network = nn.Sequential(model, nn.Sigmoid())
    prediction = predict(file, Network("ages", network, VIEW, task="regression"))
    assert torch.equal(prediction.output, network(prediction.view.tensor)[0].detach())


def test_a_label_without_a_name_is_no_top_class(model: nn.Module, file: Path) -> None:
    logits = predict(file, Network("tiny", model, VIEW)).output
    first, second = logits.argsort(descending=True).tolist()[:2]
    labels = tuple("" if index == first else f"finding {index}" for index in range(3))
    prediction = predict(file, Network("tiny", model, VIEW, labels))
    assert prediction.ranking.classes[0].index == second
    (answer,) = answer_question(Question(), prediction, get_method("integrative"))
    assert answer.target.index == second
    (asked,) = answer_question(Question(str(first)), prediction, get_method("integrative"))
    assert asked.target.index == first
