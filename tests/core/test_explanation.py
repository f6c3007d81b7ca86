"""Explanations on disk: what was saved comes back, and nothing is half-written."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrative_cam import Explanation, ExplanationError, Recipe, explain

torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
).eval()
IMAGES = torch.randn(2, 3, 8, 8)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    elif is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for part, twin in zip(one, other, strict=True):
            assert_equal(part, twin)
    else:
        assert one == other


@pytest.mark.parametrize("target", [None, lambda output: output.sum()], ids=["class", "callable"])
@pytest.mark.parametrize("bias", ["layers", "complete"])
def test_round_trip(target: Any, bias: str, tmp_path: Path) -> None:
    saved = explain(MODEL, IMAGES, target, bias=bias)
    assert saved.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    assert_equal(saved, Explanation.load(tmp_path / "deep" / "folder"))


def test_recipe_with_callables_is_described(tmp_path: Path) -> None:
    explain(MODEL, IMAGES, readout=torch.atan, taps=("0", "last")).save(tmp_path / "e")
    loaded = Explanation.load(tmp_path / "e").recipe
    assert loaded == Recipe(readout="atan", taps=("0", "last"))


def test_an_earlier_explanation_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    explain(MODEL, IMAGES, 0).save(folder)
    second = explain(MODEL, IMAGES, 1)
    second.save(folder)
    assert_equal(second, Explanation.load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("content", ["file", "folder"])
def test_other_content_is_never_overwritten(content: str, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    if content == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("precious")
    with pytest.raises(ExplanationError, match="exists and is no earlier output"):
        explain(MODEL, IMAGES).save(place)
    kept = place if content == "file" else place / "thesis.txt"
    assert kept.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [place]


def test_failure_while_writing_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "e"
    first = explain(MODEL, IMAGES, 0)
    first.save(folder)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="No space left"):
        explain(MODEL, IMAGES, 1).save(folder)
    monkeypatch.undo()
    assert_equal(first, Explanation.load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no complete explanation: manifest.json is missing"),
        (lambda folder: (folder / "arrays.safetensors").unlink(), "arrays.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "no readable explanation"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "not an explanation of format 1"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1}'), "incomplete explanation"),
        (lambda folder: (folder / "arrays.safetensors").write_bytes(b"torn"), "no readable explanation"),
    ],
)
def test_damaged_folders(damage: Any, message: str, tmp_path: Path) -> None:
    folder = explain(MODEL, IMAGES).save(tmp_path / "e")
    damage(folder)
    with pytest.raises(ExplanationError, match=message):
        Explanation.load(folder)


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(ExplanationError, match=r"manifest.json is missing"):
        Explanation.load(tmp_path / "none")


def test_a_result_of_the_command_holds_its_explanation_inside(tmp_path: Path) -> None:
    explain(MODEL, IMAGES).save(tmp_path / "explanation")
    with pytest.raises(ExplanationError, match=r"manifest.json is missing. There is one in .*explanation\.$"):
        Explanation.load(tmp_path)


def test_weights_and_bias_shares() -> None:
    found = explain(MODEL, IMAGES)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2))
    assert [layer.name for layer in found.bias_layers] == ["0", "1", "3"]
    shares = torch.stack([layer.weight for layer in found.bias_layers], 1)
    torch.testing.assert_close(shares.sum(1), torch.full((2,), 0.2))


def test_short_repr() -> None:
    assert repr(explain(MODEL, IMAGES, 3)) == "Explanation(2 image(s), map 8x8, target 3, 3, 2 layers)"
