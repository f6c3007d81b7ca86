"""A visitor's photograph: read within limits, and kept small."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from PIL import Image

from ..errors import ImageError
from ..models._image import PHOTOGRAPHS, decode_image

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
SHOWN = 1600
"""Pixels of the longer side at most, of the photograph as it is shown and downloaded."""


@dataclass(frozen=True)
class Photograph:
    """A photograph as it came, `encoded`, and as it is shown; `name` is safe to print and to save under."""

    name: str
    encoded: bytes
    shown: Image.Image

    def full(self) -> Image.Image:
        """All of its pixels, 8-bit RGB and upright; read again, since they would fill the memory."""
        return _read(self.encoded)

    @property
    def bytes(self) -> int:
        """Of memory."""
        return len(self.encoded) + 3 * self.shown.width * self.shown.height


def photograph(encoded: bytes, name: str) -> Photograph:
    """Read what a visitor sent."""
    if len(encoded) > MAX_BYTES:
        raise ImageError(
            f"This file has {len(encoded) / 2**20:.0f} MB; photographs up to {MAX_BYTES // 2**20} MB are taken. "
            "Save it smaller, as a JPEG for instance."
        )
    shown = _read(encoded)
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return Photograph(safe_name(name), encoded, shown)


def safe_name(name: str) -> str:
    """The last part of a file name, of letters, digits, dots, dashes and underscores only."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    return re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII).strip("._")[-80:] or "photograph"


def _read(encoded: bytes) -> Image.Image:
    return decode_image(encoded, "This file", PHOTOGRAPHS, MAX_PIXELS)
