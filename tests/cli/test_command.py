"""Commands made of functions: options from signatures, help from docstrings, and nothing heavy loaded for it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from integrative_cam import Recipe, _choices, get_method, list_methods
from integrative_cam._maps.readout import READOUTS
from integrative_cam._maps.weighting import WEIGHTINGS
from integrative_cam.cli import _explain
from integrative_cam.cli._app import app
from integrative_cam.evaluate._benchmark import ALL
from integrative_cam.recipe import DEPRECATED, RENAMED

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "gradio", "pyarrow", "polars"}


def help_of(command: str, option: str) -> str:
    (found,) = [parameter for parameter in COMMANDS[command].params if option in parameter.opts]
    return str(found.help)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `icam explain` up to what it is asked for, by name, which comes back with what went to standard error."""
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(_explain.explain_images)

    def record(*arguments: Any) -> int:
        calls.append(signature.bind(*arguments).arguments)
        return 0

    monkeypatch.setattr(_explain, "explain_images", record)

    def ask(*arguments: str) -> tuple[dict[str, Any], str]:
        result = CliRunner().invoke(app, ["explain", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return calls.pop(), result.stderr

    return ask


def run_and_list_modules(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What `icam` prints, and the top-level modules that it imports."""
    code = "import sys; from integrative_cam.cli import main; sys.argv = ['icam', *sys.argv[1:]]; main()"
    command = [sys.executable, "-X", "importtime", "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return run.stdout, set(re.findall(r"^import time:.*\| +(\w+)", run.stderr, re.MULTILINE))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    printed, modules = run_and_list_modules(*arguments)
    assert "icam" in printed
    assert "typer" in modules
    assert not modules & HEAVY


def test_completion_loads_nothing_heavy() -> None:
    asked = {"_ICAM_COMPLETE": "complete_bash", "COMP_WORDS": "icam ex", "COMP_CWORD": "1"}
    printed, modules = run_and_list_modules(**asked)
    assert printed.split() == ["explain"]
    assert not modules & HEAVY


def test_help_names_every_choice() -> None:
    assert [*READOUTS] == [*_choices.READOUTS]
    assert [*WEIGHTINGS] == [*_choices.WEIGHTINGS]
    shown = help_of("evaluate", "--metrics").rstrip(".").removeprefix("Any of ")
    assert shown.split(", ") == [*ALL]
    assert help_of("explain", "--method").partition(";")[0].split(", ") == [method.name for method in list_methods()]
    for option, choices in {
        "--taps": _choices.TAPS,
        "--readout": READOUTS,
        "--bias": _choices.BIASES,
        "--weighting": WEIGHTINGS,
        "--task": _choices.TASKS,
    }.items():
        assert set(choices) <= set(re.findall(r"[\w-]+", help_of("explain", option))), option


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        assert parameter.help[0] != '"'
        assert parameter.help.endswith("."), parameter.help
    assert any("--debug" in parameter.opts for parameter in COMMANDS[command].params)
    assert "Args:" not in COMMANDS[command].help


@pytest.mark.parametrize("command", ["explain", "run"])
def test_each_ingredient_is_an_option(command: str) -> None:
    options = {parameter.name: parameter for parameter in COMMANDS[command].params}
    for field in fields(Recipe):
        assert options[field.name].default is None
        assert options[field.name].hidden == (field.name in DEPRECATED)
    assert all(options[old].hidden for old in RENAMED)


def test_what_is_asked_for_arrives(asked: Any) -> None:
    call, _ = asked("a.png", "-t", "tabby", "--versus", "rest", "--step=-1", "-m", "resnet18", "--json", "-o", "x")
    assert list(call["images"]) == [Path("a.png")]
    assert (call["question"].target, call["question"].versus, call["question"].step) == ("tabby", "rest", -1)
    assert call["options"] == ("resnet18", None, None, None)
    assert (call["out"], call["as_json"], call["debug"]) == (Path("x"), True, False)
    assert call["method"] == get_method("integrative")

    call, _ = asked("--method", "gradcam", "--taps", "14x14", "--taps", "last", "--gamma", "0.5")
    assert call["method"].recipe == replace(get_method("gradcam").recipe, taps=("14x14", "last"), gamma=0.5)
    assert list(call["images"]) == []


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_option_works_and_says_its_new_name(old: str, new: str, asked: Any) -> None:
    call, said = asked(f"--{old}", "0.0")
    assert call["method"].recipe == replace(Recipe(), **{new: 0.0})
    assert said == f"icam: --{old} is now --{new.replace('_', '-')}; the old name goes with the next release.\n"
    present, said = asked(f"--{new.replace('_', '-')}", "0.0")
    assert present == call
    assert said.startswith(f"icam: --{new.replace('_', '-')} goes with the next release" if new in DEPRECATED else "")
    assert (said == "") == (new not in DEPRECATED)
