"""Data sets of any size in, tables and maps out: `icam run`."""

from __future__ import annotations

from .engine import Outcome, Progress, run
from .failures import DestinationError, Failure, SourceError
from .job import Job
from .patience import Patience
from .reader import Results

__all__ = [
    "DestinationError",
    "Failure",
    "Job",
    "Outcome",
    "Patience",
    "Progress",
    "Results",
    "SourceError",
    "run",
]
