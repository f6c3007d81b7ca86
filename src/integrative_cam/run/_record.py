"""What became of a part: on disk, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ._failures import Failure
from ._store import DONE, SHARDS, Store

LARGEST = 2**53
"""No count of anything is larger."""


@dataclass(frozen=True)
class Shard:
    """A shard as its record knows it: its file's name and size, images with results, rows, failures, halved batches."""

    name: str
    bytes: int
    images: int
    rows: int
    failures: tuple[Failure, ...]
    batch_reductions: int

    @property
    def final(self) -> bool:
        """Whether no image of it deserves another try."""
        return not any(failure.passing for failure in self.failures)


@dataclass(frozen=True)
class Record:
    """What became of a part. `unfinished` says why work on it stopped; `fatal` that the run must stop too."""

    part: int
    shards: tuple[Shard, ...] = ()
    failures: tuple[Failure, ...] = ()
    decoder_deaths: int = 0
    unfinished: str = ""
    fatal: bool = False

    @property
    def all_failures(self) -> tuple[Failure, ...]:
        """Of its images and of itself."""
        return tuple(failure for shard in self.shards for failure in shard.failures) + self.failures

    @property
    def final(self) -> bool:
        """Whether the same command need not look at it again."""
        return not self.unfinished and not any(failure.passing for failure in self.all_failures)

    def as_json(self) -> bytes:
        """For the store."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def of(cls, content: bytes) -> Record:
        """From `as_json`.

        Raises:
            ValueError: that is no record.
        """
        try:
            found = json.loads(content)
            shards = tuple(_shard(shard) for shard in found["shards"])
            record = cls(**{**found, "shards": shards, "failures": failures_in(found["failures"])})
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no record of a part: {error}") from None
        _check(record, {"part": int, "decoder_deaths": int, "unfinished": str, "fatal": bool})
        return record


def failures_in(found: Any) -> tuple[Failure, ...]:
    """Failures from their plain values.

    Raises:
        ValueError, KeyError, TypeError: they are none.
    """
    failures = tuple(Failure(**each) for each in found)
    for failure in failures:
        _check(failure, {"key": str, "kind": str, "reason": str})
    return failures


def read_records(store: Store) -> tuple[dict[int, Record], list[str]]:
    """The records of finished parts, and the names of files that hold none.

    A part of which a shard is missing or has another size is not finished.
    """
    known: dict[int, Record] = {}
    broken: list[str] = []
    sizes = store.sizes(SHARDS)
    for name, content in store.contents(DONE).items():
        try:
            record = Record.of(content)
        except ValueError:
            broken.append(name)
            continue
        if all(sizes.get(shard.name) == shard.bytes for shard in record.shards):
            known[record.part] = record
    return known, broken


def _shard(found: Mapping[str, Any]) -> Shard:
    shard = Shard(**{**found, "failures": failures_in(found["failures"])})
    _check(shard, {"name": str, "bytes": int, "images": int, "rows": int, "halvings": int})
    return shard


def _check(value: object, kinds: Mapping[str, type]) -> None:
    """Raise ValueError where a field is of another kind, or no number of things."""
    for name, kind in kinds.items():
        found = getattr(value, name)
        if type(found) is not kind or (isinstance(found, int) and not 0 <= found < LARGEST):
            raise ValueError(f"{name} is {found!r}")
