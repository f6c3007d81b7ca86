"""Reasons why a case deserves a look, with weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ._cases import Case

SURE, UNSURE = 0.5, 0.3
"""A network is called sure at this confidence or more, unsure below the second."""
CLOSE = 0.05
"""A decision is close if the runner-up's probability is less than this below the best."""
BORDER, WIDE, UNEXPLAINED = 0.6, 0.5, 0.7
"""A reason if `Case.border`, `Case.area` or `Case.remainder` is above; a flat map has a border of 0.36."""


@dataclass(frozen=True)
class Reason:
    """A short name to filter by, a sentence, and a weight; cases are ranked by the sum of their weights."""

    kind: str
    text: str
    weight: float


def reasons(case: Case) -> list[Reason]:
    """The reasons that apply to a case, heaviest first."""
    return sorted(_reasons(case), key=lambda reason: -reason.weight)


def _reasons(case: Case) -> Iterator[Reason]:
    sure = case.confidence
    if case.right is False:
        how = "" if sure is None else f" with {sure:.0%}"
        said = f"says {case.prediction.split(',')[0]}{how}, but is {' or '.join(case.truth)}"
        confident = sure is not None and sure >= SURE
        # The surer, the worse.
        yield Reason("confident and wrong" if confident else "wrong", said, (3 if confident else 2) + (sure or 0))
    if case.area == 0:
        yield Reason("blank map", "no evidence for the target in any layer", 2)
    elif case.on_object is not None and case.object_area is not None and case.on_object < case.object_area:
        text = f"{case.on_object:.0%} of the evidence lies on the object, which fills {case.object_area:.0%}"
        yield Reason("off the object", text, 1.5)
    if case.border > BORDER:
        yield Reason("at the border", f"{case.border:.0%} of the evidence lies in the outer tenth at each side", 1)
    if case.area > WIDE:
        yield Reason("wide map", f"{case.area:.0%} of the picture is above half of the maximum", 1)
    if sure is not None and sure < UNSURE:
        yield Reason("unsure", f"the best class has {sure:.0%} only", 0.5)
    elif sure is not None and case.runner_up is not None and sure - case.runner_up < CLOSE:
        yield Reason("close", f"the runner-up has {case.runner_up:.0%}, the best class {sure:.0%}", 0.5)
    if case.remainder > UNEXPLAINED:
        text = f"{case.remainder:.0%} of the score's parts is remainder: input and biases say little of it"
        yield Reason("large remainder", text, 0.5)
