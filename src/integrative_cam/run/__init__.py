"""Data sets of any size in, tables and maps out: `icam run`."""

from __future__ import annotations

from .._deprecation import deprecated_names
from ._engine import Outcome, Progress, run
from ._failures import DestinationError, Failure, RetryPolicy, SourceError
from ._job import Job
from ._reader import Results

__all__ = [
    "DestinationError",
    "Failure",
    "Job",
    "Outcome",
    "Progress",
    "Results",
    "RetryPolicy",
    "SourceError",
    "run",
]

__getattr__ = deprecated_names(__name__)
