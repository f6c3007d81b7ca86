"""Who visits: a secret key for each photograph that was opened."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ._lru_cache import LruCache
from ._photograph import Photograph
from ._session import Offer, Session

IDLE = 30 * 60
"""Seconds after which a photograph that nobody looks at is forgotten."""
PHOTOGRAPHS = 2**29
COMPUTED = 3 * 2**29
"""Bytes for all visitors together: what is forgotten of the second is computed again, of the first is asked for."""


@dataclass(frozen=True)
class SessionStore:
    """All visits of one server."""

    offer: Offer
    photographs: LruCache[Photograph] = field(default_factory=lambda: LruCache(PHOTOGRAPHS, IDLE))
    kept: LruCache[Any] = field(default_factory=lambda: LruCache(COMPUTED, IDLE))

    def open(self, photograph: Photograph) -> Session:
        """A new visit; its key cannot be guessed."""
        visitor = secrets.token_urlsafe(24)
        self.photographs.put(visitor, photograph, photograph.bytes)
        return Session(visitor, photograph, self.offer, self.kept)

    def visit(self, visitor: str | None) -> Session:
        """The visit of that key.

        Raises:
            InputError: none yet, or it was forgotten.
        """
        if visitor is None:
            raise InputError("Choose a photograph first.")
        photograph = self.photographs.get(visitor)
        if photograph is None:
            raise InputError("Your photograph was forgotten, since nobody looked at it for long: choose it again.")
        return Session(visitor, photograph, self.offer, self.kept)

    def close(self, visitor: str | None) -> None:
        """Forget all that belongs to a key."""
        if visitor is not None:
            self.photographs.forget(visitor)
            self.kept.forget(visitor)

    def sweep(self) -> None:
        """Forget the photographs of those who left."""
        self.photographs.sweep()
        self.kept.sweep()
