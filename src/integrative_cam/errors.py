"""The errors a caller can meet; each message says what was wanted, what came and what to do."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class CamError(Exception):
    """Base of every error raised on purpose by this package."""


class InputError(CamError, ValueError):
    """The images or the model cannot be used as given."""


class OutputError(CamError, ValueError):
    """The model's output cannot be explained: no tensor, not finite, or independent of the input."""


class TargetError(CamError, ValueError):
    """The target does not name one scalar per sample."""


class TapError(CamError, ValueError):
    """No feature map fits the choice of taps."""


class RecipeError(CamError, ValueError):
    """An ingredient of the method is unknown or invalid, such as a read-out that is not smooth."""


class ModelError(CamError, ValueError):
    """A network could not be built by that name, or its weights could not be read."""


class ImageError(CamError, ValueError):
    """A file could not be read as an image."""


class ExplanationError(CamError, ValueError):
    """A saved explanation is missing, incomplete or unreadable, or a folder may not be overwritten."""


class MissingExtraError(CamError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    @classmethod
    def of(cls, purpose: str, extra: str, cause: ImportError) -> MissingExtraError:
        """For what cannot be done without the package that `cause` misses. Not __init__, so that it can be pickled."""
        return cls(f"{purpose} needs the package `{cause.name}`: pip install 'integrative-cam[{extra}]'")


def import_extra(module: str, purpose: str, extra: str) -> Any:
    """The module of an optional dependency; MissingExtraError, which names the extra, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError.of(purpose, extra, error) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
