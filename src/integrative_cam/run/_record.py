"""What became of a part: on disk, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ._failures import Failure
from ._store import DONE, SHARDS, Store

LARGEST_COUNT = 2**53

Stored = TypeVar("Stored", "Failure", "Shard", "Record")


@dataclass(frozen=True)
class Shard:
    """A shard as its record describes it: its file's name and size in bytes, images with results, rows, failures."""

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
    def images(self) -> int:
        """With results."""
        return sum(shard.images for shard in self.shards)

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
        stored = asdict(self)
        for shard in stored["shards"]:
            shard["halvings"] = shard.pop("batch_reductions")  # the name that 0.1.0 stored
        return (json.dumps(stored) + "\n").encode()

    @classmethod
    def of(cls, content: bytes) -> Record:
        """From `as_json`; ValueError where it is no record."""
        try:
            stored = json.loads(content)
            shards = tuple(_shard(shard) for shard in stored["shards"])
            record = cls(**{**stored, "shards": shards, "failures": failures_in(stored["failures"])})
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no record of a part: {error}") from None
        return _checked(record)


def failures_in(stored: Any) -> tuple[Failure, ...]:
    """Failures from their plain values; ValueError, KeyError or TypeError where they are none."""
    return tuple(_checked(Failure(**values)) for values in stored)


def read_records(store: Store) -> tuple[dict[int, Record], list[str]]:
    """The finished parts' records, and the files that hold none; every shard must be there, with the size it had."""
    finished: dict[int, Record] = {}
    broken: list[str] = []
    sizes = store.sizes(SHARDS)
    for name, content in store.contents(DONE).items():
        try:
            record = Record.of(content)
        except ValueError:
            broken.append(name)
            continue
        if all(sizes.get(shard.name) == shard.bytes for shard in record.shards):
            finished[record.part] = record
    return finished, broken


def _shard(stored: Mapping[str, Any]) -> Shard:
    values = {**stored, "failures": failures_in(stored["failures"]), "batch_reductions": stored["halvings"]}
    del values["halvings"]
    return _checked(Shard(**values))


def _checked(stored: Stored) -> Stored:
    """Raise ValueError where a plain field has another type, or is a number that counts nothing."""
    for field in fields(stored):
        value = getattr(stored, field.name)
        is_right = not isinstance(value, int) or 0 <= value < LARGEST_COUNT
        if field.type in ("str", "int", "bool") and (type(value).__name__ != field.type or not is_right):
            raise ValueError(f"{field.name} is {value!r}")
    return stored
