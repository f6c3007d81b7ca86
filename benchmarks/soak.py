"""Does it hold for long, and under many hands? Prints what was tried, what was wrong, and how memory grew.

    python benchmarks/soak.py calls --n 10000                       # random networks, recipes, targets
    python benchmarks/soak.py threads --minutes 10 --threads 16     # on one network
    python benchmarks/soak.py processes --minutes 10 --processes 4  # on one network in shared memory
    python benchmarks/soak.py page --users 50                       # of the page's endpoints, each with a photograph

Exit code 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from memory import resident
from random_networks import outcome

from integrative_cam import __version__, explain
from integrative_cam.models import load, read_image
from integrative_cam.recipe import Recipe

SIDE = 96
"""Pixels of the photographs' sides for threads and processes: a call takes a fraction of a second."""
RECIPES = (Recipe(), Recipe(taps="last", bias="none"), Recipe(bias="complete"), get_method("layercam-fused").recipe)
NEAR = 1e-5
"""Of a map's values, 0 to 1, and of a score in parts of it."""
LATE = 0.2
"""Share of the time after which memory is compared with that at the end."""


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    calls = kinds.add_parser("calls")
    calls.add_argument("--n", type=int, default=10_000)
    calls.add_argument("--first", type=int, default=0, help="number of the first call")
    for name in ("threads", "processes"):
        kind = kinds.add_parser(name)
        kind.add_argument("--minutes", type=float, default=10)
        kind.add_argument(f"--{name}", type=int, default=16 if name == "threads" else 4, dest="count")
    page = kinds.add_parser("page")
    page.add_argument("--users", type=int, default=50)
    page.add_argument("--rounds", type=int, default=2, help="calls of each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"integrative-cam {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    if given.kind == "calls":
        return random_calls(given.first, given.n)
    if given.kind == "page":
        return visitors(given.users, given.rounds)
    return many_hands(given.kind, given.count, 60 * given.minutes)


def random_calls(first: int, count: int) -> int:
    """Calls by number, each checked as `wild.outcome` says."""
    came: Counter[str] = Counter()
    wrong: dict[str, list[int]] = {}
    begin = in_use()
    for seed in range(first, first + count):
        try:
            what, found = outcome(seed)
        except Exception as error:
            what, found = "crash", [f"crash: {type(error).__name__}: {error}"]
        came[what] += 1
        for each in found:
            wrong.setdefault(each.split(":")[0], []).append(seed)
        if seed == first + count // 5:
            begin = in_use()
    print(f"{count} calls: " + ", ".join(f"{number} x {what}" for what, number in came.most_common()))
    print(f"Memory: {_mib(in_use() - begin)} more than after a fifth of them")
    for kind, seeds in sorted(wrong.items()):
        print(f"WRONG {kind}: {len(seeds)} calls, such as {seeds[:5]}")
    print(f"{sum(map(len, wrong.values()))} wrong.")
    return 1 if wrong else 0


@dataclass(frozen=True)
class Work:
    """Calls on one network, and their maps and scores when nothing else runs."""

    model: nn.Module
    images: Tensor
    maps: dict[tuple[int, int], Tensor]
    scores: dict[tuple[int, int], Tensor]


@dataclass
class Done:
    """What a thread or process did: calls, those whose map or score was another, the largest difference."""

    calls: int = 0
    wrong: int = 0
    off: float = 0.0
    errors: list[str] = field(default_factory=list)
    grown: int = 0


def work() -> Work:
    """The bundled network in training mode, so that every call has to switch it; four photographs, four recipes."""
    import skimage

    network = load()
    folder = Path(skimage.__file__).parent / "data"
    names = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
    pictures = [read_image(folder / name).resize((SIDE, SIDE)) for name in names]
    views = [network.preprocessing(picture).tensor for picture in pictures]
    images = nn.functional.interpolate(torch.cat(views), SIDE)
    model = network.model.train()
    maps, scores = {}, {}
    for image in range(len(images)):
        for recipe in range(len(RECIPES)):
            found = explain(model, images[image : image + 1], None, RECIPES[recipe])
            maps[image, recipe], scores[image, recipe] = found.map, found.score
    return Work(model, images, maps, scores)


def hand(given: Work, seed: int, seconds: float) -> Done:
    """Make calls in a random order until the time is over; compare each with the one made alone."""
    torch.set_num_threads(1)
    draw, done = torch.Generator().manual_seed(seed), Done()
    begin, until, early = time.monotonic(), time.monotonic() + seconds, 0
    keys = list(given.maps)
    while time.monotonic() < until:
        image, recipe = key = keys[int(torch.randint(len(keys), (), generator=draw))]
        try:
            found = explain(given.model, given.images[image : image + 1], None, RECIPES[recipe])
        except Exception as error:
            done.errors.append(f"{type(error).__name__}: {error}")
            continue
        off = float((found.map - given.maps[key]).abs().max())
        off = max(off, float(((found.score - given.scores[key]) / given.scores[key]).abs()))
        done.calls, done.off = done.calls + 1, max(done.off, off)
        done.wrong += not off <= NEAR
        if not early and time.monotonic() > begin + LATE * seconds:
            early = in_use()
    done.grown = in_use() - early
    return done


def many_hands(kind: str, count: int, seconds: float) -> int:
    """Threads or processes on one network."""
    given = work()
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    found: list[Done] = []
    if kind == "threads":
        workers: list[Any] = [
            threading.Thread(target=lambda seed=seed: found.append(hand(given, seed, seconds))) for seed in range(count)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    else:
        given.model.share_memory()
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            found = pool.starmap(hand, [(given, seed, seconds) for seed in range(count)])
    changed = [name for name, value in given.model.state_dict().items() if not torch.equal(value, before[name])]
    modes = all(module.training for module in given.model.modules())
    errors = [error for done in found for error in done.errors]
    calls, wrong, off = (
        sum(done.calls for done in found),
        sum(done.wrong for done in found),
        max(done.off for done in found),
    )
    print(
        f"{count} {kind}, {seconds / 60:g} minutes, efficientnet-lite0 on {SIDE} x {SIDE} pixels, "
        f"{len(given.maps)} different calls: {calls} calls, {wrong} wrong maps (largest difference {off:.1e}), "
        f"{len(errors)} errors; {len(changed)} tensors changed, modes {'kept' if modes else 'CHANGED'}"
    )
    grown = max(done.grown for done in found)
    print(
        f"Memory: {_mib(grown)} more at the end than after {LATE:.0%} of the time"
        + ", in the process with most" * (kind == "processes")
    )
    for error in dict.fromkeys(errors):
        print(f"ERROR {error}")
    return 1 if wrong or errors or changed or not modes or len(found) < count else 0


def visitors(users: int, rounds: int) -> int:
    """So many at once through the page's endpoint `explain`, each with a photograph of its own."""
    import gradio_client
    import serving
    from PIL import Image

    serving.PATIENCE = 600.0  # on a busy machine
    network = load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = []
        draw = torch.Generator().manual_seed(0)
        for user in range(users):
            small = torch.randint(0, 256, (6, 8, 3), generator=draw, dtype=torch.uint8)
            Image.fromarray(small.numpy()).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{user}.png")
            view = network.preprocessing(read_image(folder / f"{user}.png"))
            found = explain(network.model, view.tensor)
            expected.append((int(found.target[0]), float(found.score[0])))
        apart = len({round(score, 4) for _, score in expected})
        with serving.served(folder / "log.txt") as address:
            server = _child()
            options = {"verbose": False, "download_files": str(folder), "httpx_kwargs": {"timeout": serving.PATIENCE}}
            clients = [gradio_client.Client(address, **options) for _ in range(users)]
            clients[0].predict(gradio_client.handle_file(str(folder / "0.png")), api_name="/explain")
            begin = _memory(server, "VmRSS")
            answers: list[tuple[str, float]] = []

            def visit(user: int) -> None:
                for _ in range(rounds):
                    start = time.monotonic()
                    try:
                        photograph = gradio_client.handle_file(str(folder / f"{user}.png"))
                        _, numbers = clients[user].predict(photograph, api_name="/explain")
                    except Exception as error:
                        what = f"error: {type(error).__name__}: {str(error)[:100]}"
                    else:
                        target, score = expected[user]
                        right = numbers["target"]["index"] == target and abs(numbers["score"]["score"] - score) < 1e-3
                        what = "right" if right else "wrong"
                    answers.append((what, time.monotonic() - start))

            threads = [threading.Thread(target=visit, args=(user,)) for user in range(users)]
            start = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            elapsed = time.monotonic() - start
            end, peak = _memory(server, "VmRSS"), _memory(server, "VmHWM")
        unforeseen = (folder / "log.txt").read_text().count("unexpected error")
    came = Counter(what for what, _ in answers)
    took = sorted(seconds for _, seconds in answers)
    print(f"gradio {version('gradio')}; {users} users at once, {rounds} calls each, {apart} different answers")
    print(
        ", ".join(f"{number} {what}" for what, number in came.most_common())
        + f"; {unforeseen} unexpected errors logged"
    )
    waited = f"median {statistics.median(took):.1f} s, longest {took[-1]:.1f} s"
    print(f"Waited: {waited}; {len(took) / elapsed:.1f} answers a second")
    print(f"Server's memory: {_mib(begin)} after one call, {_mib(peak)} at most, {_mib(end)} at the end")
    return 0 if came["right"] == users * rounds and not unforeseen else 1


def in_use() -> int:
    """Resident bytes after the allocator gave back what it only keeps (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(resident("VmRSS"))


def _child() -> int:
    """The process that this one started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return int(children[-1])


def _memory(process: int, what: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
