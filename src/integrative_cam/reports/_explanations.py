"""The page of the explanations in a folder, those with the strongest reasons for a look first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import quote

from ..render._templates import environment
from ._cases import Case

SURE, UNSURE = 0.5, 0.3
"""A network is called sure at this confidence or more, unsure below the second."""
CLOSE = 0.05
"""A decision is close if the runner-up's probability is less than this below the best."""
BORDER, WIDE, UNEXPLAINED = 0.6, 0.5, 0.7
"""A reason if `Case.border`, `Case.area` or `Case.remainder` is above; a flat map has a border of 0.36."""


def html(cases: Sequence[Case], unread: Sequence[str], title: str, run: str = ".") -> str:
    """The cases as one HTML page that loads nothing: styles, script and thumbnails are inside.

    Names of files and classes are escaped. Cases are sorted by suspicion, then by name.

    Args:
        cases: the cases to show.
        unread: a line for each case that could not be read.
        title: the page's title, such as the folder's name.
        run: the folder of the run, relative to the folder of the page, for links to panels.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    pages = environment("integrative_cam.reports")
    pages.filters["percent"] = lambda value: f"{value:.0%}"
    pages.filters["link"] = lambda folder: quote(f"{run}/{folder}/panel.png")
    ranked = [(case, reasons(case)) for case in cases]
    ranked.sort(key=lambda pair: (-sum(reason.weight for reason in pair[1]), pair[0].image, pair[0].explained))
    known = [case.right for case in cases if case.right is not None]
    return pages.get_template("explanations.html.jinja").render(
        title=title,
        entries=[
            {
                "case": case,
                "name": PurePath(case.image).name,
                "reasons": why,
                "suspicion": sum(reason.weight for reason in why),
                "verdict": {True: "right", False: "wrong", None: "unknown"}[case.right],
            }
            for case, why in ranked
        ],
        classes=sorted({case.prediction for case in cases if case.prediction}),
        kinds=Counter(reason.kind for _, why in ranked for reason in why).most_common(),
        models=sorted({f"{case.model}, {case.method}" for case in cases}),
        accuracy=sum(known) / len(known) if known else None,
        judged=len(known),
        unread=unread,
    )


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
