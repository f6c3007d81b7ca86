"""The examples as notebooks: they run, and what is committed is what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
LIMIT = 1_000_000


def shown(book: Any) -> list[tuple[list[str], str]]:
    """Per code cell the kinds of what it shows, and its text without places in memory and digits, which may differ."""
    found = []
    for cell in book.cells:
        if cell.cell_type == "code":
            kinds = [kind for output in cell.outputs for kind in output.get("data", {"stream": 0})]
            text = "".join(output.get("text", "") for output in cell.outputs)
            # Pillow's pictures come as JPEG too; either is kept.
            plain = {kind.replace("jpeg", "png") for kind in kinds if "widget" not in kind}
            found.append((sorted(plain), re.sub(r"[-+ ]*\d+(\.\d+)?", "#", text)))
    return found


def test_there_are_three() -> None:
    assert NOTEBOOKS == ["comparing_methods.ipynb", "first_steps.ipynb", "layers_and_bias.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_shows_what_is_committed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(committed)
    assert (EXAMPLES / name).stat().st_size < LIMIT
    before = shown(committed)
    assert any("image/png" in kinds for kinds, _ in before)
    # A hub or a server would not answer.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    NotebookClient(committed, timeout=300, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}).execute()
    assert shown(committed) == before
