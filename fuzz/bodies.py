"""Requests to the page before Gradio sees them: whether a body names a file by address, and refusals by path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import harness

with harness.instrumented():
    from integrative_cam.app._guard import _names_another_server, holds_address


def attempt(data: bytes) -> None:
    """No address passes, however it is nested or spelled."""
    holds_address(data)
    choices = harness.chosen(data)
    address = choices.PickValueInList(["http://x/", "https://x", "file:///etc/passwd", "ftp://x", "HTTP:x", "s3://b"])
    document: Any = {"path": address, "meta": {"_type": "gradio.FileData"}}
    for _ in range(choices.ConsumeIntInRange(0, 6)):
        document = (
            [document] if choices.ConsumeBool() else {f"-{choices.ConsumeUnicodeNoSurrogates(4)}": document, "path": 5}
        )
    text = json.dumps({"data": [document]})
    if choices.ConsumeBool():
        text = text.replace("path", "p\\u0061th")
    assert holds_address(
        text.encode(choices.PickValueInList(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"]))
    ), text
    assert _names_another_server(f"/gradio_api/file={address}"), address
    assert _names_another_server(f"/gradio_api/proxy={address}"), address


def seeds() -> Iterator[bytes]:
    """Bodies with and without addresses."""
    yield b'{"data": [{"path": "a.png"}]}'
    yield b'{"data": [{"p\\u0061th": "http://x"}]}'
    yield b"[" * 3000
    yield b'{"path": ' * 2000
    yield '{"path": "http://x"}'.encode("utf-16")


if __name__ == "__main__":
    harness.fuzz(attempt, seeds())
