"""What can go wrong with one image, what stops a run, and how often a source that does not answer is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from ..errors import CamError, InputError, first_line

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


Result = TypeVar("Result")

_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Answers; asking again gives the same one."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for an answer, in seconds, and how often to ask; `pause` s between, doubled each time."""

    timeout: float = 30.0
    attempts: int = 4
    pause: float = 1.0

    def __call__(self, read: Callable[[], Result], what: str) -> Result:
        """What `read` returns.

        Raises:
            MissingError: there is no `what`.
            SourceError: no attempt was answered in time.
            InputError: `read` finds that what came is wrong; asking again gives the same.
        """
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return in_time(read, self.timeout)
            except _FINAL as error:
                raise MissingError(f"{what}: {_said(error)}") from None
            except InputError:
                raise
            except Exception as error:  # each kind of source has errors of its own
                reason = _said(error)
        raise SourceError(f"{what}: no answer in {self.attempts} attempts ({reason})")


def in_time(read: Callable[[], Result], timeout: float) -> Result:
    """What `read` returns or raises, or TimeoutError; a thread that hangs is left behind, since nothing can stop it."""
    answer: Future[Result] = Future()

    def attempt() -> None:
        try:
            answer.set_result(read())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=attempt, daemon=True).start()
    if not wait([answer], timeout).done:
        raise TimeoutError(f"nothing came within {timeout:g} s")
    return answer.result()


def _said(error: BaseException) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
