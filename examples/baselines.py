"""Baselines for localisation results: maps that know nothing of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from integrative_cam import Explanation, explain, get_method
from integrative_cam.evaluate import bootstrap_mean, centre_map, energy, paired_difference, pointing, random_maps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

METHODS: Mapping[str, Callable[..., Explanation]] = {
    "integrative": explain,
    "its last tap": partial(explain, taps="last"),
    "gradcam": get_method("gradcam"),
    "hirescam": get_method("hirescam"),
}
"""The methods that the examples compare, called with model, images and target; the first is the reference."""
OURS = "integrative"


def measured(
    saliency: Mapping[str, Float[Tensor, "height width"]], truth: Bool[Tensor, "height width"], seed: int
) -> dict[str, tuple[float, float]]:
    """Energy inside the true region, and the pointing game, for each map and baseline; `seed` is for the random map."""
    size = tuple(truth.shape)
    maps = {
        **saliency,
        "centre": centre_map(size),
        "uniform": torch.ones(size),
        "random": random_maps(1, size, torch.Generator().manual_seed(seed))[0],
    }
    return {
        name: (float(energy(heat[None], truth[None])), float(pointing(heat[None], truth[None])))
        for name, heat in maps.items()
    }


def print_table(images: Sequence[Sequence[Mapping[str, tuple[float, float]]]], region: str) -> None:
    """Print means with 95 % bootstrap intervals over images; an image counts once, with the mean over its objects."""
    count = sum(map(len, images))
    print(f"n = {len(images)} images with {count} objects; mean [95 % bootstrap interval]")
    print(f"{'':12}  {'energy in ' + region:22}  {'integrative minus it':25}  pointing")

    def column(name: str, metric: int) -> Float[Tensor, "image"]:
        return torch.tensor([sum(values[name][metric] for values in objects) / len(objects) for objects in images])

    for name in images[0][0]:
        share, points = bootstrap_mean(column(name, 0)), bootstrap_mean(column(name, 1))
        ahead = ""
        if name != OURS:
            gain = paired_difference(column(OURS, 0), column(name, 0))
            ahead = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        print(
            f"{name:12}  {f'{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]':22}  {ahead:25}  "
            f"{points.mean:.3f} [{points.low:.3f}, {points.high:.3f}]"
        )
