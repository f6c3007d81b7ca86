"""Faults that really happen: kill -9 at every step, dead workers, a full disk, a silent source."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from running import Deadly, job, pictures

from integrative_cam.models import Preprocessing

resource = pytest.importorskip("resource", reason="needs the limits of POSIX")
pytest.importorskip("pyarrow", reason="needs the extra run: pip install 'integrative-cam[run]'")
pytest.importorskip("fsspec", reason="needs the extra run: pip install 'integrative-cam[run]'")

from integrative_cam.run import Progress, Results, RetryPolicy, run  # noqa: E402
from integrative_cam.run._archives import Item  # noqa: E402
from integrative_cam.run._decode import Decoders, Decoding, Sample  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals of POSIX")

QUICK = RetryPolicy(timeout=0.4, attempts=2, pause=0.05)


def in_child(act: Callable[[], int]) -> int:
    """What `act` returns in a process of its own, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            os._exit(act())
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_complete(dest: Path, keys: list[str]) -> None:
    assert Results(str(dest)).table(["image"])["image"].to_pylist() == keys


# kill -9.


class Reaper:
    """Kills this process at the n-th step of writing, with the file half written where it is open."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        sync, replaced, unlinked = os.fsync, Path.replace, Path.unlink

        def fsync(descriptor: int) -> None:
            if not self.left:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            self.step()
            sync(descriptor)

        def replacing(path: Path, target: Path) -> Path:
            self.step()
            found = replaced(path, target)
            self.step()
            return found

        def unlink(path: Path, missing_ok: bool = False) -> None:
            self.step()
            unlinked(path, missing_ok)

        os.fsync, Path.replace, Path.unlink = fsync, replacing, unlink  # type: ignore[assignment,method-assign]


def test_killed_at_any_step_of_writing_the_next_run_goes_on(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 3)
    wanted, dest = tmp_path / "undisturbed", tmp_path / "out"
    made = job(tmp_path / "source", dest, shard=2)
    assert run(replace(made, dest=str(wanted)), workers=0).code == 0

    def attempt(last: int) -> int:
        Reaper(last).install()
        return run(made, workers=0).code

    kills = 0
    # A new run is killed at step 0, 1, 2, ..., and then continued.
    for last in range(200):
        shutil.rmtree(dest, ignore_errors=True)
        code = in_child(lambda last=last: attempt(last))  # type: ignore[misc]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        if (dest / "manifest.json").exists():
            assert {*Results(str(dest)).table(["image"])["image"].to_pylist()} <= {*keys}  # never torn
        assert run(made, workers=0).code == 0
        assert contents(dest) == contents(wanted)
    assert kills > 20  # manifest, two shards and records, failures.csv, each at several steps
    # One run killed again and again, each time a little later.
    shutil.rmtree(dest)
    codes = [in_child(lambda last=last: attempt(last)) for last in range(3, 60, 4)]  # type: ignore[misc]
    assert codes.count(-signal.SIGKILL) >= 3
    assert codes[-1] == 0
    assert contents(dest) == contents(wanted)


COMMAND = "import sys; from integrative_cam.cli import main; sys.argv = ['icam', *sys.argv[1:]]; main()"


def test_killed_at_random_moments_no_process_is_left_and_nothing_lost(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 60)
    dest = tmp_path / "out"
    made = job(tmp_path / "source", dest, "slow", shard=6)
    options = {"--out": dest, "--model": made.model, "--shard": 6, "--batch": 4, "--workers": 2, "--decoders": 1}
    command = [sys.executable, "-c", COMMAND, "run", str(tmp_path / "source"), "--device", "cpu"]
    command += [str(word) for pair in options.items() for word in pair]

    def files() -> int:
        return sum(path.is_file() for path in dest.rglob("*"))  # not their contents: drafts come and go

    for kill in (1, 2):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        before = files()
        while files() < before + 1 + 2 * kill and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while (left := session(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left
        assert 0 < len(Results(str(dest))) < 60
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "60 images explained, " in done.stdout
    assert "of them by an earlier run" in done.stdout
    assert_complete(dest, keys)
    run(job(tmp_path / "source", tmp_path / "alone", "slow", shard=6), workers=0)
    for left, right in zip(Results(str(dest)), Results(str(tmp_path / "alone")), strict=True):
        torch.testing.assert_close(left.map, right.map, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(left.score, right.score, rtol=1e-4, atol=1e-6)


def session(leader: int) -> list[str]:
    """The running processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # gone meanwhile
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(command)
    return found


