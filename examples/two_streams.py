"""Does the share of evidence name the input that contains the class? On data where that is known.

    python examples/two_streams.py --seeds 5

Each sample has two pictures of noise. One of them, chosen at random, contains a bar in one of four directions, which is
its class. Small networks that fuse the pictures early, in the middle or late are trained, in seconds each. For samples
that they classify correctly, the table says

- how often the share of evidence names the picture with the bar;
- how much of the two maps, on their common scale, lies in the other picture;
- how often the maximum of the right map lies on the bar;
- how often the larger sum of |gradient * input| names the picture with the bar.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrative_cam import explain, trace
from integrative_cam.evaluate import bootstrap_mean

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

SIDE, LENGTH, CLASSES = 16, 5, 4
SMALL = 12
"""The second picture's side where the fusion allows it to differ."""
KINDS = ("early", "middle", "late")


@dataclass(frozen=True)
class Samples:
    """Pictures of both streams, classes, which stream holds the bar, and where in that stream's picture."""

    pictures: tuple[Float[Tensor, "sample 1 height width"], Float[Tensor, "sample 1 height2 width2"]]
    label: Int[Tensor, "sample"]
    stream: Int[Tensor, "sample"]
    corner: Int[Tensor, "sample 2"]


class TwoStreams(nn.Module):
    """Two convolutions per stream, and fusion by concatenation: of pictures, of feature maps or of features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = (nn.Identity(), nn.Identity()) if kind == "early" else (_branch(1), _branch(1))
        self.fused = {"early": lambda: _branch(2), "middle": lambda: _unit(16, 16, 3), "late": nn.Identity}[kind]()
        self.head = nn.Linear(8 if kind == "early" else 16, CLASSES)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Class scores."""
        first, second = self.first(first), self.second(second)
        if self.kind == "late":
            return self.head(torch.cat([_pooled(first), _pooled(second)], 1))
        second = F.interpolate(second, size=first.shape[2:])
        return self.head(_pooled(self.fused(torch.cat([first, second], 1))))


def _unit(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU())


def _branch(inputs: int) -> nn.Sequential:
    return nn.Sequential(_unit(inputs, 8, LENGTH), _unit(8, 8, 3))


def _pooled(values: Tensor) -> Tensor:
    return F.adaptive_max_pool2d(values, 1).flatten(1)


def bars() -> Float[Tensor, "class length length"]:
    """Lying, standing, falling and rising."""
    lying, falling = torch.zeros(LENGTH, LENGTH), torch.eye(LENGTH)
    lying[LENGTH // 2] = 1
    return torch.stack([lying, lying.T, falling, falling.flip(1)])


def make(kind: str, count: int, seed: int) -> Samples:
    """Samples for a kind of network."""
    generator = torch.Generator().manual_seed(seed)
    sides = (SIDE, SIDE if kind == "early" else SMALL)
    label = torch.randint(CLASSES, (count,), generator=generator)
    stream = torch.randint(2, (count,), generator=generator)
    first, second = (torch.randn(count, 1, side, side, generator=generator) / 2 for side in sides)
    corner = torch.zeros(count, 2, dtype=torch.long)
    for sample in range(count):
        side = sides[stream[sample]]
        corner[sample] = torch.randint(side - LENGTH + 1, (2,), generator=generator)
        row, column = corner[sample].tolist()
        picture = (first, second)[stream[sample]][sample, 0]
        picture[row : row + LENGTH, column : column + LENGTH] += 2 * bars()[label[sample]]
    return Samples((first, second), label, stream, corner)


def trained(kind: str, seed: int, steps: int = 300) -> nn.Module:
    """A network of that kind, in evaluation mode; a few seconds on one core."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, samples = TwoStreams(kind), make(kind, 2048, seed)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            batch = torch.randint(len(samples.label), (64,))
            loss = F.cross_entropy(model(*(picture[batch] for picture in samples.pictures)), samples.label[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


@dataclass(frozen=True)
class Result:
    """Per correctly classified sample; `accuracy` over all."""

    accuracy: float
    named: Bool[Tensor, "sample"]
    other: Float[Tensor, "sample"]
    pointing: Bool[Tensor, "sample"]
    gradient_input: Bool[Tensor, "sample"]


def measured(model: nn.Module, samples: Samples) -> Result:
    """What the shares and maps say about samples whose stream is known."""
    explanation = explain(model, samples.pictures)
    streams, target = explanation.streams, explanation.target
    assert streams is not None
    assert target is not None
    stream, every = samples.stream, torch.arange(len(samples.stream))
    # Means over pixels: the pictures may differ in size.
    content = torch.stack([maps.mean((1, 2)) for maps in streams.scaled_maps if maps is not None], 1)
    inputs = trace(model, samples.pictures).inputs
    magnitude = torch.stack([entry.product.abs().flatten(1).sum(1) for entry in inputs], 1)
    correct = target == samples.label
    return Result(
        accuracy=correct.float().mean().item(),
        named=(streams.share.argmax(1) == stream)[correct],
        other=(content[every, 1 - stream] / content.sum(1))[correct],
        pointing=torch.tensor([_on_bar(streams.maps[stream[at]], samples.corner[at], at) for at in every.tolist()])[
            correct
        ],
        gradient_input=(magnitude.argmax(1) == stream)[correct],
    )


def _on_bar(maps: Float[Tensor, "sample height width"] | None, corner: Int[Tensor, "2"], sample: int) -> bool:
    assert maps is not None
    place = torch.tensor(divmod(int(maps[sample].argmax()), maps.shape[2]))
    return bool(((place >= corner) & (place < corner + LENGTH)).all())


def main() -> None:
    """Read the arguments, train, explain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="networks of each kind")
    parser.add_argument("--samples", type=int, default=500, help="new samples for each network")
    arguments = parser.parse_args()
    print(f"{arguments.seeds} networks of each kind, {arguments.samples} samples each; mean [95 % bootstrap interval]")
    print("chance: .500 for the stream, "
          f"{LENGTH**2 / SIDE**2:.3f} to {LENGTH**2 / SMALL**2:.3f} for the maximum on the bar")  # fmt: skip
    print(f"{'fusion':7} accuracy  {'share names it':20}  {'other map':20}  {'maximum on bar':20}  |gradient * input|")
    for kind in KINDS:
        results = [
            measured(trained(kind, seed), make(kind, arguments.samples, 1000 + seed)) for seed in range(arguments.seeds)
        ]
        accuracy = sum(result.accuracy for result in results) / len(results)
        columns = [
            bootstrap_mean(torch.cat([getattr(result, name) for result in results]).double())
            for name in ("named", "other", "pointing", "gradient_input")
        ]
        cells = [f"{column.mean:.3f} [{column.low:.3f}, {column.high:.3f}]" for column in columns]
        print(f"{kind:7} {accuracy:8.3f}  {'  '.join(f'{cell:20}' for cell in cells)}")


if __name__ == "__main__":
    main()
