"""The answer to a question: each target of a photograph with its explanation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from ..explanation import Explanation
from ..methods._registry import Method
from ._prediction import ONNX_WARNING, Prediction
from ._record import record_of
from ._target import Question, ResolvedTarget, resolve_targets


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
        """The answer's numbers as plain values for JSON; see `query.record_of`."""
        return record_of(self)


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
        explanations = method.explain_targets(
            prediction.network.model, prediction.view.tensor, [each.target for each in resolved]
        )
    notes = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return [
        Answer(prediction, target, explanation, method.name, notes)
        for target, explanation in zip(resolved, explanations, strict=True)
    ]
