"""`icam run --engine ray`: the same results, actors that die, kill -9 of the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import job, pictures

from integrative_cam.errors import InputError

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'integrative-cam[ray]'")
pytest.importorskip("ray.data", reason="needs the extra ray: pip install 'integrative-cam[ray]'")

from integrative_cam.run import Results, run  # noqa: E402

COMMAND = "import sys; from integrative_cam.cli import main; sys.argv = ['icam', *sys.argv[1:]]; main()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray of two processors; the folder of faults, known to its workers."""
    faults = tmp_path_factory.mktemp("faults")
    places = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    variables = {"RUN_FAULTS": str(faults), "PYTHONPATH": places.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield faults
    ray.shutdown()


def assert_same(left: Path, right: Path) -> None:
    found, wanted = Results(str(left)), Results(str(right))
    exact = ["image", "rank", "target", "prediction"]
    assert found.table(exact).to_pylist() == wanted.table(exact).to_pylist()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.map, other.map, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(one.score, other.score, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-6)


def test_the_results_do_not_depend_on_engine_and_workers(cluster: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "source", 20)
    (tmp_path / "source" / "a" / "004.png").write_text("no image")
    given = {"target": "top2", "decoders": 1}
    outcomes = [
        run(job(tmp_path / "source", tmp_path / "none", target="top2"), workers=0),
        run(job(tmp_path / "source", tmp_path / "one", **given), workers=1),
        run(job(tmp_path / "source", tmp_path / "two", **given), workers=2),
        run(job(tmp_path / "source", tmp_path / "ray", **given), engine="ray", workers=2),
    ]
    for outcome in outcomes:
        assert (outcome.images, outcome.rows, outcome.code) == (19, 38, 1)
        assert [failure.key for failure in outcome.failures] == ["a/004.png"]
    for other in ("one", "two", "ray"):
        assert_same(tmp_path / other, tmp_path / "none")
    again = run(job(tmp_path / "source", tmp_path / "ray", **given), engine="ray", workers=2)
    assert again.found == 19


def test_an_actor_that_dies_is_replaced_by_ray(cluster: Path, tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 20)
    outcome = run(job(tmp_path / "source", tmp_path / "out", "mortal"), engine="ray", workers=1)
    assert (cluster / "mortal").exists()
    assert (outcome.images, outcome.code) == (20, 0)
    assert Results(str(tmp_path / "out")).table(["image"])["image"].to_pylist() == keys


def test_what_stops_a_run_comes_through_ray(cluster: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "source", 10)
    outcome = run(job(tmp_path / "source", tmp_path / "out", target="77"), engine="ray", workers=1)
    assert outcome.code == 3
    assert any("out of range" in reason for reason in outcome.unfinished.values())
    with pytest.raises(InputError, match="has no GPU"):
        run(job(tmp_path / "source", tmp_path / "gpu", device="cuda"), engine="ray")
    with pytest.raises(InputError, match="in the memory of this process"):
        run(job(tmp_path / "source", "memory://out"), engine="ray")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_killed_with_a_ray_of_its_own_another_engine_goes_on(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 30)
    dest = tmp_path / "out"
    made = job(tmp_path / "source", dest, "slow", shard=3)
    command = [sys.executable, "-c", COMMAND, "run", str(tmp_path / "source"), "--out", str(dest), "--engine", "ray"]
    command += ["--model", made.model, "--shard", "3", "--batch", "4", "--device", "cpu", "--decoders", "0"]
    free = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command, start_new_session=True, env=free, stderr=subprocess.DEVNULL)
    while len(list((dest / "done").glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(Results(str(dest))) < 30
    outcome = run(made, workers=0)
    assert (outcome.images, outcome.code) == (30, 0)
    assert outcome.found >= 9
    assert Results(str(dest)).table(["image"])["image"].to_pylist() == keys
