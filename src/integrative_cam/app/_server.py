"""Serve the page: only what the operator offers, only from this machine unless told otherwise."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import MissingExtraError, ModelError
from ._loading import loading_page

if TYPE_CHECKING:
    from ..models import Network
    from ._session import Offered, SessionStore

SESSIONS = 256
SWEEP = 60
"""Seconds between looks for what is to be forgotten."""


def serve(
    models: Sequence[str],
    weights: Mapping[str, Path],
    host: str = "127.0.0.1",
    port: int = 7860,
    browse: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page until interrupted; it can be visited at once, and says that the networks are loading.

    Visitors choose among `models`, the default first. `host` "0.0.0.0" lets other machines in, `port` 0 takes any free
    one, `browse` opens the page here, and `say` is told where it is.

    Raises:
        ModelError: a network cannot be loaded or explained.
        InputError: the port is in use.
        MissingExtraError: Gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError.of("The page", "app", ModuleNotFoundError(name="gradio"))
    shown = list(dict.fromkeys(map(_shown, models)))
    with tempfile.TemporaryDirectory(prefix="icam-") as folder:
        with loading_page(host, port, shown) as address:
            say(f"Loading {', '.join(shown)} for the page at {address}")
            if browse:
                webbrowser.open(address)
            _quiet(Path(folder))
            from ._page import page
            from ._session import SessionStore

            sessions = SessionStore(offer_of(models, weights))
            blocks = page(sessions, Path(folder), example())
            settings = options()
        try:
            blocks.launch(**settings, server_name=host, server_port=urlsplit(address).port)
            _sweep(sessions)
            say(f"The page is at {address} (Ctrl+C ends it).")
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


def options() -> dict[str, Any]:
    """How Gradio serves: nothing leaves, nothing is shown of the machine, requests have bounds."""
    from starlette.middleware import Middleware

    from ._guard import Guard
    from ._page import css, theme
    from ._photograph import MAX_BYTES

    return {
        "share": False,
        "quiet": True,
        # Its check that the page can be visited gives up after three seconds, which a busy machine can take.
        "_frontend": False,
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
        # A photograph as base64 text, and the rest.
        "app_kwargs": {"middleware": [Middleware(Guard, limit=MAX_BYTES * 4 // 3 + 2**20)]},
        "theme": theme(),
        "css": css(),
    }


def offer_of(models: Sequence[str], weights: Mapping[str, Path]) -> dict[str, Offered]:
    """Load the networks and run each once, so that the first visitor does not wait and mistakes show at once.

    Visitors see a file's name, not its folder.
    """
    from ..models import load
    from ._session import Offered

    unknown = weights.keys() - set(models)
    if unknown:
        raise ModelError(f"weights for {', '.join(sorted(unknown))}: there is no such --model.")
    offer: dict[str, Offered] = {}
    for name in dict.fromkeys(models):
        file = weights.get(name)
        shown = _shown(name)
        if shown in offer:
            raise ModelError(f"two networks would be called {shown!r} on the page; rename a file.")
        network = load(name, file)
        _run_once(network)
        offer[shown] = Offered(network, (shown, *([file.name] if file else [])))
    return offer


def example() -> Path | None:
    """The bundled photograph, where it is installed."""
    from ..query import example_photograph

    try:
        return example_photograph()
    except MissingExtraError:
        return None


def _shown(model: str) -> str:
    """A network's name on the page; of a file or folder its own name."""
    is_path = model.endswith((".onnx", ".pt2", ".pt2:trusted")) or ".py:" in model
    return Path(model).name if is_path or Path(model.removeprefix("hf/")).exists() else model


def _run_once(network: Network) -> None:
    import torch

    from ..cam import explain

    channels = len(network.preprocessing.mean)
    images = torch.linspace(-1, 1, network.preprocessing.crop[0] * network.preprocessing.crop[1]).reshape(
        1, 1, *network.preprocessing.crop
    )
    shape = tuple(explain(network.model, images.expand(1, channels, -1, -1).contiguous()).output.shape)
    if len(shape) != 2:
        raise ModelError(f"{network.name}: the page explains classes, but the output is {shape}.")


def _quiet(folder: Path) -> None:
    """Before Gradio is imported: its files go to a folder of this server's own, and it calls nobody."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _sweep(sessions: SessionStore) -> None:
    def sweep() -> None:
        while True:
            time.sleep(SWEEP)
            sessions.sweep()

    threading.Thread(target=sweep, daemon=True, name="icam-sweep").start()
