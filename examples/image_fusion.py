"""Which source does each tile of a fused picture come from? A network that fuses infrared and visible pictures.

    python examples/image_fusion.py FOLDER --out fusion.png

FOLDER contains registered pairs, under the same names in infrared/ and visible/. A small network is trained on three
quarters of them, in a few minutes on a CPU, towards the brighter value and the larger gradient of the two at each
pixel. For each tile of the remaining fused pictures, two scores are explained: its brightness (mean value) and its
texture (mean difference of neighbouring pixels). The table prints infrared's share of the brightness in the tiles where
infrared is most ahead of visible, and visible's share of the texture in the tiles where visible is most ahead.

The network itself is asked too: how much of a tile's brightness (texture) is lost when the tile of one source is
blackened (flattened)? The table prints how well the share agrees with that, and how well two guesses do: the sources'
own brightness (texture), which knows nothing of the network, and the sum of |gradient * input|.

Needs the extra `render`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot
from PIL import Image
from torch import Tensor, nn

from integrative_cam import explain, trace
from integrative_cam.evaluate import bootstrap_mean

if TYPE_CHECKING:
    from jaxtyping import Float

WIDTH, TILE, CHUNK = 160, 8, 20
Score = Callable[[Tensor], Tensor]


class FusionNet(nn.Module):
    """An encoder for each source, their features side by side, a decoder to one picture."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.infrared_encoder = nn.Sequential(_unit(1, channels), _unit(channels, channels))
        self.visible_encoder = nn.Sequential(_unit(1, channels), _unit(channels, channels))
        self.decoder = nn.Sequential(_unit(2 * channels, channels), nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, infrared: Tensor, visible: Tensor) -> Tensor:
        """(batch, 1, height, width) of both sources and of the result, values in [0, 1]."""
        features = torch.cat([self.infrared_encoder(infrared), self.visible_encoder(visible)], 1)
        return self.decoder(features)


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"), nn.ReLU())


Pair = tuple["Float[Tensor, '1 1 height width']", "Float[Tensor, '1 1 height width']"]


def read_pairs(folder: Path) -> dict[str, Pair]:
    """Infrared and the brightness of visible by name, WIDTH wide, whole tiles high."""
    pairs = {}
    for path in sorted((folder / "infrared").iterdir()):
        pictures = [Image.open(folder / source / path.name).convert("L") for source in ("infrared", "visible")]
        height = WIDTH * pictures[0].height // pictures[0].width // TILE * TILE
        arrays = [np.asarray(picture.resize((WIDTH, height), Image.Resampling.BOX), np.float32) for picture in pictures]
        infrared, visible = (torch.from_numpy(array / 255)[None, None] for array in arrays)
        pairs[path.stem] = (infrared, visible)
    return pairs


def differences(values: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch smaller_height smaller_width"]:
    """|to the right neighbour| + |to the one below|."""
    here = values[..., :-1, :-1]
    return (values[..., :-1, 1:] - here).abs() + (values[..., 1:, :-1] - here).abs()


def train(pairs: list[Pair], steps: int, side: int = 64, batch: int = 8) -> FusionNet:
    """L1 to the brighter source plus ten times L1 of the gradient to the larger one, on random crops."""
    torch.manual_seed(0)
    model = FusionNet()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        crops = [_crop(pairs[int(torch.randint(len(pairs), ()))], side) for _ in range(batch)]
        infrared, visible = (torch.cat(source) for source in zip(*crops, strict=True))
        fused = model(infrared, visible)
        brighter = F.l1_loss(fused, torch.maximum(infrared, visible))
        sharper = F.l1_loss(differences(fused), torch.maximum(differences(infrared), differences(visible)))
        loss = brighter + 10 * sharper
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"trained {steps} steps: brightness off by {brighter:.3f}, texture by {sharper:.3f}")
    return model.eval()


def _crop(pair: Pair, side: int) -> tuple[Tensor, ...]:
    height, width = pair[0].shape[2:]
    top, left = int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ()))
    return tuple(picture[..., top : top + side, left : left + side] for picture in pair)


def brightness(tile: Float[Tensor, "height width"]) -> Tensor:
    """Mean value."""
    return tile.mean()


def texture(tile: Float[Tensor, "height width"]) -> Tensor:
    """Mean difference of neighbours."""
    return differences(tile).mean()


def within(box: tuple[slice, slice], score: Score) -> Score:
    """The score of a box of a network's output (1, height, width)."""
    return lambda output: score(output[0][box])


def tiles(picture: Tensor) -> list[tuple[slice, slice]]:
    """Row by row."""
    height, width = picture.shape[2:]
    tops, lefts = range(0, height, TILE), range(0, width, TILE)
    return [(slice(top, top + TILE), slice(left, left + TILE)) for top in tops for left in lefts]


@dataclass(frozen=True)
class Shares:
    """Infrared's share in each tile of a picture, in [0, 1], by the stream share, by occlusion and by two guesses."""

    explained: Float[Tensor, "tile"]
    lost: Float[Tensor, "tile"]
    sources: Float[Tensor, "tile"]
    gradient_input: Float[Tensor, "tile"]


