"""The destination: numbered shards, each written whole or not at all, and what is known about them."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import ExplanationError, InputError, first_line
from ._failures import DestinationError
from ._sources import filesystem, is_local

MANIFEST = "manifest.json"
SHARDS = "shards"
DONE = "done"
_DRAFT = ".draft"


class Store:
    """Files below a folder or a URL. What `write` wrote is there as a whole, or not at all, whatever happens.

    Local files get their name when they are on the disk; object stores show an object when it has arrived.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.files, self.root = filesystem(place)
        self.local = is_local(self.files)

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file.

        Raises:
            DestinationError: it cannot be written.
        """
        try:
            if self.local:
                _write_local(Path(self.path(name)), content)
            else:
                self.files.pipe_file(self.path(name), content)
        except Exception as error:  # each kind of store has errors of its own
            reason = getattr(error, "strerror", None) or first_line(error)
            raise DestinationError(
                f"{posixpath.join(self.place, name)} cannot be written: {reason}. What is written stays; make room or "
                "give access, and run the same command again to continue."
            ) from error

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""
        try:
            return bytes(self.files.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """The complete files in a folder, with their sizes in bytes."""
        self.files.invalidate_cache()
        try:
            found = self.files.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        named = {posixpath.basename(each["name"]): each["size"] for each in found if each["type"] == "file"}
        return {name: size for name, size in named.items() if not name.endswith(_DRAFT)}

    def tidy(self) -> None:
        """Remove what killed writers left behind."""
        if self.local:
            for folder in (self.root, self.path(SHARDS), self.path(DONE)):
                for draft in Path(folder).glob(f".*{_DRAFT}"):
                    draft.unlink(missing_ok=True)

    def _others(self) -> list[str]:
        """What is here, but for a manifest that a kill left half written."""
        return [name for name in self.files.ls(self.root, detail=False) if not name.endswith(_DRAFT)]

    def claim(self, wanted: dict[str, Any]) -> None:
        """Write the manifest, or check that the run begun here is the same.

        Raises:
            InputError: it is another one, or something else is here.
            ExplanationError: the manifest here cannot be read.
        """
        wanted = json.loads(json.dumps(wanted))
        content = self.read(MANIFEST)
        if content is not None:
            begun = self._manifest_in(content)
            different = [name for name in wanted.keys() | begun.keys() if begun.get(name) != wanted.get(name)]
            if different:
                changes = "; ".join(
                    f"{name} was {_shown(begun.get(name))}, now {_shown(wanted.get(name))}"
                    for name in sorted(different)
                )
                raise InputError(
                    f"{self.place} holds a run of another command: {changes}.{_meaning(different)} Continue it as it "
                    "began, or choose another --out."
                )
            return
        if self.files.exists(self.root) and (not self.files.isdir(self.root) or self._others()):
            raise InputError(f"{self.place} exists and holds no run; choose another --out.")
        self.write(MANIFEST, (json.dumps(wanted, indent=2) + "\n").encode())

    def manifest(self) -> dict[str, Any]:
        """What `claim` wrote.

        Raises:
            ExplanationError: there is none, or it cannot be read.
        """
        content = self.read(MANIFEST)
        if content is None:
            raise ExplanationError(f"{self.place} holds no run: {MANIFEST} is missing.")
        return self._manifest_in(content)

    def contents(self, folder: str) -> dict[str, bytes]:
        """The complete files in a folder by name, in order."""
        names = sorted(self.sizes(folder))
        paths = [self.path(f"{folder}/{name}") for name in names]
        found = self.files.cat(paths) if len(paths) > 1 else {path: self.files.cat_file(path) for path in paths}
        return {posixpath.basename(path): bytes(content) for path, content in found.items()}

    def _manifest_in(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ExplanationError(f"{self.path(MANIFEST)} cannot be read: {first_line(error)}") from None
        if not isinstance(found, dict):
            raise ExplanationError(f"{self.path(MANIFEST)} is no manifest of a run.")
        return found


def _meaning(different: Collection[str]) -> str:
    if "source" in different or "source_fingerprint" not in different:
        return ""
    return " The source's images are no longer those of then: some were added, removed or replaced."


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}{_DRAFT}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    # The name too, where a folder can be opened.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
