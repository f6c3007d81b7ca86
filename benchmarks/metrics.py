"""Cost of ROAD and of deletion against the peers' at equal settings and equal values: a table of docs/performance.md.

    make bench

Printed per measure: the largest difference of the values, and the peer's time over ours (the two take turns within a
round; median over the rounds and the range of its middle half). Quantus' pixel flipping counts the channels of a
pixel as features of their own: its points and ours are equally many, and compared where both are whole pixels.
Quantus is no dependency; where it is missing: pip install quantus==0.6.0
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import skimage
import torch
from overview import timed
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined, neighbors_weights
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from integrative_cam import __version__
from integrative_cam.evaluate import deletion_curve, imputed, order, road_combined
from integrative_cam.models import load, read_image

SIZE = 224
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
STEPS = 48  # points of a deletion curve; a third of them are whole pixels to Quantus
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def road(model: nn.Module, images: Tensor, maps: Tensor, index: Tensor) -> Pair:
    """The whole measure: shares 0.2, 0.4, 0.6, 0.8, most and least relevant pixels, without noise."""
    # ROADCombined has no argument for the noise.
    NoisyLinearImputer.__init__.__defaults__ = (0.0, neighbors_weights)
    peer = ROADCombined(percentiles=[20, 40, 60, 80])
    targets = [ClassifierOutputSoftmaxTarget(each) for each in index.tolist()]
    return (
        lambda: road_combined(model, images, maps, index),
        lambda: torch.from_numpy(peer(images, maps.numpy(), targets, model)),
    )


def imputation(images: Tensor, maps: Tensor) -> Pair:
    """ROAD without the network: four fifths of the pixels removed."""
    removed = order(maps).argsort(1).reshape(maps.shape) < round(0.8 * SIZE * SIZE)
    peer = NoisyLinearImputer(noise=0)
    return (
        lambda: imputed(images, removed),
        lambda: torch.stack([peer(image, (~mask).float()) for image, mask in zip(images, removed, strict=True)]),
    )


def flipping(model: nn.Module, images: Tensor, maps: Tensor, index: Tensor) -> Pair:
    """Deletion to zero, against Quantus' pixel flipping with as many runs of the network."""
    import quantus

    peer = quantus.PixelFlipping(
        features_in_step=images[0].numel() // STEPS, perturb_baseline=0.0, abs=False, normalise=False,
        disable_warnings=True, display_progressbar=False,
    )  # fmt: skip
    arrays = {"x_batch": images.numpy(), "y_batch": index.numpy(), "a_batch": maps[:, None].numpy()}
    return (
        lambda: deletion_curve(model, images, maps, index, STEPS)[:, 3::3],
        lambda: torch.tensor(peer(model=model, softmax=True, device="cpu", **arrays))[:, 2::3],
    )


def compared(pair: Pair, rounds: int) -> tuple[str, str, str]:
    """Range of our values, their largest difference from the peer's, and the ratio of the times."""
    ours, peers = pair
    values = ours()
    difference = float((values - peers()).abs().max())
    found = [timed(peers) / timed(ours) for _ in range(rounds)]
    low, median, high = statistics.quantiles(found, n=4)
    return f"{values.min():.3g} to {values.max():.3g}", f"{difference:.1e}", f"{median:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="paired timings per measure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = load("efficientnet-lite0")
    photographs = Path(skimage.__file__).parent / "data"
    images = torch.cat([network.preprocessing(read_image(photographs / name)).tensor for name in PHOTOGRAPHS])
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(len(images), 1, 7, 7, generator=generator)
    smooth = nn.functional.interpolate(smooth, size=(SIZE, SIZE), mode="bilinear")[:, 0]
    # The ranks in (0, 1]: no ties, which the peers break otherwise.
    maps = (smooth.flatten(1).argsort(1).argsort(1).float() + 1).reshape(smooth.shape) / (SIZE * SIZE)
    model = network.model.eval()
    with torch.no_grad():
        index = model(images).argmax(1)
    console = Console(width=120)
    table = Table(title=f"EfficientNet-Lite0, {len(images)} x 3 x {SIZE} x {SIZE}, float32, one thread")
    for column in ("measure", "peer", "values", "largest difference", "peer's time / ours"):
        table.add_column(column)
    pairs = {
        ("road_combined, 4 shares", "grad-cam ROADCombined"): road(model, images, maps, index),
        ("imputed, share 0.8", "grad-cam NoisyLinearImputer"): imputation(images, maps),
    }
    libraries = ["torch", "grad-cam", "scipy"]
    if find_spec("quantus"):
        pairs[f"deletion_curve, {STEPS} steps", "Quantus PixelFlipping"] = flipping(model, images, maps, index)
        libraries.append("quantus")
    else:
        console.print("Quantus is missing; to compare with it: pip install quantus==0.6.0")
    for names, pair in pairs.items():
        table.add_row(*names, *compared(pair, arguments.rounds))
    console.print(table)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in libraries)
    console.print(
        f"integrative-cam {__version__}, {versions}, Python {platform.python_version()}, {platform.machine()}; "
        f"{arguments.rounds} rounds"
    )


if __name__ == "__main__":
    main()