def shares(model: nn.Module, pair: Pair, score: Score) -> Shares:
    """Explain the score of each tile of the fused picture."""
    boxes = tiles(pair[0])
    explained, gradient_input = [], []
    for start in range(0, len(boxes), CHUNK):
        chosen = boxes[start : start + CHUNK]
        images = tuple(picture.expand(len(chosen), -1, -1, -1) for picture in pair)
        wanted = [within(box, score) for box in chosen]
        streams = explain(model, images, wanted, taps="last", bias="none").streams
        assert streams is not None
        explained.append(streams.share[:, 0])
        inputs = trace(model, images, wanted, "last").inputs
        gradient_input.append(_infrared([entry.product.abs().flatten(1).sum(1) for entry in inputs]))
    return Shares(
        explained=torch.cat(explained),
        lost=torch.stack([_lost(model, pair, box, score) for box in boxes]),
        sources=torch.stack([_infrared([score(picture[0, 0][box]) for picture in pair]) for box in boxes]),
        gradient_input=torch.cat(gradient_input),
    )


def _infrared(parts: list[Tensor]) -> Tensor:
    infrared, visible = (part.relu() for part in parts)
    total = infrared + visible
    return torch.where(total > 0, infrared / total, torch.full_like(total, 0.5))


@torch.no_grad()
def _lost(model: nn.Module, pair: Pair, box: tuple[slice, slice], score: Score) -> Tensor:
    """Infrared's share of what is lost when the tile of either source is taken away."""
    before = score(model(*pair)[0, 0][box])
    drops = []
    for source in range(2):
        changed = [picture.clone() for picture in pair]
        tile = changed[source][0, 0][box]
        tile[:] = tile.mean() if score is texture else 0
        drops.append(before - score(model(*changed)[0, 0][box]))
    return _infrared(drops)


def correlation(left: Tensor, right: Tensor) -> float:
    """Correlation of ranks (Spearman)."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (left, right)])
    return float(torch.corrcoef(ranks)[0, 1])


def main() -> None:
    """Read the arguments, train, explain, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="infrared/ and visible/ with pictures of the same names")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--out", type=Path, help="a picture of the held-out pairs")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.folder)
    held = dict(list(pairs.items())[1::4])
    model = train([pair for name, pair in pairs.items() if name not in held], arguments.steps)

    results = {score: [shares(model, pair, score) for pair in held.values()] for score in (brightness, texture)}
    for score, source, place in ((brightness, 0, "hot in infrared"), (texture, 1, "textured in visible")):
        print_table(results[score], list(held.values()), score, source, place)
    if arguments.out:
        draw(arguments.out, model, held, results)


def print_table(results: list[Shares], pairs: list[Pair], score: Score, source: int, place: str) -> None:
    """Print the share of a source in the tenth of the tiles where it is most ahead of the other, and in all tiles."""
    ahead = torch.cat([_ahead(pair, score, source) for pair in pairs])
    chosen = ahead >= ahead.quantile(0.9)
    name = ("infrared", "visible")[source]
    print(f"\n{score.__name__}: share of {name} in {chosen.sum()} of {len(ahead)} tiles, those most {place}")
    print(f"{'':24}  {'there':20}  in all tiles  correlation with what is lost, over tiles")
    for label, field in (
        ("stream share", "explained"),
        ("lost without it", "lost"),
        ("the sources' own", "sources"),
        ("|gradient * input|", "gradient_input"),
    ):
        infrared = torch.cat([getattr(result, field) for result in results])
        share = infrared if source == 0 else 1 - infrared
        there = bootstrap_mean(share[chosen].double())
        agreement = correlation(infrared, torch.cat([result.lost for result in results]))
        cell = f"{there.mean:.3f} [{there.low:.3f}, {there.high:.3f}]"
        print(f"{label:24}  {cell:20}  {share.mean():12.3f}  {agreement:+.3f}")


def _ahead(pair: Pair, score: Score, source: int) -> Tensor:
    boxes = tiles(pair[0])
    return torch.stack([score(pair[source][0, 0][box]) - score(pair[1 - source][0, 0][box]) for box in boxes])


def draw(path: Path, model: nn.Module, pairs: dict[str, Pair], results: dict[Score, list[Shares]]) -> None:
    """Draw one row per pair: both sources, the result, and infrared's share of each tile's brightness and texture."""
    figure, rows = pyplot.subplots(len(pairs), 5, figsize=(15, 2.3 * len(pairs)), layout="constrained", squeeze=False)
    for at, (row, (name, pair)) in enumerate(zip(rows, pairs.items(), strict=True)):
        with torch.no_grad():
            fused = model(*pair)
        for axes, title, picture in zip(row, ("infrared", "visible", "fused"), (*pair, fused), strict=False):
            axes.imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{name}: {title}")
        for axes, score in zip(row[3:], results, strict=True):
            grid = results[score][at].explained.reshape(-1, pair[0].shape[3] // TILE)
            axes.imshow(fused[0, 0], cmap="gray", vmin=0, vmax=1)
            extent = (-0.5, fused.shape[3] - 0.5, fused.shape[2] - 0.5, -0.5)
            shown = axes.imshow(grid, cmap="coolwarm", vmin=0, vmax=1, alpha=0.7, extent=extent)
            axes.set_title(f"infrared's share of the {score.__name__}")
    for axes in rows.flat:
        axes.set_axis_off()
    figure.colorbar(shown, ax=rows[:, -1], label="visible <-> infrared")
    figure.savefig(path, dpi=80)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
