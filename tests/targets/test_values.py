"""Similarity, steps and parts: by hand, and how one sample of a structured output is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import AS_THEY_ARE, examples
from reference import targets as reference
from torch import Tensor, nn

from integrative_cam import explain
from integrative_cam.errors import TargetError
from integrative_cam.targets import contrast, logits_of, part, sample_of, similarity, step, total

few = examples(40)
STEPS = torch.tensor([[1.0, 2, 3], [4, 6, 9]])
vectors = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=5)


def test_similarity_by_hand() -> None:
    embedding = torch.tensor([3.0, 4.0], requires_grad=True)
    found = similarity(torch.tensor([8.0, 6.0]))(embedding)
    assert found.item() == pytest.approx(24 / 25)
    # (r / |r| - cosine * e / |e|) / |e|: (0.8 - 0.96 * 0.6, 0.6 - 0.96 * 0.8) / 5.
    torch.testing.assert_close(torch.autograd.grad(found, embedding)[0], torch.tensor([0.0448, -0.0336]))
    assert similarity(torch.tensor([[8.0], [6.0]]))(torch.tensor([[-8.0], [-6.0]])).item() == pytest.approx(-1)


@few
@given(vectors)
def test_similarity_against_the_twin(pairs: list[tuple[float, float]]) -> None:
    left, right = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs, strict=True))
    if left.norm() > 0.1 and right.norm() > 0.1:
        assert similarity(right)(left).item() == pytest.approx(
            reference.cosine(left.tolist(), right.tolist()), abs=1e-9
        )


def test_the_reference_is_a_constant() -> None:
    reference_embedding = torch.ones(2, requires_grad=True)
    target = similarity(reference_embedding * 1)
    with torch.no_grad():
        reference_embedding.zero_()
    embedding = torch.tensor([1.0, 0.0], requires_grad=True)
    found = target(embedding)
    assert found.item() == pytest.approx(0.5**0.5)
    found.backward()
    assert reference_embedding.grad is None


def test_an_image_is_most_like_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images = torch.randn(3, 3, 8, 8)
    found = explain(model, images, similarity(model(images)[1]))
    assert found.score[1].item() == pytest.approx(1)
    assert found.score.argmax() == 1
    assert found.target_names == ("similarity",) * 3


@pytest.mark.parametrize(
    ("target", "score", "name"),
    [
        (step(1, 2), 9, "2 at step 1"),
        (step(-1, 0), 4, "0 at step -1"),
        (step(-2, contrast(2, 1)), 1, "2 - 1 at step -2"),
        (step(2, 1, axis=1), 9, "1 at step 2"),
        (step(0, 1, axis=-1), 4, "1 at step 0"),
        (total([step(0, 0), step(1, 1)]), 7, "0 at step 0 + 1 at step 1"),
    ],
)
def test_steps_by_hand(target: Callable[[Any], Tensor], score: float, name: str) -> None:
    assert target(STEPS).item() == score
    assert target.__name__ == name


def test_steps_and_heads_in_a_model() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Conv1d(2, 4, 3, padding=1)

        def forward(self, signal: Tensor) -> dict[str, Any]:
            found = self.filters(signal).relu().transpose(1, 2)
            return {"heads": (found, found.mean(1)), "length": signal.shape[2]}

    torch.manual_seed(1)
    model, signals = Reader(), torch.randn(2, 2, 9)
    output = model(signals)["heads"][0].detach()
    channel = int(output[:, 4].amin(0).argmax())
    found = explain(model, signals, part("heads", part(0, step(4, channel))), bias="none", **AS_THEY_ARE)
    torch.testing.assert_close(found.score, output[:, 4, channel])
    assert found.target_names == (f"{channel} at step 4 of 0 of heads",) * 2
    # Nothing but the step itself lies between the only activation and the score.
    assert (found.map > 0).nonzero()[:, 1].unique().tolist() == [4]
    pooled = explain(model, signals, part("heads", part(1, channel)))
    torch.testing.assert_close(pooled.score, output.mean(1)[:, channel])


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    """No mapping, no tuple, no field `logits`."""

    scores: Tensor
    names: str


def test_one_sample_keeps_the_structure() -> None:
    batch = torch.arange(6.0).reshape(3, 2)
    found = sample_of({"a": [batch, (batch + 1, None)], "loss": torch.tensor(5.0), "name": "x"}, 1)
    assert found["a"][0].tolist() == [2, 3]
    assert found["a"][1][0].tolist() == [3, 4]
    assert found["a"][1][1] is None
    assert found["loss"].item() == 5
    assert found["name"] == "x"
    pair = sample_of(Pair(batch, batch * 2), 2)
    assert isinstance(pair, Pair)
    assert pair.second.tolist() == [8, 10]
    record = sample_of(Record(batch, "ab"), 0)
    assert isinstance(record, Record)
    assert record.scores.tolist() == [0, 1]
    assert record.names == "ab"
    assert logits_of(Record(batch, "ab")) is batch


def test_hugging_face_outputs_keep_their_attributes() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images: Tensor) -> Any:
            found = self.layers(images)
            return outputs.ImageClassifierOutput(loss=found.sum(), logits=found, hidden_states=(found * 2,))

    torch.manual_seed(0)
    model, images = Model(), torch.randn(2, 3, 8, 8)
    logits = model(images).logits.detach()
    by_attribute = explain(model, images, lambda output: output.logits[1] + output.hidden_states[0][2])
    torch.testing.assert_close(by_attribute.score, logits[:, 1] + 2 * logits[:, 2])
    by_key = explain(model, images, lambda output: output["logits"][1])
    torch.testing.assert_close(by_key.score, logits[:, 1])
    composed = explain(model, images, part("hidden_states", part(0, contrast(2, 1))))
    torch.testing.assert_close(composed.score, 2 * (logits[:, 2] - logits[:, 1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: similarity([1.0, 2.0]), "reference must be a floating-point tensor, .* but got list"),
        (lambda: similarity(torch.tensor([1, 2])), "but got torch.int64"),
        (lambda: similarity(torch.zeros(3)), "reference must be finite and not zero everywhere"),
        (lambda: similarity(torch.tensor([1.0, float("nan")])), "reference must be finite"),
        (lambda: similarity(torch.ones(2, 3))(torch.ones(3)), r"embedding, \(3,\), but has \(2, 3\); take one sample"),
        (lambda: step(2, 0)(STEPS), r"number 2 is out of range: axis 0 .* \(2, 3\), has 2 steps, 0 to 1"),
        (lambda: step(-3, 0)(STEPS), "number -3 is out of range"),
        (lambda: step(0, 3)(STEPS), "of 3 is out of range: the model has 3 outputs"),
        (lambda: step(0, 0, axis=2)(STEPS), r"axis 2 is out of range: the output has 2 axes, shape \(2, 3\)"),
        (lambda: step(0.5, 0), "number must be an integer, but got 0.5"),
        (lambda: part("b", 0)({"a": STEPS}), "key 'b' names no part of a sample's output, which is a dict with 'a'"),
        (lambda: part(2, 0)((STEPS, STEPS)), "key 2 names no part of .* a tuple of 2"),
        (lambda: part("shape", 0)(STEPS), r"key 'shape' names no part of .* a tensor of shape \(2, 3\)"),
        (lambda: part("b", 0)(Record(STEPS, "")), "Record with 'scores', 'names'"),
        (lambda: part("b", 0)(0.5), "a sample's output, which is float"),
        (lambda: part("a", "b"), "of must be a class index or a callable, but got 'b'"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make()
