"""What stands before the server: bodies have a bound, addresses are not fetched, pages load from here only."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

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
AT_ONCE = 16
"""Largest bodies that may be on their way together."""
REFUSALS = {
    400: "The request broke off.",
    408: "The request came too slowly.",
    413: "Requests of up to {} MB are taken.",
    503: "Too many large requests at once; try again later.",
}


class Guard:
    """ASGI middleware. Gradio would fetch a file that a request names by a web address, which could be one that only
    the server reaches; here such a request fails.

    Args:
        app: what it stands before.
        limit: bytes of a request's body; those of all that are on their way may have AT_ONCE times as many.
        idle: seconds to wait for more of a body.
    """

    def __init__(self, app: App, limit: int, idle: float = IDLE) -> None:
        self.app = app
        self.limit = limit
        self.idle = idle
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = unquote(scope["path"])
        if _names_another_server(path):
            return await _refuse(send, 403, "This server fetches and forwards no addresses.")
        if scope["method"] != "POST":
            return await self.app(scope, receive, _with_headers(send))
        body = await self._whole(scope, receive)
        if isinstance(body, int):
            return await _refuse(send, body, REFUSALS[body].format(self.limit // 2**20))
        if not _is_form(scope) and holds_address(body):
            return await _refuse(send, 400, "Files are taken by upload only, not by web address.")
        return await self.app(scope, _again(body, receive), _with_headers(send))

    async def _whole(self, scope: Scope, receive: Receive) -> bytes | int:
        """The body, or one of REFUSALS as soon as it is due."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > self.limit:
            return 413
        parts, size, more = [], 0, True
        try:
            while more:
                message = await asyncio.wait_for(receive(), self.idle)
                if message["type"] == "http.disconnect":
                    return 400
                part = message.get("body", b"")
                size, self.held = size + len(part), self.held + len(part)
                if size > self.limit:
                    return 413
                if self.held > AT_ONCE * self.limit:
                    return 503
                parts.append(part)
                more = message.get("more_body", False)
        except asyncio.TimeoutError:
            return 408
        finally:
            self.held -= size
        return b"".join(parts)


def holds_address(body: bytes) -> bool:
    """Whether a JSON body names a file by anything but a plain path."""
    # A photograph's base64 text holds no backslash: megabytes need no parsing for nothing. UTF-16 holds zeros.
    if b'"path"' not in body and b"\\u" not in body and b"\0" not in body:
        return False
    try:
        return any("://" in each or each.lower().startswith("http") for each in _paths(json.loads(body)))
    except (ValueError, RecursionError):
        return True


def _paths(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _paths(each)


def _names_another_server(path: str) -> bool:
    return bool(re.search(r"/(proxy=|file[=/]\s*[a-z][a-z0-9+.-]+:)", path, re.IGNORECASE))


def _is_form(scope: Scope) -> bool:
    # Of several headers the application might take another one.
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(kinds) == 1 and bool(kinds[0].lower().startswith(b"multipart/"))


def _again(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return sending


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
