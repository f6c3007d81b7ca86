"""`evaluate_dataset`: numbers by hand, the same as the command's, continued after kill -9, workers that die."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import polars
import pytest
import running
from PIL import Image
from rich.console import Console
from running import pictures, tiny
from typer.testing import CliRunner

from integrative_cam import get_method
from integrative_cam.cli._app import app
from integrative_cam.cli._evaluate import print_summary
from integrative_cam.errors import InputError, RecipeError
from integrative_cam.evaluate import Evaluation, Interval, bootstrap_mean, evaluate_dataset
from integrative_cam.models import read_image
from integrative_cam.run import Progress

METHODS = ("integrative", "gradcam")


def measured(source: Path, out: object, network: str = "tiny", **changes: object) -> Evaluation:
    settings = {"metrics": ("complexity", "area"), **changes}
    return evaluate_dataset(source, [f"{running.__file__}:{network}"], METHODS, out=str(out), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    pictures(folder, 4)
    return folder


@pytest.fixture(scope="module")
def whole(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation that nothing disturbed."""
    return measured(photographs, tmp_path_factory.mktemp("whole") / "out")


def test_means_differences_and_win_rates_by_hand(photographs: Path, whole: Evaluation) -> None:
    """`complexity` is the mean of the map, lower is better."""
    network = tiny()
    values: dict[str, list[float]] = {method: [] for method in METHODS}
    for path in sorted(photographs.rglob("*.png")):
        tensor = network.preprocessing(read_image(path)).tensor
        for method in METHODS:
            values[method].append(get_method(method)(network.model, tensor).map.mean().item())
    for method in METHODS:
        key = (polars.col("method") == method) & (polars.col("metric") == "complexity")
        assert whole.rows.filter(key)["value"].to_list() == pytest.approx(values[method], rel=1e-5)
    ours, theirs = (next(s for s in whole.scores if (s.metric, s.method) == ("complexity", m)) for m in METHODS)
    assert ours.mean.mean == pytest.approx(sum(values["integrative"]) / 4, rel=1e-5)
    assert (ours.difference, ours.win_rate) == (None, None)
    differences = [left - right for left, right in zip(values["integrative"], values["gradcam"], strict=True)]
    assert theirs.difference is not None
    assert theirs.difference.mean == pytest.approx(sum(differences) / 4, rel=1e-4)
    assert theirs.win_rate is not None
    assert theirs.win_rate.mean == sum(difference < 0 for difference in differences) / 4
    (row,) = (
        whole.table()
        .filter((polars.col("method") == "gradcam") & (polars.col("metric") == "complexity"))
        .rows(named=True)
    )
    assert Interval(row["mean"], row["mean_low"], row["mean_high"], row["images"]) == theirs.mean
    assert Interval(row["difference"], row["difference_low"], row["difference_high"], 4) == theirs.difference
    assert (row["win_rate"], row["model"]) == (theirs.win_rate.mean, f"{running.__file__}:tiny")
    better = min(METHODS, key=lambda method: sum(values[method]))
    assert whole.mean_ranks() == {method: 1.0 if method == better else 2.0 for method in METHODS}


