"""Fuzz all surfaces, or those that are named, and print what came of it.

    python fuzz/run.py --seconds 60 images weights

Exit code 1 where an input crashed, hung, took too much memory or made something happen. Such inputs go to --out; try
one again with: python fuzz/images.py FILE
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SURFACES = ("images", "targets", "names", "sources", "lists", "stored", "weights", "graphs", "bodies")
GRACE = 120
"""Seconds beyond the time asked for, to import and to end."""


def main() -> int:
    """Run the surfaces one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("surfaces", nargs="*", default=SURFACES, metavar="SURFACE", help=", ".join(SURFACES))
    parser.add_argument("--seconds", type=int, default=60, help="for each surface")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="folder for the inputs that found something")
    given = parser.parse_args()
    unknown = [name for name in given.surfaces if name not in SURFACES]
    if unknown:
        parser.error(f"no surface {unknown[0]!r}; there are {', '.join(SURFACES)}")
    try:
        import atheris  # noqa: F401
    except ImportError:
        parser.error("needs atheris: pip install '.[fuzz]'")
    used = ", ".join(
        f"{name} {version(name)}" for name in ("atheris", "pillow", "torch", "safetensors", "onnx", "pyarrow")
    )
    print(f"Python {platform.python_version()}, {used}; {given.seconds} s for each surface, one process\n")
    print("| surface | inputs tried | bugs | slowest input | peak memory |\n|---|---|---|---|---|")
    total, bugs = 0, 0
    for name in given.surfaces:
        found = fuzzed(name, given.seconds, given.out)
        print(
            f"| {name} | {found['tried']} | {len(found['bugs'])} | {found['slowest']:.2f} s | {found['peak_mib']} MiB |"
        )
        for kind, bug in found["bugs"].items():
            print(f"    {name}: {kind}: {bug['detail'].strip().splitlines()[-1]}")
        sys.stdout.flush()
        total, bugs = total + found["tried"], bugs + len(found["bugs"])
    print(f"\n{total} inputs tried, {bugs} bugs.")
    return 1 if bugs else 0


def fuzzed(name: str, seconds: int, out: Path) -> dict[str, Any]:
    """What came of one surface."""
    with tempfile.TemporaryDirectory(prefix="icam-fuzz-run-") as folder:
        findings, log = Path(folder) / "findings.json", Path(folder) / "log.txt"
        settings = {"FUZZ_FINDINGS": str(findings), "FUZZ_SECONDS": str(seconds), "FUZZ_ARTIFACTS": folder}
        settings |= {"OMP_NUM_THREADS": "1", "TMPDIR": folder}
        with log.open("w") as lines:
            process = subprocess.Popen(
                [sys.executable, HERE / f"{name}.py"], stdout=lines, stderr=lines, env={**os.environ, **settings}
            )
            try:
                code = process.wait(seconds + GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        empty = {"tried": 0, "slowest": 0.0, "peak_mib": 0, "bugs": {}}
        found: dict[str, Any] = json.loads(findings.read_text()) if findings.exists() else empty
        if code:
            last = log.read_text(errors="replace")[-2000:]
            crashed = next(iter(Path(folder).glob("[clot]*-*[0-9a-f]")), None)
            found["bugs"]["ended"] = {
                "detail": f"exit code {code}\n{last}",
                "input": crashed.read_bytes().hex() if crashed else "",
            }
        shutil.rmtree(out / name, ignore_errors=True)
        for number, bug in enumerate(found["bugs"].values()):
            place = out / name / f"{number:02d}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bytes.fromhex(bug["input"]))
            place.with_suffix(".txt").write_text(bug["detail"])
        return found


if __name__ == "__main__":
    sys.exit(main())