# Processes that die.


def test_a_worker_that_dies_is_replaced_and_its_part_done_again(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 20)
    fault = Path(os.environ["RUN_FAULTS"]) / "mortal"
    fault.unlink(missing_ok=True)
    seen: list[Progress] = []
    outcome = run(job(tmp_path / "source", tmp_path / "out", "mortal"), workers=1, report=seen.append)
    assert fault.exists()
    assert (outcome.images, outcome.code) == (20, 0)
    assert (seen[-1].done, seen[-1].total) == (20, 20)
    assert_complete(tmp_path / "out", keys)


def test_a_part_that_kills_every_worker_is_given_up_and_the_others_done(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 20, white=[2])
    outcome = run(job(tmp_path / "source", tmp_path / "out", "doomed"), workers=2)
    assert (outcome.images, outcome.code) == (12, 3)
    assert outcome.unfinished == {0: "a worker died on it (exit code -9), 3 times"}
    assert_complete(tmp_path / "out", keys[8:])


def items_of(folder: Path, keys: list[str]) -> list[Item]:
    return [Item(key, str(folder / key)) for key in keys]


def test_a_decoder_that_dies_takes_no_image_with_it(tmp_path: Path) -> None:
    keys = pictures(tmp_path, 40)
    with Decoders(1, Decoding(Preprocessing(resize=16, crop=(16, 16)), QUICK, 0)) as decoders:
        found = decoders(items_of(tmp_path, keys))
        first = next(found)
        assert decoders._pool is not None
        for process in list((decoders._pool._processes or {}).values()):
            os.kill(process.pid, signal.SIGKILL)
        samples = [first, *found]
    assert [sample.key for sample in samples] == keys
    assert all(isinstance(sample, Sample) for sample in samples)


def test_an_image_that_kills_its_decoder_is_named_and_the_others_decoded(tmp_path: Path) -> None:
    keys = pictures(tmp_path, 12, white=[5])
    with Decoders(2, Decoding(Deadly(resize=16, crop=(16, 16)), QUICK, 0)) as decoders:
        found = list(decoders(items_of(tmp_path, keys)))
        assert decoders.deaths == 3  # among others, and twice alone
    assert [each.key for each in found] == keys
    assert [(each.key, each.kind) for each in found if not isinstance(each, Sample)] == [(keys[5], "worker")]


# A full disk.


def test_a_file_size_limit_stops_the_run_and_more_room_continues_it(tmp_path: Path) -> None:
    keys = pictures(tmp_path / "source", 20)
    dest = tmp_path / "out"

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        outcome = run(job(tmp_path / "source", dest), workers=0)
        assert outcome.images == 0
        assert os.strerror(errno.EFBIG) in outcome.unfinished[0]
        assert "run the same command again" in outcome.unfinished[0]
        return outcome.code

    assert in_child(limited) == 3
    assert not list((dest / "shards").iterdir())
    assert run(job(tmp_path / "source", dest), workers=0).code == 0
    assert_complete(dest, keys)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    gc.collect()  # tables that were read may still map their files
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_keeps_what_is_written_and_room_continues_it(
    workers: int, small_disk: Path, tmp_path: Path
) -> None:
    keys = pictures(tmp_path / "source", 40)
    dest = small_disk / "out"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(24 * 1024))
    outcome = run(job(tmp_path / "source", dest), workers=workers)
    assert outcome.code == 3
    assert 0 < outcome.images < 40
    assert os.strerror(errno.ENOSPC) in next(iter(outcome.unfinished.values()))
    assert_complete(dest, keys[: outcome.images])
    shutil.copytree(dest, tmp_path / "larger", ignore=shutil.ignore_patterns(".*"))
    again = run(job(tmp_path / "source", tmp_path / "larger"), workers=0)
    assert (again.images, again.found, again.code) == (40, outcome.images, 0)
    assert_complete(tmp_path / "larger", keys)


