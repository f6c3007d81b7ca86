"""`icam report`: the explanations of a run as one HTML file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..reports import cases_of_explanations, html, read_truth
from ..storage import written_whole

CLASSES_LISTED = 5
"""True classes that the message about a --truth that never agrees names at most."""


def write_report(folder: Path, truth: str | None, file: Path | None) -> None:
    """Write the page and print where it is; explanations that cannot be read are named on standard error too."""
    truths = read_truth(truth)
    cases, unread = cases_of_explanations(folder, truths)
    place = file or folder / "report.html"
    run = Path(os.path.relpath(folder.resolve(), place.resolve().parent)).as_posix()
    written_whole(place, html(cases, unread, folder.resolve().name, run))
    judged = [case for case in cases if case.right is not None]
    if judged and not any(case.right for case in judged):
        classes = list(dict.fromkeys(name for case in judged for name in case.truth))
        print(
            f"icam: no prediction agrees with --truth {truth}: {', '.join(classes[:CLASSES_LISTED])}. Its classes must "
            "be indices of the network's classes, or names as the network has them.",
            file=sys.stderr,
        )
    for line in unread:
        print(f"icam: {line}", file=sys.stderr)
    print(f"{len(cases)} explanations, {place.stat().st_size / 2**20:.1f} MB.\nWritten:\n  {place}")
