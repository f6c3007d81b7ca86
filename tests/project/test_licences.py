"""docs/project/licences.md lists every direct dependency as pyproject.toml asks for it, under an accepted licence."""

from __future__ import annotations

import re
import sys
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs/project"))
try:
    import licences
finally:
    sys.path.remove(str(ROOT / "docs/project"))

PAGE = licences.PAGE.read_text()
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in re.findall(r"^\| [a-z].*$", PAGE, re.M)]
DIRECT, TRANSITIVE = (
    {row[0]: row[1:] for row in ROWS if row[0] != "package" and (row[0] in licences.direct()) is wanted}
    for wanted in (True, False)
)


def test_every_direct_dependency_is_listed_as_asked_for() -> None:
    of_project = (ROOT / "pyproject.toml").read_text().partition("[project]")[2].partition("[project.scripts]")[0]
    texts = re.findall(r'"([a-z][^"\n]*?[<>=]=?[\d.]+[^"\n]*)"', of_project)
    asked = {canonicalize_name(Requirement(each).name) for each in texts}
    assert len(asked) > 40
    assert asked == DIRECT.keys()
    assert {name: (row[0], row[2]) for name, row in DIRECT.items()} == licences.direct()


def test_every_licence_listed_is_accepted() -> None:
    assert len(TRANSITIVE) > 80
    for name, row in (DIRECT | TRANSITIVE).items():
        assert licences.accepted(name, row[1]), (name, row)
    assert not re.search(r"\bA?L?GPL", " ".join(row[1] for row in (DIRECT | TRANSITIVE).values()))


def test_the_page_names_what_is_accepted() -> None:
    prose = PAGE.partition(licences.BEGIN)[0]
    for each in licences.UNSTATED:
        assert f"`{each}`" in prose
    for each in licences.PERMISSIVE - {"BSD-2-Clause", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"}:
        assert re.search(rf"\b{re.escape(each)}\b", prose), each
    beyond = {name for name, row in DIRECT.items() if "MPL" in row[1]}
    assert beyond == {"hypothesis"}


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_the_licence_of_what_is_installed_is_accepted(name: str) -> None:
    """Other releases than the page's may say it in other words, or not at all."""
    package = licences.installed(name)
    if package is None:
        pytest.skip(f"{name} is not installed")
    found = licences.licence(package)
    assert found == licences.NOT_STATED or licences.accepted(name, found), found


def stated(**fields: str | list[str]) -> Any:
    told = Message()
    for field, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            told[field.replace("_", "-")] = value
    return SimpleNamespace(metadata=told)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "mit OR Apache-2.0", "License": "BSD"}, "MIT OR Apache-2.0"),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        ({"License": "Copyright 2026, somebody", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": ["Topic :: MIT", "License :: OSI Approved :: BSD License"]}, "BSD"),
        ({"License": "UNKNOWN"}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_reading_a_licence(fields: dict[str, Any], expected: str) -> None:
    assert licences.licence(stated(**fields)) == expected


@pytest.mark.parametrize(
    ("name", "expression", "expected"),
    [
        ("x", "MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("x", "Apache-2.0 WITH LLVM-exception", True),
        ("x", "MIT AND GPL-3.0-only", False),
        ("x", "LGPL-2.1-or-later", False),
        ("x", "not stated", False),
        ("atheris", "not stated", True),
        ("atheris", "AGPL-3.0-only", False),
    ],
)
def test_what_is_accepted(name: str, expression: str, expected: bool) -> None:
    assert licences.accepted(name, expression) is expected


def test_what_is_needed_in_turn() -> None:
    assert {"torch", "sympy", "mpmath"} <= set(licences.needed([Requirement("torch")]))
    assert "numpy" not in set(licences.needed([Requirement("safetensors")]))
    assert "numpy" in set(licences.needed([Requirement("safetensors[numpy]")]))
    assert not set(licences.needed([Requirement("torch; python_version < '3'"), Requirement("no-such-package")]))
    assert licences.parts_of("run") == {licences.CORE, "run", "cli", "models", "render"}
