"""Serve the page: only what the operator offers, only from this machine unless told otherwise."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cam import explain
from ..errors import InputError, MissingExtraError, ModelError
from ..models import Network, load
from ._guard import Guard
from ._photograph import MAX_BYTES
from ._session import Offered, SessionStore

BODY = MAX_BYTES * 4 // 3 + 2**20
"""Bytes of a request: a photograph as base64 text, and the rest."""
SESSIONS = 256
SWEEP = 60
"""Seconds between looks for what is to be forgotten."""


def serve(
    models: Sequence[str],
    weights: Mapping[str, Path],
    host: str = "127.0.0.1",
    port: int = 7860,
    browse: bool = False,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page until interrupted.

    Args:
        models: names for `models.load`, the default first; visitors can choose among these only.
        weights: local files for some of them.
        host: address to listen on; "0.0.0.0" lets other machines in.
        port: 0 for any that is free.
        browse: open the page in the operator's browser.
        ready: is told the page's address once it can be visited.

    Raises:
        ModelError: a network cannot be had, or cannot be explained.
        InputError: the port is in use.
        MissingExtraError: Gradio is not installed.
    """
    offer = offer_of(models, weights)
    with tempfile.TemporaryDirectory(prefix="icam-") as folder:
        _quiet(Path(folder))
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise MissingExtraError.of("The page", "app", error) from error
        from ._page import page

        sessions = SessionStore(offer)
        blocks = page(sessions, Path(folder), example())
        port = _free(host, port)
        _swept(sessions)
        try:
            _, address, _ = blocks.launch(**options(), server_name=host, server_port=port, inbrowser=browse)
            ready(address)
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


def options() -> dict[str, Any]:
    """How Gradio serves: nothing leaves, nothing is shown of the machine, requests have bounds."""
    from starlette.middleware import Middleware

    from ._page import css, theme

    return {
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "show_error": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "run_history": False,
        "enable_monitoring": False,
        "allowed_paths": [],
        "max_file_size": MAX_BYTES,
        "state_session_capacity": SESSIONS,
        "footer_links": ["api", "settings"],
        "app_kwargs": {"middleware": [Middleware(Guard, limit=BODY)]},
        "theme": theme(),
        "css": css(),
    }


def offer_of(models: Sequence[str], weights: Mapping[str, Path]) -> dict[str, Offered]:
    """Load the networks and run each once, so that the first visitor does not wait and mistakes show at once.

    Visitors see a file's name, not its folder.

    Raises:
        ModelError: a network cannot be had, cannot be explained, or two have one name.
    """
    unknown = weights.keys() - set(models)
    if unknown:
        raise ModelError(f"weights for {', '.join(sorted(unknown))}: there is no such --model.")
    offer: dict[str, Offered] = {}
    for name in dict.fromkeys(models):
        file = weights.get(name)
        shown = Path(name).name if _is_path(name) else name
        if shown in offer:
            raise ModelError(f"two networks would be called {shown!r} on the page; rename a file.")
        network = load(name, file)
        _run_once(network)
        offer[shown] = Offered(network, (shown, *([file.name] if file else [])))
    return offer


def example() -> Path | None:
    """The cat in scikit-image's wheel, where it is installed."""
    try:
        import skimage
    except ImportError:
        return None
    return Path(skimage.__file__).parent / "data" / "chelsea.png"


def _is_path(name: str) -> bool:
    return name.endswith((".onnx", ".pt2", ".pt2:trusted")) or ".py:" in name or Path(name.removeprefix("hf/")).exists()


def _run_once(network: Network) -> None:
    channels = len(network.preprocessing.mean)
    images = torch.linspace(-1, 1, network.preprocessing.crop[0] * network.preprocessing.crop[1]).reshape(
        1, 1, *network.preprocessing.crop
    )
    found = explain(network.model, images.expand(1, channels, -1, -1).contiguous())
    if found.output.ndim != 2:
        raise ModelError(f"{network.name}: the page explains classes, but the output is {tuple(found.output.shape)}.")


def _quiet(folder: Path) -> None:
    """Before Gradio is imported: its files go to a folder of this server's own, and it calls nobody."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _free(host: str, port: int) -> int:
    """The port itself, or a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port."
            ) from None
        found: int = probe.getsockname()[1]
        return found


def _swept(sessions: SessionStore) -> None:
    def sweep() -> None:
        while True:
            time.sleep(SWEEP)
            sessions.sweep()

    threading.Thread(target=sweep, daemon=True, name="icam-sweep").start()