def test_the_command_gives_the_same(photographs: Path, whole: Evaluation, tmp_path: Path) -> None:
    words = ["evaluate", str(photographs), "--model", f"{running.__file__}:tiny", "--methods", ",".join(METHODS)]
    done = CliRunner().invoke(app, [*words, "--metrics", "complexity,area", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    for name in ("results.csv", "manifest.json", "plots/area-mean.svg"):
        assert (tmp_path / "out" / name).read_bytes() == (Path(whole.out) / name).read_bytes()
    interval = whole.scores[0].mean
    assert f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]" in done.stdout


def killed_after(parts: int, photographs: Path, out: Path) -> int:
    """The signal that ended a process, killed by kill -9 once so many photographs are measured."""

    def kill(progress: Progress) -> None:
        if progress.done == parts:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        measured(photographs, out, progress=kill)
        os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals of POSIX")
def test_killed_it_continues_with_what_is_missing(photographs: Path, whole: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stamps: dict[Path, int] = {}
    for parts in (1, 3):
        assert killed_after(parts, photographs, out) == signal.SIGKILL
        stored = {path: path.stat().st_mtime_ns for path in (out / "parts").rglob("*.json")}
        assert len(stored) == parts
        assert stamps.items() <= stored.items()  # nothing is measured twice
        stamps = stored
    (out / "parts" / "0" / ".000003.json-dead.draft").write_text("torn")
    seen: list[Progress] = []
    continued = measured(photographs, out, progress=seen.append)
    assert [progress.done for progress in seen] == [3, 4]
    assert continued.rows.equals(whole.rows)
    assert continued.scores == whole.scores
    assert not list(out.rglob("*.draft"))


def test_processes_and_another_store_give_the_same(photographs: Path, whole: Evaluation, tmp_path: Path) -> None:
    assert measured(photographs, tmp_path / "out", processes=2).rows.equals(whole.rows)
    assert measured(photographs, f"memory://{tmp_path.name}").scores == whole.scores


def test_a_photograph_that_kills_its_workers_is_named_and_the_others_measured(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 4, white=[1])
    evaluation = measured(tmp_path / "source", tmp_path / "out", "doomed", processes=2)
    assert evaluation.failures == ((tmp_path / "source" / keys[1], "a worker died on it (exit code -9), 3 times"),)
    assert set(evaluation.rows["image"]) == {*keys} - {keys[1]}


def test_values_that_are_no_probabilities_are_not_measured(photographs: Path, tmp_path: Path) -> None:
    evaluation = measured(photographs, tmp_path / "out", "regression", limit=1)
    ((_, reason),) = evaluation.failures
    assert reason.endswith("its task is regression; metrics are for classification and multi-label.")


def test_the_intervals_are_those_of_the_rows(whole: Evaluation) -> None:
    for score in whole.scores:
        key = (polars.col("method") == score.method) & (polars.col("metric") == score.metric)
        values = whole.rows.filter(key)["value"].to_torch()
        assert bootstrap_mean(values) == score.mean


def test_what_cannot_be_measured_is_refused_before_anything_is_written(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="reference layercam is not among the methods, integrative, gradcam"):
        measured(photographs, out, reference="layercam")
    with pytest.raises(InputError, match="processes must be at least 1, but got 0"):
        measured(photographs, out, processes=0)
    with pytest.raises(RecipeError, match="Did you mean 'drop'"):
        measured(photographs, out, metrics=["dorp"])
    assert not out.exists()


def test_a_folder_of_another_version_is_left_alone(photographs: Path, tmp_path: Path) -> None:
    """0.1.0 kept its rows elsewhere; its manifest tells."""
    (tmp_path / "manifest.json").write_text('{"steps": 16, "models": ["tiny"], "weights": []}')
    with pytest.raises(InputError, match=r"weights was \[\], now null.*choose another --out"):
        measured(photographs, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


SURE = """
import torch
from torch import nn
from integrative_cam.models import Network, Preprocessing

def sure():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model[0].weight.data = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])[:, :, None, None]
    model[-1].weight.data = 2 * torch.eye(4)
    model[0].bias.data.zero_(), model[-1].bias.data.zero_()
    return Network("sure", model.eval(), Preprocessing(8, (8, 8)))
"""


def test_grid_pointing_takes_photographs_of_which_the_network_is_sure(tmp_path: Path) -> None:
    """Red, green, blue and white are classes, which a convolution of one pixel sees only in their quadrants."""
    (tmp_path / "photos").mkdir()
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3, "grey": (118,) * 3}
    for name, colour in colours.items():
        Image.new("RGB", (12, 12), colour).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "net.py").write_text(SURE)

    def evaluated(dataset: str, out: str, **settings: Any) -> Evaluation:
        methods, metrics = ("hirescam", "uniform"), ("complexity", "grid-pointing")
        network = [f"{tmp_path / 'net.py'}:sure"]
        return evaluate_dataset(
            tmp_path / dataset, network, methods, metrics, out=tmp_path / out, reference="hirescam", **settings
        )

    evaluation = evaluated("photos", "all")
    grid = evaluation.rows.filter(polars.col("metric") == "grid-pointing")
    assert sorted(grid["image"].unique()) == ["blue.png", "green.png", "red.png", "white.png"]
    assert grid.filter(polars.col("method") == "hirescam")["value"].to_list() == pytest.approx([1] * 4)
    assert grid.filter(polars.col("method") == "uniform")["value"].to_list() == [0.25] * 4
    assert evaluation.left_out == {"grid-pointing: the network is not sure of the class (below 0.5)": 1}
    assert [score.mean.n for score in evaluation.scores if score.method == "hirescam"] == [5, 4]
    printed = Console(record=True, width=200, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("integrative_cam.cli._evaluate.Console", lambda **_: printed)
        print_summary(evaluation)
    assert "n = 5: mean" in (text := " ".join(printed.export_text().split()))
    assert text.count(", n = 4") == 2
    # The others in the mosaics may be any of the data set, so that no value depends on how many are measured.
    first = evaluated("photos", "first", limit=1)
    assert first.rows.rows() == evaluation.rows.filter(polars.col("image") == "blue.png").rows()
    (tmp_path / "list.csv").write_text("file\nphotos/red.png\nphotos/green.png\nphotos/blue.png\n")
    three = evaluated("list.csv", "three")
    assert three.left_out == {"grid-pointing: too few photographs of other classes of which the network is sure": 3}
    assert set(three.rows["metric"]) == {"complexity"}
