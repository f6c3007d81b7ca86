"""The destination: numbered shards, each written whole or not at all, and what is known about them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ExplanationError, InputError, first_line
from ..storage import DRAFT, written_whole
from ._failures import DestinationError
from ._sources import filesystem, is_local

MANIFEST = "manifest.json"
SHARDS = "shards"
DONE = "done"


class Store:
    """Files below a folder or a URL; each is written whole or not at all, even if the process is killed.

    A local file gets its name once its content is on the disk; object stores show an object once it has arrived.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.files, self.root = filesystem(place)
        self.local = is_local(self.files)

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; DestinationError where that fails."""
        try:
            if self.local:
                written_whole(Path(self.path(name)), content)
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
            entries = self.files.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        sizes = {posixpath.basename(entry["name"]): entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: size for name, size in sizes.items() if not name.endswith(DRAFT)}

    def tidy(self) -> None:
        """Remove what killed writers left behind."""
        if self.local:
            for draft in Path(self.root).rglob(f".*{DRAFT}"):
                draft.unlink(missing_ok=True)

    def claim(self, wanted: Mapping[str, Any], kind: str = "run") -> None:
        """Write the manifest, or check that what was begun here is the same; `kind` names what is written here.

        Raises:
            InputError: the settings here are others, or something else is here.
        """
        wanted = json.loads(json.dumps(wanted))
        content = self.read(MANIFEST)
        if content is not None:
            begun = read_object(content, self.path(MANIFEST), "start anew in another folder")
            different = [name for name in wanted.keys() | begun.keys() if begun.get(name) != wanted.get(name)]
            if different:
                changes = "; ".join(
                    f"{name} was {_shown(begun.get(name))}, now {_shown(wanted.get(name))}"
                    for name in sorted(different)
                )
                raise InputError(
                    f"{self.place} holds the results of another command: {changes}.{_meaning(different)} Repeat that "
                    "command to continue it, or choose another --out."
                )
            return
        # A manifest that a kill left half written is nothing.
        if self.files.exists(self.root) and not (
            self.files.isdir(self.root) and all(name.endswith(DRAFT) for name in self.files.ls(self.root, detail=False))
        ):
            raise InputError(f"{self.place} exists and holds no {kind}; choose another --out.")
        self.write(MANIFEST, (json.dumps(wanted, indent=2) + "\n").encode())

    def manifest(self) -> dict[str, Any]:
        """What `claim` wrote; ExplanationError where that cannot be read."""
        content = self.read(MANIFEST)
        if content is None:
            raise ExplanationError(f"{self.place} holds no run: {MANIFEST} is missing.")
        return read_object(content, self.path(MANIFEST), "start anew in another folder")

    def contents(self, folder: str) -> dict[str, bytes]:
        """The complete files in a folder by name, in order."""
        names = sorted(self.sizes(folder))
        paths = [self.path(f"{folder}/{name}") for name in names]
        stored = self.files.cat(paths) if len(paths) > 1 else {path: self.files.cat_file(path) for path in paths}
        return {posixpath.basename(path): bytes(content) for path, content in stored.items()}


def read_object(content: bytes, path: str, advice: str) -> dict[str, Any]:
    """The JSON object that an earlier run wrote; without it, an ExplanationError that ends in `advice`."""
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExplanationError(f"{path}: cannot be read ({first_line(error)}); {advice}.") from None
    if not isinstance(stored, dict):
        raise ExplanationError(f"{path}: is not what this package wrote; {advice}.")
    return stored


def _meaning(different: Collection[str]) -> str:
    if "source" in different or "source_fingerprint" not in different:
        return ""
    return " The source's images are no longer those of then: some were added, removed or replaced."


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
