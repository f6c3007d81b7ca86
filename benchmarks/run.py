"""`icam run` at some scale: throughput per core, scaling, and kills; the figures of docs/scale.md.

    python benchmarks/run.py ../shared/data/photos --images 20000

The photographs are repeated with augmentation into WebDataset tars and explained at 64 pixels by SqueezeNet 1.1 with
random weights: what is measured is the way of the data, and a network as small as this leaves it least room to hide.
Every worker has one thread and decodes itself, so that a worker is a core. The limit is the same network and method on
one batch that lies ready, for as many rounds as take ten seconds. Speeds of runs are taken between the first and the
last finished tar, which leaves out what starting costs. Then, on each engine, five times: kill -9 at a random moment
and the same command again, until it ends; and a comparison with the run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from rich.progress import track

from integrative_cam import explain
from integrative_cam.models import Network, Preprocessing
from integrative_cam.run import Results, RetryPolicy
from integrative_cam.run._archives import Item
from integrative_cam.run._decode import TOGETHER, Decoding, decode, pieces

SIDE = 64
BATCH = 32
PER_TAR = 512
"""At most; fewer where there would be less than 16 tars. A shard is a quarter of it."""
KILLS = 5
COMMAND = "import sys; from integrative_cam.cli import main; sys.argv = ['icam', *sys.argv[1:]]; main()"


def network() -> Network:
    """SqueezeNet 1.1, random but the same every time; what the workers load."""
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None).eval()
    return Network("squeezenet1_1", model, Preprocessing(resize=SIDE, crop=(SIDE, SIDE)))


def write_tars(photos: list[Path], folder: Path, count: int, per_tar: int) -> list[str]:
    """Each photograph again and again, cropped, mirrored and lit at random; the keys that a run must give."""
    keys = []
    for start in track(range(0, count, per_tar), "Writing images", console=Console(stderr=True)):
        path = folder / f"images-{start // per_tar:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(start, min(start + per_tar, count)):
                content = augmented(photos[number % len(photos)], random.Random(number))
                info = tarfile.TarInfo(f"{number:07d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                keys.append(f"{path.name}/{info.name}")
    return keys


def augmented(photo: Path, chance: random.Random) -> bytes:
    image = Image.open(photo).convert("RGB")
    image.thumbnail((160, 160))
    width, height = image.size
    left, top = chance.randrange(width // 4), chance.randrange(height // 4)
    image = image.crop((left, top, left + 3 * width // 4, top + 3 * height // 4))
    if chance.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageEnhance.Brightness(image).enhance(chance.uniform(0.7, 1.3))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()


def speed_of_model(tars: Path) -> tuple[float, float]:
    """Images per second of one thread: forward + gradient to the input, and explain."""
    torch.set_num_threads(1)
    ready = network()
    with tarfile.open(sorted(tars.glob("*.tar"))[0]) as tar:
        members = [tar.extractfile(member) for member in tar.getmembers()[:BATCH]]
        images = torch.cat([ready.preprocessing(Image.open(each).convert("RGB")).tensor for each in members if each])

    def bare() -> None:
        given = images.clone().requires_grad_()
        torch.autograd.grad(ready.model(given).amax(1).sum(), given)

    def full() -> None:
        explain(ready.model, images)

    speeds = []
    for act in (bare, full):
        act()
        rounds, start = 0, time.perf_counter()
        while time.perf_counter() - start < 10:
            act()
            rounds += 1
        speeds.append(rounds * len(images) / (time.perf_counter() - start))
    return speeds[0], speeds[1]


def command(tars: Path, dest: Path, engine: str, workers: int, shard: int) -> list[str]:
    options = {
        "--out": dest, "--model": f"{Path(__file__).resolve()}:network", "--engine": engine, "--workers": workers,
        "--decoders": 0, "--batch": BATCH, "--shard": shard, "--device": "cpu",
    }  # fmt: skip
    return [sys.executable, "-c", COMMAND, "run", str(tars), *(str(word) for pair in options.items() for word in pair)]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def speed_of_run(dest: Path) -> float:
    """Images per second between the first and the last finished tar."""
    records = sorted((dest / "done").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    images = [sum(shard["images"] for shard in json.loads(path.read_text())["shards"]) for path in records]
    seconds = (records[-1].stat().st_mtime_ns - records[0].stat().st_mtime_ns) / 1e9
    return sum(images[1:]) / seconds if seconds else float("nan")


def killed_and_continued(words: list[str], dest: Path, shard: int, expected_seconds: float) -> list[int]:
    """Images that were in finished tars or shards after each kill."""
    chance, left = random.Random(0), []
    for kill in range(KILLS):
        process = start(words)
        before = len(list(dest.glob("shards/*.parquet")))
        # Not before it has written anything, then anywhere in its share of the time.
        while len(list(dest.glob("shards/*.parquet"))) == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, expected_seconds / (KILLS + 1)))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            sys.exit(f"kill {kill + 1} came too late: use more --images")
        left.append(len(list(dest.glob("shards/*.parquet"))) * shard)
    if start(words).wait():
        sys.exit("the last run did not end well")
    return left


def differences(dest: Path, whole: Path, keys: list[str]) -> dict[str, int]:
    """Images missing, doubled, unknown; maps and predictions unlike those of the undisturbed run."""
    found, wanted = Results(str(dest)), Results(str(whole))
    counts = Counter(found.table(["image"])["image"].to_pylist())
    unlike = 0
    for left, right in zip(found, wanted, strict=True):
        same = bool((left.map - right.map).abs().max() < 1.01 / 255) and left.target_names == right.target_names
        unlike += not same
    return {
        "missing": len(set(keys) - counts.keys()),
        "doubled": sum(count > 1 for count in counts.values()),
        "unknown": len(counts.keys() - set(keys)),
        "unlike": unlike,
    }


def at_full_size(photos: list[Path], folder: Path) -> tuple[float, float]:
    """Of the photographs as they are, at 224 pixels: images decoded per second of one core, KiB stored per image."""
    folder.mkdir()
    listed = folder / "list.csv"
    listed.write_text("\n".join(["file", *(str(path.resolve()) for path in photos)]))
    items = [Item(str(path), str(path.resolve())) for path in photos]
    begin = time.perf_counter()
    for piece in pieces(items, TOGETHER):
        decode(piece, Decoding(Preprocessing(), RetryPolicy(), 0))
    speed = len(photos) / (time.perf_counter() - begin)
    out = folder / "out"
    if start([sys.executable, "-c", COMMAND, "run", str(listed), "--out", str(out), "--device", "cpu"]).wait():
        sys.exit("the run over photographs failed")
    return speed, sum(path.stat().st_size for path in (out / "shards").iterdir()) / len(photos) / 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=20_000, help="how many to make of them")
    parser.add_argument("--out", type=Path, default=Path("run-benchmark"), help="for images and results")
    given = parser.parse_args()
    photos = sorted(given.photos.glob("*.jpg"))
    if not photos or given.images < 16 * BATCH:
        sys.exit(f"needs *.jpg in the folder, and --images of at least {16 * BATCH}")
    per_tar = min(PER_TAR, given.images // 16)
    shard = per_tar // 4
    shutil.rmtree(given.out, ignore_errors=True)
    tars = given.out / "source"
    tars.mkdir(parents=True)
    keys = write_tars(photos, tars, given.images, per_tar)

    bare, limit = speed_of_model(tars)
    print(f"{given.images} images of {SIDE} pixels, SqueezeNet 1.1, batch {BATCH}; {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}\n")
    print(f"Bare, one thread: forward + gradient {bare:.1f} images/s; explain {limit:.1f} images/s\n")
    print("| engine | workers | images/s | per core | of explain alone | seconds in all |\n|---|---|---|---|---|---|")
    seconds: dict[tuple[str, int], float] = {}
    for engine in ("local", "ray"):
        for workers in (1, 2):
            dest = given.out / f"{engine}-{workers}"
            began = time.perf_counter()
            if start(command(tars, dest, engine, workers, shard)).wait():
                sys.exit(f"{engine} with {workers} workers failed")
            seconds[engine, workers] = time.perf_counter() - began
            speed = speed_of_run(dest)
            share = f"{speed / workers:.1f} | {speed / workers / limit:.0%}"
            print(f"| {engine} | {workers} | {speed:.1f} | {share} | {seconds[engine, workers]:.0f} |", flush=True)
    for engine in ("local", "ray"):
        one, two = (speed_of_run(given.out / f"{engine}-{workers}") for workers in (1, 2))
        print(f"\nFrom 1 to 2 workers, {engine}: {two / one:.2f} times", end="")
    whole = given.out / "local-1"
    stored = sum(path.stat().st_size for path in (whole / "shards").iterdir())
    print(f"\n\nStored at this size: {stored / given.images / 1024:.1f} KiB per image\n")

    speed, kibibytes = at_full_size(photos[:32], given.out / "full-size")
    print(f"At 224 pixels, {len(photos[:32])} photographs as they are, EfficientNet-Lite0: ", end="")
    print(f"{speed:.0f} images decoded per second and core, {kibibytes:.1f} KiB stored per image\n")

    print("| engine | images left after each kill -9 | missing | doubled | unknown | unlike the undisturbed run |")
    print("|---|---|---|---|---|---|")
    for engine in ("local", "ray"):
        dest = given.out / f"{engine}-killed"
        left = killed_and_continued(command(tars, dest, engine, 2, shard), dest, shard, seconds[engine, 2])
        found = differences(dest, whole, keys)
        print(f"| {engine} | {', '.join(map(str, left))} | {' | '.join(map(str, found.values()))} |", flush=True)
    levels = np.mean([differences(given.out / name, whole, keys)["unlike"] for name in ("local-2", "ray-1", "ray-2")])
    print(f"\nUnlike local with one worker, of the other runs: {levels:.0f} images on average")


if __name__ == "__main__":
    main()
