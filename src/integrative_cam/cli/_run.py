"""`icam run`: a whole data set, resumable, on this machine or on a Ray cluster."""

from __future__ import annotations

import sys
from collections import Counter

from ..run import Job, Outcome
from ..run import run as conduct
from ._printed import progress_bar

SHOWN = 20
"""Failures that are named on standard error; all are in the file."""


def run_job(job: Job, engine: str, workers: int | None, address: str | None) -> int:
    """Run the job with a progress bar on standard error; the exit code that the command's help explains."""
    with progress_bar("Explaining") as report:
        outcome = conduct(job, engine, workers, address, report)  # type: ignore[arg-type]
    return _told(outcome, job)


def _told(outcome: Outcome, job: Job) -> int:
    """Print what became of the run; its exit code."""
    before = f", {outcome.found} of them by an earlier run" if outcome.found else ""
    print(f"{outcome.images} images explained{before}: {outcome.rows} rows in {job.dest}")
    if outcome.batch_reductions:
        print(f"Batches halved because memory ran out: {outcome.batch_reductions}. A smaller --batch avoids that.")
    if outcome.decoder_deaths:
        print(f"Decoding processes that died and were replaced: {outcome.decoder_deaths}")
    for failure in outcome.failures[:SHOWN]:
        print(f"icam: {failure.key}: {failure.reason}", file=sys.stderr)
    if len(outcome.failures) > SHOWN:
        print(f"icam: ... and {len(outcome.failures) - SHOWN} more", file=sys.stderr)
    if outcome.failures:
        kinds = Counter(failure.kind for failure in outcome.failures)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        again = any(failure.passing for failure in outcome.failures)
        hint = " The same command tries again those that may be had another time." if again else ""
        print(f"icam: {len(outcome.failures)} failed ({counts}); see {job.dest}/failures.csv.{hint}", file=sys.stderr)
    if outcome.unfinished:
        for reason in dict.fromkeys(reason for reason in outcome.unfinished.values() if reason != "not reached"):
            print(f"icam: {reason}", file=sys.stderr)
        print(
            f"icam: {len(outcome.unfinished)} of {outcome.parts} parts are not finished; run the same command again "
            "to continue.",
            file=sys.stderr,
        )
    return outcome.code
