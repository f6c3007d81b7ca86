"""Warnings about old names, which work for one release."""

from __future__ import annotations

import sys
import warnings

_SKIPPED = ("integrative_cam", "dataclasses", "copy")
"""Packages whose frames stand between a user's line and the warning."""


def warn_deprecated(message: str) -> None:
    """Issue a DeprecationWarning that points at the user's line: the first frame outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeprecationWarning, stacklevel=level)
