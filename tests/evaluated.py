"""Networks, maps and numbers that the tests of metrics share."""

from __future__ import annotations

import numpy as np
import torch
from networks import Options, build, examples, noise
from reference import metrics as reference
from torch import Tensor, nn

from integrative_cam.evaluate import order

few = examples(15)


class Odds(nn.Module):
    """Probability (1 + s) / (2 + s) of class 0 for an image of sum s: fractions by hand."""

    def forward(self, images: Tensor) -> Tensor:
        odds = images.flatten(1).sum(1).log1p()
        return torch.stack([odds, torch.zeros_like(odds)], 1)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


IMAGE = tensor([1, 2], [3, 4])[None, None]
MAP = tensor([0.25, 0.5], [0.75, 1])[None]


def drawn(seed: int, batch: int = 3, size: tuple[int, int] = (7, 6)) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, its images, maps in [0, 1] with ties, and targets."""
    generator = torch.Generator().manual_seed(seed)
    model = build("vgg", Options(seed=seed, norm="affine"))
    images = noise(generator, batch, 2, *size) * 2
    with torch.no_grad():
        # Logits around 0 that differ by about 2: no probability is 0 or 1.
        logits, last = model(images), model[-1]
        spread = (logits - logits.mean(0)).std()
        if spread == 0:
            # One network in a hundred is dead.
            return drawn(seed + 1, batch, size)
        factor = 2 / spread
        last.weight *= factor
        last.bias.copy_((last.bias - logits.mean(0)) * factor)
    maps = torch.randint(0, 12, (batch, *size), generator=generator).double() / 11
    return model, images, maps, torch.randint(0, 4, (batch,), generator=generator)


def probability(model: nn.Module, index: int) -> reference.Probability:
    def of(image: np.ndarray) -> float:
        with torch.no_grad():
            return model(torch.from_numpy(image)[None]).softmax(1)[0, index].item()

    return of


def logit(model: nn.Module, index: int) -> reference.Probability:
    def of(image: np.ndarray) -> float:
        with torch.no_grad():
            return model(torch.from_numpy(image)[None])[0, index].item()

    return of


def turns(*size: int) -> list[int]:
    """Each flat position's turn among equals."""
    return order(torch.zeros(1, *size)).argsort(1)[0].tolist()
