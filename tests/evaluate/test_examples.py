"""The examples in the docstrings of metrics give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = (
    "accumulate", "cells", "faithfulness", "localisation", "perturbation", "randomisation", "simplicity", "statistics",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str) -> None:
    module = import_module(f"integrative_cam.evaluate._{name}")
    failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert tried
