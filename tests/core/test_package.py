"""What importing costs, and what the package says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import metadata, requires, version
from pathlib import Path

import integrative_cam


def test_import_brings_torch_and_nothing_heavier() -> None:
    """What `import torch` already brings is taken off; no drawing, zoo, command or file format may be left."""
    code = (
        "import sys, json, torch; before = set(sys.modules); import integrative_cam; "
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    added = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert added - sys.stdlib_module_names == {"integrative_cam"}


def test_metadata() -> None:
    assert version("integrative-cam") == integrative_cam.__version__
    assert metadata("integrative-cam")["License-Expression"] == "Apache-2.0"
    core = [requirement for requirement in requires("integrative-cam") or [] if "extra ==" not in requirement]
    assert sorted(core) == ["safetensors[torch]>=0.4.3", "torch>=2.6"]
    assert (Path(integrative_cam.__file__).parent / "py.typed").is_file()


def test_public_names_exist() -> None:
    assert sorted(integrative_cam.__all__) == integrative_cam.__all__
    assert all(hasattr(integrative_cam, name) for name in integrative_cam.__all__)
