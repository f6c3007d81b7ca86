"""The page of the explanations in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from urllib.parse import quote

from ..render._templates import environment
from ._cases import Case
from ._suspicion import reasons


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
    found = [(case, reasons(case)) for case in cases]
    found.sort(key=lambda pair: (-sum(reason.weight for reason in pair[1]), pair[0].image, pair[0].explained))
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
            for case, why in found
        ],
        classes=sorted({case.prediction for case in cases if case.prediction}),
        kinds=Counter(reason.kind for _, why in found for reason in why).most_common(),
        models=sorted({f"{case.model}, {case.method}" for case in cases}),
        accuracy=sum(known) / len(known) if known else None,
        judged=len(known),
        unread=unread,
    )
