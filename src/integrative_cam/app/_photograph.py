"""A visitor's photograph: read within limits, and kept small."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from ..models._image import PHOTOGRAPHS, upright

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
    """Read what a visitor sent.

    Raises:
        ImageError: no image of PHOTOGRAPHS, broken, over MAX_BYTES or over MAX_PIXELS.
    """
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Reads the head only: nothing is unpacked before its size is known.
            image = Image.open(io.BytesIO(encoded), formats=PHOTOGRAPHS)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(f"{width} x {height} pixels")
            image.load()
            return upright(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large("too many pixels") from None
    except UnidentifiedImageError:
        raise ImageError("This file is no photograph that can be read; JPEG, PNG and WebP can.") from None
    except Exception:  # decoders fail in many ways
        raise ImageError("This image file is broken. Save it again, or take another.") from None


def _too_large(size: str) -> ImageError:
    return ImageError(f"This image has {size}; up to {MAX_PIXELS // 10**6} megapixels are taken. Scale it down first.")
