"""Questions about files that any name can be asked."""

from __future__ import annotations

from pathlib import Path


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a name that no file can have, such as one too long, is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_folder(path: str | Path) -> bool:
    """The same for a folder."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False
