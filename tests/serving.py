"""The page served by the command itself, and a browser that visits it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 180.0
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser() -> Iterator[Any]:
    """The system's Chromium or Playwright's own, without a window; where there is none, the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")
    installed = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    with api.sync_playwright() as started:
        if installed is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("browser tests need Chromium: apt-get install chromium, or playwright install chromium")
        with started.chromium.launch(executable_path=installed, args=["--no-sandbox"]) as opened:
            yield opened


@contextmanager
def served(log: Path, *arguments: str, loading: bool = False) -> Iterator[str]:
    """The address of `icam app --port 0 --no-open`, a process of its own that ends with the context.

    The page is complete, or with `loading` says that it is still loading.
    """
    command = [sys.executable, "-c", "from integrative_cam.cli import main; main()", "app", "--port", "0", "--no-open"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("w") as out:
        server = subprocess.Popen([*command, *arguments], stdout=out, stderr=out, env=environment)
        try:
            yield _address(server, log, "Loading " if loading else "The page is at ")
        finally:
            server.terminate()
            server.wait(20)


def _address(server: subprocess.Popen[bytes], log: Path, beginning: str) -> str:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith(beginning):
                return line[line.index("http") :].split()[0].rstrip("/")
        time.sleep(0.1)
    raise AssertionError(f"no page after {PATIENCE:.0f} seconds:\n{log.read_text()}")
