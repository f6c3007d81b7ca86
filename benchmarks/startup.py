"""How long a user waits for the first answer, as ratios to `python -c "import torch"` on the same machine.

    python benchmarks/startup.py              # 5 rounds; the page needs Playwright and Chromium
    python benchmarks/startup.py --rounds 9

Each round runs everything once, so that what else the machine does meanwhile meets all alike; a ratio is taken within
its round. Byte code is cached and files are in memory: a round before the first is not counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

ICAM = (sys.executable, "-c", "import sys; from integrative_cam.cli import main; sys.argv[0] = 'icam'; main()")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
LIMITS = {"icam --help": 0.2, "icam --version": 0.2, "completion": 0.2, "icam explain --help": 0.2}
LIMITS |= {"icam methods": None, "icam explain": 2.0, "icam app, first paint": 1.5}


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        work: dict[str, Callable[[], None]] = {
            "import torch": lambda: run(sys.executable, "-c", "import torch"),
            "icam --help": lambda: run(*ICAM, "--help"),
            "icam --version": lambda: run(*ICAM, "--version"),
            "completion": lambda: run(*ICAM, _ICAM_COMPLETE="complete_bash", COMP_WORDS="icam ex", COMP_CWORD="1"),
            "icam explain --help": lambda: run(*ICAM, "explain", "--help"),
            "icam methods": lambda: run(*ICAM, "methods"),
            "icam explain": lambda: run(*ICAM, "explain", "--out", folder),
        }
        if opened is not None:
            work["icam app, first paint"] = lambda: visit(opened)
        times: dict[str, list[float]] = {name: [] for name in work}
        for number in range(rounds + 1):
            for name, each in work.items():
                begun = time.perf_counter()
                each()
                if number:
                    times[name].append(time.perf_counter() - begun)

    torch = times.pop("import torch")
    print(f"import torch: {statistics.median(torch):.2f} s (median of n = {rounds})\n")
    print(f"{'':24} {'seconds':>8} {'ratio':>6} {'from - to':>13}  at most")
    for name, found in times.items():
        ratios = sorted(one / of for one, of in zip(found, torch, strict=True))
        spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
        limit = "" if LIMITS[name] is None else f"{LIMITS[name]:.1f}"
        print(f"{name:24} {statistics.median(found):8.2f} {statistics.median(ratios):6.2f} {spread:>13}  {limit:>7}")


def run(*command: str, **environment: str) -> None:
    """Run a program to its end."""
    subprocess.run(command, check=True, capture_output=True, env={**ENVIRONMENT, **environment})


@contextmanager
def browser() -> Iterator[Any]:
    """The system's Chromium, or None without it or Playwright."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or find_spec("playwright") is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


def visit(opened: Any) -> None:
    """Start the page, visit it as soon as its address is known, and wait until its heading can be seen."""
    command = [*ICAM, "app", "--port", "0", "--no-open"]
    page = opened.new_page()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            page.goto(line[line.index("http") :].split()[0], wait_until="commit")
            page.locator("h1").wait_for(state="visible")
        finally:
            server.kill()
            page.close()


if __name__ == "__main__":
    main()
