"""The command `icam`."""

from __future__ import annotations

import gc
import sys

from ..errors import CamError, MissingExtraError, first_line


def main() -> None:
    """Run the command; an error is one line on standard error and exit code 2, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    # What imports make stays: looking for garbage among it less often saves a tenth of the start.
    gc.set_threshold(10_000)
    try:
        try:
            from ._app import app
        except ImportError as error:
            if isinstance(error, MissingExtraError):
                raise
            raise MissingExtraError.of("The command icam", "cli", error) from error
        app()
    except CamError as error:
        if debug:
            raise
        sys.exit(_failed(str(error)))
    except Exception as error:
        if debug:
            raise
        sys.exit(_failed(f"unexpected {type(error).__name__}: {first_line(error)} (--debug shows the traceback)"))


def _failed(message: str) -> int:
    print(f"icam: {message}", file=sys.stderr)
    return 2
