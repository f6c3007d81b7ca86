"""The worked change in CONTRIBUTING.md works as it stands there, and its commands exist."""

from __future__ import annotations

import doctest
import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from evaluated import tensor
from markdown_it import MarkdownIt
from networks import noise
from reference import metrics as reference

from integrative_cam.evaluate import _benchmark, _simplicity

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FORMULA, ENTRY, SLOW, TEST = (
    token.content for token in MarkdownIt().parse(PAGE) if token.type == "fence" and token.info == "python"
)


def added_to(module: ModuleType, code: str) -> Any:
    """The function `spread` as it would be in a module; the module stays as it is."""
    names = {**vars(module), "math": math}
    exec(code, names)
    return names["spread"]


def test_the_metric_of_the_worked_change() -> None:
    spread = added_to(_simplicity, FORMULA)
    slow = SimpleNamespace(spread=added_to(reference, SLOW))
    names = {"pytest": pytest, "torch": torch, "tensor": tensor, "noise": noise, "spread": spread, "reference": slow}
    exec(TEST, names)
    names["test_spread"]()


def test_its_docstring_and_its_entry() -> None:
    spread = added_to(_simplicity, FORMULA)
    (example,) = doctest.DocTestFinder().find(spread, "spread", globs={"torch": torch, "spread": spread})
    assert doctest.DocTestRunner().run(example) == (0, 1)

    names = {**vars(_benchmark), "simplicity": SimpleNamespace(spread=spread)}
    ((name, metric),) = eval(f"{{{ENTRY.strip()}}}", names).items()
    assert name not in _benchmark.METRICS
    assert isinstance(metric, _benchmark.Metric)
    maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert metric.of(SimpleNamespace(maps=maps)).tolist() == pytest.approx([0.5])


def test_commands_and_files_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", PAGE, re.MULTILINE))
    assert "test-fast" in used <= targets
    named = set(re.findall(r"\b(?:src|tests|docs)/[\w./-]+\.(?:py|md)\b", PAGE))
    assert len(named) > 8
    assert {name for name in named if not (ROOT / name).is_file()} == set()
