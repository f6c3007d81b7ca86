"""Does the wheel work where nothing else is installed?

    python tests/smoke.py dist/integrative_cam-0.1.0-py3-none-any.whl

It goes into a new environment that sees this one's torch, and what torch needs, and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

CORE = ("torch", "safetensors", "numpy", "packaging")
EXPLAIN = """
import sys, torch
from torch import nn
import integrative_cam
from integrative_cam import Explanation, explain
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
found = explain(model, torch.rand(2, 3, 8, 8))
assert found.map.shape == (2, 8, 8) and float(found.map.max()) == 1
assert torch.equal(Explanation.load(found.save(sys.argv[1])).map, found.map)
assert {"PIL", "matplotlib", "torchvision", "timm", "typer"}.isdisjoint(sys.modules)
print("integrative-cam", integrative_cam.__version__, "explains with torch", torch.__version__, "and nothing else")
"""


def main(wheel: Path) -> None:
    """Install, explain, ask for the command."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "environment"
        venv.create(place, with_pip=True)
        python = place / "bin" / "python"
        (packages,) = place.glob("lib/python*/site-packages")
        for name in needed(CORE):
            link(name, packages)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel.resolve()], check=True)
        subprocess.run([python, "-c", EXPLAIN, Path(folder) / "kept"], cwd=folder, check=True)
        asked = subprocess.run(
            [place / "bin" / "icam", "explain"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert asked.returncode == 2, asked
        assert "integrative-cam[cli]" in asked.stderr, asked.stderr
        assert "Traceback" not in asked.stderr, asked.stderr
        print("icam without extras:", asked.stderr.strip())


def needed(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they require here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower()
        if name in found:
            continue
        try:
            wanted = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        found.add(name)
        waiting += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def link(name: str, packages: Path) -> None:
    """Make a distribution's top-level files and folders visible in `packages`."""
    of = distribution(name)
    tops = {Path(str(file)).parts[0] for file in of.files or ()} - {"..", "__pycache__"}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(of.locate_file(top))).resolve())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
