"""What the options of `icam explain` ask for: --target, --versus, --within, --step, for each kind of output."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np
import torch
from torch import nn

with harness.instrumented():
    from PIL import Image

    from integrative_cam.methods._registry import get_method
    from integrative_cam.models import Network, Preprocessing
    from integrative_cam.query import Prediction, Question, resolve_targets
    from integrative_cam.run import Job
    from integrative_cam.targets._scoring import as_target

PHOTOGRAPH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
MASK, SMALL = harness.WORK / "mask.png", harness.WORK / "small.png"
PHOTOGRAPH.save(MASK)
Image.new("L", (3, 3)).save(SMALL)
LABELS = ("cat", "dog, hound", "crane", "crane", "a+b", "[/x]")
WORDS = (
    *("cat", "dog", "hound", "crane", "a+b", "top1", "top3", "top0", "top", "+", "-1", "0", "5", "6", "999", "²"),
    *("--1", "runner-up", "rest", "1,2,20,20", "0,0,40,30", "nan,0,1,1", "-inf,-inf,inf,inf", "1e9,1e9,2e9,2e9"),
    *("5,5,1,1", "9" * 5000, str(MASK), str(SMALL), str(harness.WORK), "a" * 5000, "\0", "top" + "9" * 5000, "top٣"),
)
OUTPUTS = {
    "classification": [(6,), (1,), (6, 5, 7), (3, 6), (2, 6, 5, 7)],
    "multi-label": [(6,), (6, 5, 7)],
    "regression": [(1,), (6,)],
    "image": [(3, 8, 8), (1, 8, 8)],
    "fastestdet": [(11, 3, 3)],
}


def attempt(data: bytes) -> None:
    """One question about one kind of output; each resolved target gives one number."""
    choices = harness.chosen(data)
    task = choices.PickValueInList(sorted(OUTPUTS))
    shape = choices.PickValueInList(OUTPUTS[task])
    network = Network(
        "m", nn.Identity(), Preprocessing(20, (20, 20)), LABELS if choices.ConsumeBool() else (), task=task
    )
    output = torch.randn(shape, generator=torch.Generator().manual_seed(choices.ConsumeIntInRange(0, 9)))
    output = output - 9 * choices.ConsumeIntInRange(0, 1)
    question = Question(
        target=_words(choices) or "top1",
        versus=_words(choices) if choices.ConsumeBool() else None,
        within=_words(choices) if choices.ConsumeBool() else None,
        probability=choices.ConsumeBool(),
        step=choices.ConsumeIntInRange(-9, 9) if choices.ConsumeIntInRange(0, 3) == 0 else None,
        negate=choices.ConsumeBool(),
    )
    Job("s", "d", "m", get_method("integrative"), target=question.target).targets(network)
    question.check(network)
    seen = output
    if question.step is not None:
        if output.ndim < 2 or not -len(output) <= question.step < len(output):
            return  # an error of `predict`
        seen = output[question.step]
    prediction = Prediction(network, PHOTOGRAPH, network.preprocessing(PHOTOGRAPH), seen)
    resolved = resolve_targets(question, prediction)
    assert resolved, "nothing is explained, without an error"
    for each in resolved:
        score = as_target(each.target, "target")(output)
        assert score.ndim == 0, score.shape


def _words(choices: Any) -> str:
    if choices.ConsumeIntInRange(0, 4) == 0:
        return str(choices.ConsumeUnicodeNoSurrogates(12))
    parts = [choices.PickValueInList(list(WORDS)) for _ in range(choices.ConsumeIntInRange(1, 2))]
    return "+".join(parts)


if __name__ == "__main__":
    harness.fuzz(attempt, harness.noise(60, 40))
