"""The answer to a question: each target of a photograph with its explanation, and the record of its numbers."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..explanation import Explanation
from ..methods._registry import Method
from ._prediction import ONNX_WARNING, Prediction
from ._target import Question, ResolvedTarget, resolve_targets

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RECORD = "record.json"
"""The record's file, beside the pictures of `icam explain`."""
CLASSES_LISTED = 5


@dataclass(frozen=True)
class Answer:
    """One explained target of one photograph.

    Attributes:
        prediction: the photograph, the network and what it predicts.
        target: what is explained.
        explanation: of this one photograph.
        method: the method's name.
        notes: warnings that the explanation gave.
    """

    prediction: Prediction
    target: ResolvedTarget
    explanation: Explanation
    method: str
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is explained, in words; one class with its predicted value, such as "tabby 62.1%"."""
        ranked = self.target.ranked
        if ranked is None:
            return self.target.label
        return f"{self.target.label} {self.prediction.ranking.as_text(ranked.value)}"

    @property
    def record(self) -> dict[str, Any]:
        """The numbers as plain values, as `icam explain` prints them with --json and stores them in RECORD.

        Keys:
            image, size: the photograph's file, and its (width, height) in pixels.
            seen: the region of it that the network saw, (left, top, right, bottom) in its pixels.
            model, task, classes, method: the network's name, task and number of classes, and the method's name.
            named, target: what is explained, in words and as index, label and class indices.
            probability (or area, value, score): of the class that is explained; None for several.
            top: the first CLASSES_LISTED classes of the network's ranking; boxes in pixels of the photograph.
            score, parts: the explained score and its parts; see `score_parts`.
            area_above_half: see `area_above_half`.
            guarded: entries of the feature maps where the pole guard limited alpha.
            layers, recipe: see `Layer.summary` and `Recipe`.
            notes: warnings of the explanation.
        """
        prediction, target, explanation = self.prediction, self.target, self.explanation
        network, ranking = prediction.network, prediction.ranking
        top = ranking.as_records(network, CLASSES_LISTED)
        for entry, ranked in zip(top, ranking.classes, strict=False):
            if ranked.box is not None:
                entry["box"] = list(prediction.to_photograph(ranked.box))
        parts = {name: values[0] for name, values in score_parts(explanation).items()}
        return {
            "image": prediction.file,
            "size": list(prediction.photograph.size),
            "seen": list(prediction.view.region),
            "model": network.name,
            "task": network.task,
            "classes": len(prediction.output.reshape(len(prediction.output), -1)),
            "method": self.method,
            "named": self.title,
            "target": {"index": target.index, "label": target.label, "classes": list(target.classes)},
            ranking.measure: target.ranked and target.ranked.value,
            "top": top,
            "score": parts.pop("score"),
            "parts": parts,
            "area_above_half": float(area_above_half(explanation.map)[0]),
            "guarded": int(explanation.clamped[0]),
            "layers": [layer.summary for layer in explanation.layers],
            "recipe": explanation.recipe and explanation.recipe.described(),
            "notes": list(self.notes),
        }


def answer_question(question: Question, prediction: Prediction, method: Method) -> list[Answer]:
    """Explain each target that the question means for the photograph.

    Args:
        question: what to explain.
        prediction: from `predict`, with the question's step.
        method: from `get_method`.

    Raises:
        TargetError: see `resolve_targets`.
        CamError: the method cannot explain the network.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=ONNX_WARNING)
        resolved = resolve_targets(question, prediction)
        explanations = method.for_task(prediction.network.task).explain_targets(
            prediction.network.model, prediction.view.tensor, [each.target for each in resolved]
        )
    notes = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return [
        Answer(prediction, target, explanation, method.name, notes)
        for target, explanation in zip(resolved, explanations, strict=True)
    ]


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a folder that `icam explain` wrote; see `Answer.record`.

    Raises:
        OSError, ValueError: it cannot be read, or is not JSON.
    """
    record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    return record


def score_parts(explanation: Explanation) -> dict[str, list[float]]:
    """Each image's score, and its parts from the input, the biases and the remainder, which sum to it."""
    parts = explanation.completeness
    return {name: getattr(parts, name).tolist() for name in ("score", "input", "bias", "remainder")}


def area_above_half(maps: Float[Tensor, "batch *space"]) -> Float[Tensor, "batch"]:
    """The share of each map, 0 to 1, that is above half of the maximum 1."""
    return (maps > 0.5).flatten(1).double().mean(1)


def short_name(label: str) -> str:
    """A target in words with only the first of each class's synonyms: "tabby" of "tabby, tabby cat"."""
    return re.sub(r", .*?(?= rather than | \+ | [0-9.]+%$|$)", "", label)
