"""What visitors see while the networks load: the page's heading, at once, and a line that says so.

Importing torch and Gradio takes seconds, so this is the standard library's server.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import AF_INET, AF_INET6
from socketserver import ThreadingTCPServer

from ..errors import InputError

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
"""The browser itself refuses to ask any other host. Gradio's own pages hold scripts in the page."""
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
IDLE = 30.0
"""Seconds without a byte after which a body is given up."""

TITLE = "Why does the network say that?"
HEADING = (
    f"<h1>{TITLE}</h1><p>A map over your photograph, fused from all layers of the network, and what each gave.</p>"
)


@contextmanager
def loading_page(host: str, port: int, networks: Sequence[str]) -> Iterator[str]:
    """Serve the page until the context ends, which leaves the port to the page proper; gives the page's address.

    Raises:
        InputError: the port is in use.
    """
    text = Path(__file__).with_name("loading.html").read_text("utf-8")
    for name, value in (("TITLE", TITLE), ("HEADING", HEADING), ("NETWORKS", html.escape(", ".join(networks)))):
        text = text.replace(name, value, 1)

    class Server(ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
        address_family = AF_INET6 if ":" in host else AF_INET

    class Handler(_Handler):
        content = text.encode()

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port.") from None
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True, name="icam-loading").start()
    try:
        # As Gradio writes it.
        shown = "localhost" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers a request for the page; what belongs to the page proper is not there yet."""

    content = b""
    timeout = IDLE

    def do_GET(self) -> None:
        is_page = self.path.partition("?")[0] == "/"
        self.send_response(200 if is_page else 503)
        for name, value in (*HEADERS.items(), ("cache-control", "no-store"), ("retry-after", "2")):
            self.send_header(name, value)
        self.send_header("content-type", "text/html; charset=utf-8" if is_page else "text/plain")
        self.end_headers()
        self.wfile.write(self.content if is_page else b"The networks are loading.")

    def log_message(self, *_: object) -> None:
        """Visits are nobody's business."""
