"""What can be visited while the networks load."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from serving import browser, served

from integrative_cam.app._loading import HEADERS, TITLE, loading_page
from integrative_cam.errors import InputError


def test_the_page_has_its_heading_and_says_what_loads() -> None:
    with loading_page("127.0.0.1", 0, ["efficientnet-lite0", "<b>.onnx"]) as address:
        answer = urllib.request.urlopen(f"{address}?theme=dark")
        text = answer.read().decode()
    assert f"<h1>{TITLE}</h1>" in text
    assert "Loading efficientnet-lite0, &lt;b&gt;.onnx" in text
    assert not re.search(r"\b[A-Z]{5,}\b", text), "a name was left for a value to be put in"
    assert not re.search(r"(src|href)=|@import|url\(", text), "it fetches nothing"
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["config", "gradio_api/info", "../../etc/passwd", "%2e%2e/x"])
def test_the_rest_is_not_there_yet(path: str) -> None:
    with loading_page("127.0.0.1", 0, ["a"]) as address, pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address + path)
    assert refused.value.code == 503
    assert refused.value.headers["retry-after"] == "2"


def test_the_port_is_free_afterwards_and_not_before() -> None:
    with loading_page("127.0.0.1", 0, ["a"]) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        urllib.request.urlopen(address).read()
        with (
            pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be listened on .*--port"),
            loading_page("127.0.0.1", port, ["a"]),
        ):
            pass
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "localhost"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")])
def test_addresses_can_be_opened(host: str, shown: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with loading_page(host, 0, ["a"]) as address:
        assert address.startswith(f"http://{shown}:")
        assert urllib.request.urlopen(address).status == 200


def test_it_needs_nothing_heavy() -> None:
    code = (
        "import sys, integrative_cam.app._server; print({'torch', 'numpy', 'gradio', 'starlette'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_visitor_sees_the_heading_then_the_page(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'integrative-cam[app]'")
    with browser() as opened, served(tmp_path / "log.txt", loading=True) as address:
        page = opened.new_page()
        page.goto(address)
        assert page.get_by_role("heading", name=TITLE).is_visible()
        assert page.get_by_role("status").inner_text() == "Loading efficientnet-lite0 …"
        page.get_by_text("Drop a photograph here").wait_for(timeout=120_000)
        assert page.get_by_role("heading", name=TITLE).is_visible()
