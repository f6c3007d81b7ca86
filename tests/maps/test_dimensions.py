"""Signals and volumes: maps of trained networks lie where the class was read; files and borders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from integrative_cam import Explanation, explain
from integrative_cam._maps.fusion import resize


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "signals_and_volumes.py"
    spec = importlib.util.spec_from_file_location("signals_and_volumes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_map_of_a_signal_lies_on_the_odd_beat(example: ModuleType, tmp_path: Path) -> None:
    task = example.TASKS["signals"]
    model = example.trained(task, 0)
    samples = example.correct(model, task.make(100, 20_000))
    assert len(samples.label) > 80
    pointing, energy = example.localised(model, samples, "integrative")
    chance = samples.place.double().mean()
    assert pointing.mean() > 4 * chance
    assert energy.mean() > 4 * chance
    for control in ("center", "uniform", "random"):
        assert all(each.mean() < 2 * chance for each in example.localised(model, samples, control))
    found = explain(model, samples.values[:2])
    assert torch.equal(Explanation.load(found.save(tmp_path / "signal")).map, found.map)


@pytest.mark.slow
def test_a_map_of_a_volume_lies_on_the_rod(example: ModuleType, tmp_path: Path) -> None:
    task = example.TASKS["volumes"]
    model = example.trained(example.Task(task.make, task.network, 512, 60), 0)
    right = example.correct(model, task.make(60, 20_000))
    assert len(right.label) > 30
    pointing, energy = example.localised(model, right, "integrative")
    assert pointing.mean() > 0.4  # the place is 0.031 of the volume
    assert energy.mean() > 0.3
    found = explain(model, right.values[:2])
    assert found.map.shape == (2, 16, 16, 16)
    assert torch.equal(Explanation.load(found.save(tmp_path / "volume")).map, found.map)


def test_trilinear_borders_by_hand() -> None:
    """Doubled, each axis goes 0, 1/4, 3/4, 1 between two values: centres lie a quarter in, borders repeat."""
    corner = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    corner[0, 0, 0, 0] = 64
    axis = torch.tensor([4, 3, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(resize(corner, (4, 4, 4))[0], torch.einsum("i,j,k->ijk", axis, axis, axis))
    torch.testing.assert_close(
        resize(torch.tensor([[0.0, 6.0, 12.0]]), (9,))[0], torch.tensor([0.0, 0, 2, 4, 6, 8, 10, 12, 12])
    )
