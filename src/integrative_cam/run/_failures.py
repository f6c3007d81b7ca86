"""What can go wrong with one image, and what stops a run."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CamError

KINDS: dict[str, str] = {
    "image": "no image that can be read",
    "explain": "the network's output for it cannot be explained",
    "missing": "the source has no such file",
    "source": "the source did not answer",
    "memory": "out of memory with this image alone",
    "worker": "the process that decoded it died, twice",
}
PASSING = frozenset({"missing", "source", "memory", "worker"})
"""Kinds that may be gone the next time: the same command tries these images again."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be explained; `kind` is one of KINDS."""

    key: str
    kind: str
    reason: str

    @property
    def passing(self) -> bool:
        """Whether another try makes sense."""
        return self.kind in PASSING


class SourceError(CamError, OSError):
    """A source did not answer, in spite of several attempts, or has no such file."""


class MissingError(SourceError):
    """The source answered that there is no such file, or that it may not be read."""


class DestinationError(CamError, OSError):
    """The destination cannot be written: the disk is full, or writing is not allowed."""
