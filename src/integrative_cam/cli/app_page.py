"""`icam app`: the page in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from ..app.server import serve
from ..errors import InputError


def serve_page(models: Sequence[str], weights: Sequence[str], host: str, port: int, browse: bool) -> None:
    """Serve the page until interrupted, and say where it is."""
    serve(models, dict(_model_and_file(pair) for pair in weights), host, port, browse, _say)


def _say(address: str) -> None:
    typer.echo(f"The page is at {address} (Ctrl+C ends it).")


def _model_and_file(pair: str) -> tuple[str, Path]:
    model, equals, file = pair.rpartition("=")
    if not equals or not model or not file:
        raise InputError(f"--weights {pair}: must be MODEL=FILE.")
    return model, Path(file)
