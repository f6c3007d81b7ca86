"""Do maps of signals and volumes lie where the class is visible? On data where that place is known.

    python examples/signals_and_volumes.py

- signals: a train of beats in noise, like an electrocardiogram. One beat is wide, inverted, doubled or flat, which is
  the class; its place is that beat.
- volumes: noise with a rod along one of the three axes or the diagonal, which is the class; its place is the cube
  around the rod.

A small 1-D and a small 3-D network with pooling are trained, in seconds each. For new samples that they classify
correctly, the table says how often the map's maximum lies in the place, and which share of the map's sum does. It also
has maps that know nothing of the network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrative_cam import get_method
from integrative_cam.evaluate import bootstrap_mean, energy, pointing

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from integrative_cam.evaluate import Interval

CLASSES = 4
LENGTH, PERIOD, REACH = 128, 16, 7
"""Of signals: samples, samples per beat, and how far a beat reaches to either side."""
SIDE, ROD = 16, 5
METHODS = ("integrative", "gradcam", "center", "uniform", "random")


@dataclass(frozen=True)
class Samples:
    """Inputs, their classes, and where each class is visible."""

    values: Float[Tensor, "sample 1 *space"]
    label: Int[Tensor, "sample"]
    place: Bool[Tensor, "sample *space"]


def signals(count: int, seed: int) -> Samples:
    """Beats with a jitter of one sample to either side; one beat, chosen at random, is of the class."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 1, LENGTH, generator=generator) / 5
    label = torch.randint(CLASSES, (count,), generator=generator)
    place = torch.zeros(count, LENGTH, dtype=torch.bool)
    beats = LENGTH // PERIOD
    for sample in range(count):
        odd = int(torch.randint(beats, (), generator=generator))
        for beat in range(beats):
            centre = beat * PERIOD + PERIOD // 2 + int(torch.randint(-1, 2, (), generator=generator))
            time = torch.arange(LENGTH) - centre
            kind = int(label[sample]) if beat == odd else -1
            values[sample, 0] += _beat(time, kind)
            if beat == odd:
                place[sample] = time.abs() <= REACH
    return Samples(values, label, place)


def _beat(time: Tensor, kind: int) -> Tensor:
    spike = _pulse(time, 1.0)
    odd = (_pulse(time, 3.0), -spike, (_pulse(time + 3, 1.0) + _pulse(time - 3, 1.0)), spike / 4)
    return spike if kind < 0 else odd[kind]


def _pulse(time: Tensor, width: float) -> Tensor:
    return 2 * (-0.5 * (time / width) ** 2).exp()


def volumes(count: int, seed: int) -> Samples:
    """A rod of five voxels, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 1, SIDE, SIDE, SIDE, generator=generator) / 2
    label = torch.randint(CLASSES, (count,), generator=generator)
    place = torch.zeros(count, SIDE, SIDE, SIDE, dtype=torch.bool)
    along, middle = torch.arange(ROD), torch.full((ROD,), ROD // 2)
    rods = [(along, middle, middle), (middle, along, middle), (middle, middle, along), (along, along, along)]
    for sample in range(count):
        corner = torch.randint(SIDE - ROD + 1, (3,), generator=generator).tolist()
        cube = tuple(slice(start, start + ROD) for start in corner)
        values[(sample, 0, *cube)][rods[label[sample]]] += 2.5
        place[(sample, *cube)] = True
    return Samples(values, label, place)


def signal_network() -> nn.Module:
    """Three 1-D convolutions at two resolutions."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 7, padding=3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


def volume_network() -> nn.Module:
    """Two 3-D convolutions at two resolutions."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 5, padding=2), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """How samples are made, what learns them, and for how many steps."""

    make: Callable[[int, int], Samples]
    network: Callable[[], nn.Module]
    samples: int
    steps: int


TASKS = {
    "signals": Task(signals, signal_network, 2048, 200),
    "volumes": Task(volumes, volume_network, 1024, 150),
}


def trained(task: Task, seed: int) -> nn.Module:
    """A network in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, samples = task.network(), task.make(task.samples, seed)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(task.steps):
            batch = torch.randint(len(samples.label), (32,))
            loss = F.cross_entropy(model(samples.values[batch]), samples.label[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def correct(model: nn.Module, samples: Samples) -> Samples:
    """Those that the network classifies correctly."""
    with torch.no_grad():
        right = model(samples.values).argmax(1) == samples.label
    return Samples(samples.values[right], samples.label[right], samples.place[right])


def localised(model: nn.Module, samples: Samples, name: str) -> tuple[Float[Tensor, "sample"], Float[Tensor, "sample"]]:
    """Pointing and energy of a method's maps in the samples' places."""
    maps = torch.cat(
        [
            get_method(name)(model, values, label).map
            for values, label in zip(samples.values.split(64), samples.label.split(64), strict=True)
        ]
    )
    # The metrics take maps of two axes, and do not depend on which positions are neighbours.
    planes, places = maps.flatten(1)[:, None], samples.place.flatten(1)[:, None]
    return pointing(planes, places), energy(planes, places)


def main() -> None:
    """Read the arguments, train, explain, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300, help="new samples of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("mean over samples [95 % bootstrap interval]")
    for kind, task in TASKS.items():
        model, samples = trained(task, arguments.seed), task.make(arguments.samples, 10_000 + arguments.seed)
        right = correct(model, samples)
        print(f"{kind}: {len(right.label)} of {arguments.samples} classified correctly; "
              f"their places are {right.place.double().mean():.3f} of all")  # fmt: skip
        print(f"{'method':12} {'pointing':20}  {'energy':20}")
        for name in METHODS:
            cells = [_shown(bootstrap_mean(values)) for values in localised(model, right, name)]
            print(f"{name:12} {'  '.join(f'{cell:20}' for cell in cells)}", flush=True)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
