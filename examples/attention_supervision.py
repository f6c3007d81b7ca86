"""Teach a network where not to look: a map in the loss removes a shortcut in the training data.

    python examples/attention_supervision.py --networks 8

Each picture of noise contains a faint bar in one of four directions, which is its class. In the training pictures, a
bright mark in the corner gives the class away too. Small networks learn the mark, and fail where there is none or a
wrong one. The corner is known to be irrelevant. Two penalties on its use are compared with no penalty:

- gradients: the squared input gradient of the summed log-probabilities there (Ross et al., arXiv:1703.03717);
- map: the share of the fused map that lies there.

All penalties start from the same weights and see the same batches. Their strengths are those with the best accuracy on
pictures without a mark under `--tune --networks 3`, on networks that are not reported.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrative_cam import explain
from integrative_cam.evaluate import bootstrap_mean, energy

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from integrative_cam.evaluate import Interval

SIDE, LENGTH, CLASSES = 20, 5, 4
CORNER = 5
"""Side of the square that the penalties cover: the marks, 2 x 2, and as far as two convolutions see around them."""
MARKS = ("true", "none", "wrong")
STRENGTHS = {"no penalty": (0.0,), "gradients": (1.0, 10.0, 100.0, 1000.0), "map": (0.3, 1.0, 3.0, 10.0)}
CHOSEN = {"no penalty": 0.0, "gradients": 10.0, "map": 10.0}

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def bars() -> Float[Tensor, "class length length"]:
    """Lying, standing, falling and rising."""
    lying, falling = torch.zeros(LENGTH, LENGTH), torch.eye(LENGTH)
    lying[LENGTH // 2] = 1
    return torch.stack([lying, lying.T, falling, falling.flip(1)])


def corner() -> Tensor:
    """True in the square that is known to be irrelevant, (height, width)."""
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[:CORNER, :CORNER] = True
    return inside


def make(count: int, seed: int, mark: str) -> tuple[Float[Tensor, "sample 1 height width"], Int[Tensor, "sample"]]:
    """Pictures and classes; the mark is that of the class ("true"), of another class ("wrong"), or absent ("none")."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=generator)
    pictures = torch.randn(count, 1, SIDE, SIDE, generator=generator) / 2
    shown = label if mark == "true" else (label + torch.randint(1, CLASSES, (count,), generator=generator)) % CLASSES
    last = SIDE - LENGTH
    for picture, kind, marked in zip(pictures[:, 0], label.tolist(), shown.tolist(), strict=True):
        row, column = torch.randint(last + 1, (2,), generator=generator).tolist()
        if max(row, column) < CORNER:  # no bar in the corner
            row += CORNER
        picture[row : row + LENGTH, column : column + LENGTH] += 1.25 * bars()[kind]
        if mark != "none":
            picture[marked // 2, marked % 2] += 4
    return pictures, label


def network() -> nn.Module:
    """Two convolutions and the largest value of each feature."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def no_penalty(model: nn.Module, pictures: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(pictures), label)


def on_gradients(strength: float) -> Loss:
    """Cross-entropy and the squared input gradient in the corner."""

    def loss(model: nn.Module, pictures: Tensor, label: Tensor) -> Tensor:
        pictures = pictures.clone().requires_grad_()
        output = model(pictures)
        (gradient,) = torch.autograd.grad(output.log_softmax(1).sum(), pictures, create_graph=True)
        return F.cross_entropy(output, label) + strength * gradient[..., corner()].square().sum((1, 2)).mean()

    return loss


def on_map(strength: float) -> Loss:
    """Cross-entropy and the share of the map in the corner; one forward pass serves both."""

    def loss(model: nn.Module, pictures: Tensor, label: Tensor) -> Tensor:
        explanation = explain(model, pictures, label, differentiable=True)
        maps = explanation.map
        share = maps[:, corner()].sum(1) / maps.sum((1, 2)).clamp_min(1e-6)  # a map may be blank
        return F.cross_entropy(explanation.output, label) + strength * share.mean()

    return loss


def loss_of(arm: str, strength: float) -> Loss:
    """By the name in the table."""
    return {"no penalty": lambda _: no_penalty, "gradients": on_gradients, "map": on_map}[arm](strength)


def trained(loss: Loss, seed: int, steps: int = 300) -> nn.Module:
    """A network trained on truly marked pictures; seconds on one core."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The map of image")
        torch.manual_seed(seed)
        model, (pictures, label) = network(), make(2048, seed, "true")
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            batch = torch.randint(len(label), (64,))
            value = loss(model, pictures[batch], label[batch])
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
    return model.eval()


def measured(model: nn.Module, seed: int, count: int) -> list[float]:
    """Accuracy on new pictures, marked truly, not at all and wrongly; share of the map, and of |gradient * input|, in
    the corner of truly marked ones.
    """
    sets = [make(count, 10_000 + seed, mark) for mark in MARKS]
    with torch.no_grad():
        accuracies = [(model(pictures).argmax(1) == label).double().mean().item() for pictures, label in sets]
    pictures, label = sets[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The map of image")
        maps = explain(model, pictures, label).map
    leaf = pictures.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, label[:, None]).sum(), leaf)
    inside = corner().expand(len(pictures), SIDE, SIDE)
    shares = [energy(heat, inside).mean().item() for heat in (maps, (gradient * pictures).abs()[:, 0])]
    return [*accuracies, *shares]


def main() -> None:
    """Read the arguments, train every arm, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=8, help="networks of each arm")
    parser.add_argument("--samples", type=int, default=500, help="new pictures of each kind for each network")
    parser.add_argument("--tune", action="store_true", help="try all strengths, on other seeds")
    arguments = parser.parse_args()
    first = 500 if arguments.tune else 0
    arms = [
        (arm, strength) for arm, tried in STRENGTHS.items() for strength in (tried if arguments.tune else [CHOSEN[arm]])
    ]
    print(f"{arguments.networks} networks of each arm, {arguments.samples} new pictures of each kind for each; "
          "mean over networks [95 % bootstrap interval]")  # fmt: skip
    print(f"accuracy by chance: {1 / CLASSES:.3f}; the corner's share of the picture: {(CORNER / SIDE) ** 2:.3f}")
    heads = [*(f"accuracy, mark {mark}" for mark in MARKS), "map in corner", "gradient*input there"]
    print(f"{'penalty':10} {'strength':8}  {'  '.join(f'{head:20}' for head in heads)}")
    for arm, strength in arms:
        seeds = range(first, first + arguments.networks)
        rows = [measured(trained(loss_of(arm, strength), seed), seed, arguments.samples) for seed in seeds]
        cells = [_shown(bootstrap_mean(column)) for column in torch.tensor(rows, dtype=torch.float64).T]
        print(f"{arm:10} {strength:8g}  {'  '.join(f'{cell:20}' for cell in cells)}", flush=True)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
