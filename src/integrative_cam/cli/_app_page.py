"""`icam app`: the page in a browser."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from ..app._server import serve
from ._explain import weights_by_model


def serve_page(models: Sequence[str], weights: Sequence[str], host: str, port: int, browse: bool) -> None:
    """Serve the page until interrupted, and say where it is."""
    serve(models, weights_by_model(weights, models), host, port, browse, _say)


def _say(address: str) -> None:
    typer.echo(f"The page is at {address} (Ctrl+C ends it).")
