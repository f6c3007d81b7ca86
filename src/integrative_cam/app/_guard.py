"""What stands before the server: bodies have a bound, addresses are not fetched, pages load from here only."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._loading import HEADERS, IDLE

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
    the server reaches; here such a request fails. A body may have `limit` bytes, all that are on their way AT_ONCE
    times as many, and none may pause for more than `idle` seconds.
    """

    def __init__(self, app: ASGIApp, limit: int, idle: float = IDLE) -> None:
        self.app = app
        self.limit = limit
        self.idle = idle
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if _names_another_server(unquote(scope["path"])):
            return await _refusal(403, "This server fetches and forwards no addresses.")(scope, receive, send)
        if scope["method"] == "POST":
            body = await self._whole(scope, receive)
            if isinstance(body, int):
                return await _refusal(body, REFUSALS[body].format(self.limit // 2**20))(scope, receive, send)
            if not _is_form(scope) and holds_address(body):
                return await _refusal(400, "Files are taken by upload only, not by web address.")(scope, receive, send)
            receive = _again(body, receive)
        await self.app(scope, receive, _with_headers(send))

    async def _whole(self, scope: Scope, receive: Receive) -> bytes | int:
        """The body, or one of REFUSALS as soon as it is due."""
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 18 or int(announced) > self.limit:
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
        return any("://" in path or path.lower().startswith("http") for path in _paths(json.loads(body)))
    except (ValueError, RecursionError):
        return True


def _paths(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _paths(entry)


def _names_another_server(path: str) -> bool:
    return bool(re.search(r"/(proxy=|file[=/]\s*[a-z][a-z0-9+.-]+:)", path, re.IGNORECASE))


def _is_form(scope: Scope) -> bool:
    # Of several headers the application might take another one.
    kinds = Headers(scope=scope).getlist("content-type")
    return len(kinds) == 1 and kinds[0].lower().startswith("multipart/")


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
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending


def _refusal(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)
