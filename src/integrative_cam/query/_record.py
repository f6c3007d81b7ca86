"""The numbers of one explanation as plain values, as they are printed, stored and reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..explanation import Explanation
    from ._answer import Answer

RECORD = "record.json"
"""The file's name, beside the pictures of `icam explain`."""
CLASSES_LISTED = 5


def record_of(answer: Answer) -> dict[str, Any]:
    """What `icam explain` prints with --json and stores as RECORD, for one photograph and target.

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
    prediction, target, explanation = answer.prediction, answer.target, answer.explanation
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
        "method": answer.method,
        "named": answer.title,
        "target": {"index": target.index, "label": target.label, "classes": list(target.classes)},
        ranking.measure: target.ranked and target.ranked.value,
        "top": top,
        "score": parts.pop("score"),
        "parts": parts,
        "area_above_half": float(area_above_half(explanation.map)[0]),
        "guarded": int(explanation.clamped[0]),
        "layers": [layer.summary for layer in explanation.layers],
        "recipe": explanation.recipe and explanation.recipe.described(),
        "notes": list(answer.notes),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a folder that `icam explain` wrote; see `record_of`.

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