# A source that stops answering.


class Server:
    """Serves a folder over HTTP; `hang` says which requests never get an answer."""

    def __init__(self, folder: Path) -> None:
        self.hang: Callable[[str, int], bool] = lambda path, attempt: False
        self.attempts: dict[str, int] = {}
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.attempts[self.path] = server.attempts.get(self.path, 0) + 1
                if server.hang(self.path, server.attempts[self.path]):
                    server.released.wait()
                    return
                file = folder / self.path.lstrip("/")
                self.send_response(200 if file.exists() else 404)
                content = file.read_bytes() if file.exists() else b""
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="needs the extra run: pip install 'integrative-cam[run]'")
    server = Server(folder)
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()


def test_a_source_that_hangs_is_asked_again_and_what_it_keeps_is_named(tmp_path: Path) -> None:
    names = pictures(tmp_path, 20)
    with serving(tmp_path) as server:
        urls = [f"{server.url}/{name}" for name in names]
        (tmp_path / "list.csv").write_text("file\n" + "\n".join(urls))
        server.hang = lambda path, attempt: names[13] in path or (names[4] in path and attempt == 1)
        made = job(tmp_path / "list.csv", tmp_path / "out", patience=QUICK)
        outcome = run(made, workers=0)
        assert [(failure.key, failure.kind) for failure in outcome.failures] == [(urls[13], "source")]
        assert "no answer in 2 attempts (nothing came within 0.4 s)" in outcome.failures[0].reason
        assert (outcome.images, outcome.code) == (19, 1)
        assert server.attempts[f"/{names[4]}"] == server.attempts[f"/{names[13]}"] == 2

        server.hang = lambda path, attempt: False
        again = run(made, workers=0)
        assert (again.images, again.found, again.code) == (20, 12, 0)
    assert_complete(tmp_path / "out", urls)


def test_a_source_that_is_down_stops_the_run_and_is_continued_later(tmp_path: Path) -> None:
    names = pictures(tmp_path, 40)
    with serving(tmp_path) as server:
        urls = [f"{server.url}/{name}" for name in names]
        (tmp_path / "list.csv").write_text("file\n" + "\n".join(urls))
        server.hang = lambda path, attempt: any(name in path for name in names[10:])
        made = job(tmp_path / "list.csv", tmp_path / "out", shard=20, patience=QUICK)
        outcome = run(made, workers=0)
        assert (outcome.images, outcome.code) == (10, 3)
        assert "The source stopped answering: 16 images in a row" in outcome.unfinished[1]
        server.hang = lambda path, attempt: False
        assert run(made, workers=0).code == 0
    assert_complete(tmp_path / "out", urls)


def test_a_missing_remote_file_is_no_silent_source(tmp_path: Path) -> None:
    names = pictures(tmp_path, 20)
    with serving(tmp_path) as server:
        gone = [f"{server.url}/gone-{number}.png" for number in range(19)]
        (tmp_path / "list.csv").write_text("file\n" + "\n".join([*gone, f"{server.url}/{names[0]}"]))
        outcome = run(job(tmp_path / "list.csv", tmp_path / "out", shard=20, patience=QUICK), workers=0)
        assert {failure.kind for failure in outcome.failures} == {"missing"}
        assert set(server.attempts.values()) == {1}
    assert (outcome.images, outcome.code) == (1, 1)
