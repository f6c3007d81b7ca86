"""What the tests of `icam run` explain: small pictures, and networks that misbehave on request.

Workers load the networks by name, as FILE.py:FACTORY with this file. Faults that must happen once leave a file in the
folder that the environment variable RUN_FAULTS names; it is set here, before any process starts that inherits it.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from integrative_cam.methods._registry import get_method
from integrative_cam.models import Network, Preprocessing, View
from integrative_cam.run import Job

SIDE = 16
if "RUN_FAULTS" not in os.environ:
    FAULTS = tempfile.TemporaryDirectory(prefix="run-faults-")
    os.environ["RUN_FAULTS"] = FAULTS.name


class Tiny(nn.Module):
    """Two convolutions; `before` is called with each batch."""

    def __init__(self, before=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )
        self.before = before

    def forward(self, images: Tensor) -> Tensor:
        if self.before is not None:
            self.before(images)
        return self.layers(images)


def _network(before=None, preprocessing: Preprocessing | None = None) -> Network:
    plain = Preprocessing(resize=SIDE, crop=(SIDE, SIDE))
    labels = tuple(f"name {index}" for index in range(5))
    return Network("tiny", Tiny(before).eval(), preprocessing or plain, labels=labels)


def tiny() -> Network:
    return _network()


def regression() -> Network:
    return replace(_network(), task="regression")


def labels() -> Network:
    return replace(_network(), task="multi-label")


def other() -> Network:
    """Like `tiny` but for one weight."""
    network = _network()
    with torch.no_grad():
        network.model.layers[0].weight[0, 0, 0, 0] += 1
    return network


def slow() -> Network:
    return _network(lambda images: time.sleep(0.02 * len(images)))


def greedy() -> Network:
    """Out of memory with more than three images."""

    def ask(images: Tensor) -> None:
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return _network(ask)


def greedy_for_white() -> Network:
    """Out of memory with any white image."""

    def ask(images: Tensor) -> None:
        if images.flatten(1).amin(1).max() > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return _network(ask)


def afraid_of_white() -> Network:
    """The output for a white image is not finite."""

    class Afraid(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            white = images.flatten(1).amin(1) > 1
            return super().forward(images) / (~white).to(images)[:, None]

    return Network("afraid", Afraid().eval(), Preprocessing(resize=SIDE, crop=(SIDE, SIDE)))


def mortal() -> Network:
    """Kills its own process at the fourth batch, once."""
    seen: list[int] = []

    def ask(images: Tensor) -> None:
        seen.append(len(images))
        if len(seen) == 4 and first_time("mortal"):
            os.kill(os.getpid(), signal.SIGKILL)

    return _network(ask)


def doomed() -> Network:
    """Kills its own process at every white image."""

    def ask(images: Tensor) -> None:
        if images.flatten(1).amin(1).max() > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return _network(ask)


def first_time(fault: str) -> bool:
    """Whether this fault has not happened yet, in any process."""
    try:
        (Path(os.environ["RUN_FAULTS"]) / fault).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Deadly(Preprocessing):
    """Kills the process that decodes a white image."""

    def __call__(self, image: Image.Image) -> View:
        if np.asarray(image).min() == 255:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image)


def pictures(folder: Path, count: int, white: Sequence[int] = ()) -> list[str]:
    """Write noise, each picture its own, in two folders; their keys in order."""
    names = []
    for number in range(count):
        name = f"{'ab'[number * 2 // count]}/{number:03d}.png"
        values = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        if number in white:
            values[:] = 255
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)
        names.append(name)
    return names


def job(source: object, dest: object, network: str = "tiny", **changes: object) -> Job:
    given = {"method": get_method("integrative"), "shard": 8, "batch": 4, "decoders": 0, "device": "cpu"}
    return Job(str(source), str(dest), f"{Path(__file__)}:{network}", **{**given, **changes})
