"""Whether maps of networks of other fields lie where the network looks: `python -m survey.places` in benchmarks/.

Two answers that share no code with the library's own. The gradient of a tap's position towards the input is large where
this position looks, and must move over the input as the tap's place says. And an input that is constant but for a box
of noise has all of its evidence in that box.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib import metadata
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, __version__, explain
from integrative_cam._call import trace
from integrative_cam._plan import capture
from integrative_cam._plan.placement import Placement
from integrative_cam.errors import CamError, first_line
from integrative_cam.targets import Output
from survey.checks import OK, noise, prepare
from survey.families import count
from survey.fields import NETWORKS, Network

CENTRES = ((0.25, 0.72, 0.25), (0.72, 0.25, 0.25), (0.25, 0.25, 0.72))
"""Of planted boxes along the axes of the map, in shares of the input: no mirror image of a box is near it."""
SIDE = 0.2
"""Of a planted box, in shares of the input."""
ZONE = 0.1
"""How far around a box a right map may change, in shares of the input."""
CLEARLY = 2.0
"""So many times more of a right map's change lies in the zones than of any wrong map's."""
DRAWS = 2
"""Boxes of noise at one place."""
MOST_TAPS = 12
"""Taps whose gradients are looked at."""


@dataclass(frozen=True)
class Look:
    """Two positions of a tap along one axis of its grid, at a sixth of it from both ends.

    Attributes:
        ratio: how far the centre of the input gradient moves between them, over how far their places are apart.
        aside: how far it moves along another axis, in shares of the input, at most.
        off: how far it is from the place, in shares of the input, at most.
    """

    tap: str
    grid: tuple[int, ...]
    axis: int
    ratio: float
    aside: float
    off: float
    is_right: bool


@dataclass(frozen=True)
class Placed:
    """One network's row.

    Attributes:
        measured: grids of the tensors whose places were measured by input gradients; others follow exactly.
        left_out: activations that are not in the map, since it is not known where they lie.
        said: the library's warnings.
        looks: what the input gradients say of the taps' places.
        default: what a call without a target explains, or its error.
        verdict: by planted evidence.
    """

    name: str
    parameters: int
    axes: str
    map_axes: str
    taps: int
    grids: tuple[tuple[int, ...], ...]
    measured: int
    left_out: int
    said: tuple[str, ...]
    looks: tuple[Look, ...]
    default: str
    verdict: str

    @property
    def ok(self) -> bool:
        """The map is where the evidence is, and the taps are where their gradients look."""
        return self.verdict == OK and all(look.is_right for look in self.looks)

    def row(self) -> dict[str, str]:
        """The row as text, column by column."""
        confirmed = sum(look.is_right for look in self.looks)
        return {
            "network": self.name,
            "input": self.axes,
            "map": self.map_axes,
            "taps": str(self.taps),
            "grids": ", ".join("x".join(map(str, grid)) for grid in self.grids),
            "followed": str(self.taps - self.measured),
            "measured": str(self.measured),
            "left out": str(self.left_out),
            "gradients agree": f"{confirmed} of {len(self.looks)}" if self.looks else "-",
            "without a target": self.default,
            "planted evidence": self.verdict,
        }


def place(name: str, seed: int = 0) -> Placed:
    """Make a network by name, explain it, and judge where its map lies."""
    nothing = Placed(name, 0, "", "", 0, (), 0, 0, (), (), "", "")
    try:
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        images = _noise(network, seed)
        prepare(network.model, torch.cat([images, _noise(network, seed + 1)]), seed)
        return placed(name, network, images, seed)
    except Exception as error:  # whatever a network raises is its verdict
        return replace(nothing, verdict=f"{type(error).__name__}: {first_line(error)}")


def placed(name: str, network: Network, images: Tensor, seed: int = 0) -> Placed:
    """The row of a network; `images` are one input of noise."""
    with warnings.catch_warnings(record=True) as caught, _measured_shapes() as measured:
        warnings.simplefilter("always")
        found = explain(network.model, network.called_with(images), evidence(network, images))
    said = [str(each.message) for each in caught if each.filename == __file__ or "integrative_cam" in each.filename]
    left_out = [match.group(1) for match in map(_LEFT_OUT.search, said) if match]
    sizes = [network.shape[axis - 1] for axis in network.space]
    names = [network.axes[axis - 1] for axis in network.space]
    is_expected = list(found.map.shape[1:]) == sizes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Placed(
            name,
            count(network.model),
            " x ".join(f"{side} {axis}" for side, axis in zip(network.shape, network.axes, strict=True)),
            ", ".join(names) if is_expected else f"{tuple(found.map.shape[1:])}",
            len(found.layers),
            tuple(dict.fromkeys(tuple(layer.map.shape[1:]) for layer in found.layers)),
            sum(tuple(layer.map.shape[1:]) in measured for layer in found.layers),
            int(left_out[0]) if left_out else 0,
            tuple(said),
            tuple(looks(network, images)) if is_expected else (),
            _default(network, images),
            by_evidence(network, seed) if is_expected else f"not along {', '.join(names)}",
        )


_LEFT_OUT = re.compile(r"there are (\d+) activation\(s\) of which it is not known")


def _noise(network: Network, seed: int) -> Tensor:
    """An image of noise with the network's axes: `noise` wants channels first."""
    channels = [axis for axis in range(1, 1 + len(network.shape)) if axis not in network.space]
    size = [network.shape[channels[0] - 1] if channels else 1, *(network.shape[axis - 1] for axis in network.space)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(network.space)]
    images = noise(tuple(size), seed, mode)
    return images.movedim(1, channels[0]) if channels else images[:, 0]


@contextmanager
def _measured_shapes() -> Iterator[set[tuple[int, ...]]]:
    """The spatial shapes of the tensors whose places are measured meanwhile."""
    shapes: set[tuple[int, ...]] = set()
    original: Callable[..., Any] = capture.measured

    def noted(output: Tensor, *arguments: Any) -> Any:
        positions = original(output, *arguments)
        if positions is not None:
            shapes.add(tuple(output.shape[2:]) if output.ndim > 3 else tuple(output.shape[1:2]))
        return positions

    capture.measured = noted
    try:
        yield shapes
    finally:
        capture.measured = original


def _default(network: Network, images: Tensor) -> str:
    try:
        found = explain(network.model, network.called_with(images))
    except CamError as error:
        return type(error).__name__
    return f"class {found.target_names[0]}"


# Planted evidence


def planted(network: Network, at: tuple[float, ...], seed: int) -> tuple[Tensor, Box]:
    """An input that is constant but for a box of noise at `at`, along each axis of the map; and the box in pixels."""
    size = network.shape
    images = torch.zeros(1, *size)
    grain = 3 * torch.randn(1, *size, generator=torch.Generator().manual_seed(seed))
    box, inside = [], [slice(None)] * images.ndim
    for axis, centre in zip(network.space, at, strict=False):
        side = images.shape[axis]
        low, high = round((centre - SIDE / 2) * side), round((centre + SIDE / 2) * side)
        if network.axes[axis - 1] in network.whole:
            low, high = 0, side
        box.append((low, high))
        inside[axis] = slice(low, high)
    images[tuple(inside)] = grain[tuple(inside)]
    return images, box


def evidence(network: Network, images: Tensor) -> Callable[[Any], Tensor]:
    """A target to which the constant input without the box gives 0: the output along what the box changes in it."""
    with torch.no_grad():
        here = network.read(Output(network.model(images), 1).sample(0)).flatten().double()
        nothing = network.read(Output(network.model(images * 0), 1).sample(0)).flatten().double()
    change = here - nothing
    change = change - nothing * (change @ nothing) / (nothing @ nothing).clamp_min(1e-12)
    change = change / change.norm().clamp_min(1e-12)
    return lambda output: (network.read(output).flatten() * change.to(images)).sum()


def by_evidence(network: Network, seed: int) -> str:
    """`OK`, or what is wrong with the maps of evidence planted at each of `CENTRES`."""
    cam = IntegrativeCAM(network.model)
    space = tuple(network.shape[axis - 1] for axis in network.space)
    changes, boxes = [], []
    for at in CENTRES:
        total = torch.zeros(space)
        for draw in range(DRAWS):
            images, box = planted(network, at, seed + draw)
            target = evidence(network, images)
            with_box, without = (_for_and_against(cam, network, each, target) for each in (images, images * 0))
            # The constant part has evidence of its own, and a map has no unit.
            there = without > 0.05 * without.max()
            scale = (with_box[there] / without[there]).median() if there.any() else 0
            change = (with_box - scale * without).square()
            total += change / change.sum().clamp_min(1e-12)
        changes.append(total)
        boxes.append(box)
    return fault(changes, boxes) or OK


def _for_and_against(cam: IntegrativeCAM, network: Network, images: Tensor, target: Callable[[Any], Tensor]) -> Tensor:
    """The maps of a target and of its opposite, summed: layers of a network that learned nothing may speak against
    what their sum speaks for.
    """
    both = cam.explain_targets(network.called_with(images), [target, lambda output: -target(output)])
    return both[0].map[0] + both[1].map[0]


Box = list[tuple[int, int]]
"""Of pixels: the first one, and the first one behind it, along each axis."""


def fault(changes: Sequence[Tensor], boxes: Sequence[Box]) -> str:
    """What is wrong with maps (*space) whose evidence is in a box each; empty where nothing is.

    Right: clearly more of them is in the zones around the boxes than of any of their mirror images, turned by any order
    of their axes, as far as these move the zone.
    """
    if not all(change.max() > 0 for change in changes):
        return "blank"
    for how, turn in wrong_turns(boxes[0], tuple(changes[0].shape)).items():
        cases = list(zip(changes, boxes, strict=True))
        moved = [(change, box) for change, box in cases if _share(turn(_zone(change, box).float()), box) < 0.2]
        own = sum(_share(change, box) for change, box in moved)
        wrong = sum(_share(turn(change), box) for change, box in moved)
        if own < CLEARLY * wrong:
            return f"{own / len(moved):.0%} in the zones; {how}: {wrong / len(moved):.0%}"
    return ""


def wrong_turns(box: Box, size: tuple[int, ...]) -> dict[str, Callable[[Tensor], Tensor]]:
    """What makes a right map wrong: mirrors and orders of its axes, where it has places, stretched to its size."""
    moving = [axis for axis, (low, high) in enumerate(box) if high - low < size[axis]]
    turns: dict[str, Callable[[Tensor], Tensor]] = {}
    for order in permutations(range(len(size))):
        if any(order[axis] != axis for axis in range(len(size)) if axis not in moving):
            continue
        for flips in product((False, True), repeat=len(moving)):
            axes = [axis for axis, flip in zip(moving, flips, strict=True) if flip]
            if axes or order != tuple(range(len(size))):
                turns[f"axes {order} flipped {axes}"] = partial(_turned, order=order, axes=axes)
    return turns


def _turned(change: Tensor, order: tuple[int, ...], axes: list[int]) -> Tensor:
    turned = change.permute(order).flip(axes)
    return nn.functional.interpolate(turned[None, None], size=tuple(change.shape), mode="nearest")[0, 0]


def _zone(found: Tensor, box: Box) -> Tensor:
    inside = torch.zeros_like(found, dtype=torch.bool)
    zone = [
        slice(max(0, round(low - ZONE * side)), round(high + ZONE * side))
        for (low, high), side in zip(box, found.shape, strict=True)
    ]
    inside[tuple(zone)] = True
    return inside


def _share(found: Tensor, box: Box) -> float:
    return float(found[_zone(found, box)].sum() / found.sum())


# Where taps look


def looks(network: Network, images: Tensor) -> Iterator[Look]:
    """Where up to `MOST_TAPS` taps look, by their input gradients, and where their places are.

    It is right where the gradient moves along this axis of the input the same way as the place, and more than along
    other axes. It moves less far than the place where every position sees most of the input.
    """
    images = images.clone().requires_grad_()
    target = evidence(network, images.detach())
    traced = trace(network.model, network.called_with(images), target, differentiable=True)
    fused = list(zip(traced.main_input.fused, traced.main_input.placements, strict=True))
    for at, placement in fused[:: -(-len(fused) // MOST_TAPS)]:
        activation = traced.taps[at].activation
        grid = tuple(activation.shape[2:])
        for axis, size in enumerate(grid):
            if size < 2 or network.axes[network.space[axis] - 1] in network.whole:
                continue
            places = size // 6, size - 1 - size // 6
            one, other = (_seen(activation, axis, position, images, network.space) for position in places)
            if one is None or other is None:
                continue
            # Attention and gates let all positions look at the same places, too.
            centres = [_centre((one - other).relu()), _centre((other - one).relu())]
            lines = [_line(placement, grid, axis, position) for position in places]
            moved = (centres[1] - centres[0]).tolist()
            ratio = moved[axis] / (lines[1] - lines[0])
            aside = max((abs(way) for other_axis, way in enumerate(moved) if other_axis != axis), default=0.0)
            off = max(abs(float(centre[axis]) - line) for centre, line in zip(centres, lines, strict=True))
            is_right = ratio > 0.05 and aside < abs(moved[axis])
            yield Look(traced.taps[at].name, grid, axis, ratio, aside, off, is_right)


def _line(placement: Placement | None, grid: tuple[int, ...], axis: int, place: int) -> float:
    return (place + 0.5) / grid[axis] if placement is None else placement.lines[axis][place]


def _seen(activation: Tensor, axis: int, position: int, images: Tensor, space: Sequence[int]) -> Tensor | None:
    """The energy of the input gradient of a position, the middle one along other axes; of sum 1, None where zero."""
    where = [size // 2 for size in activation.shape[2:]]
    where[axis] = position
    values = activation[(0, slice(None), *where)]
    signs = torch.randint(2, values.shape, generator=torch.Generator().manual_seed(0)).to(values) * 2 - 1
    (gradient,) = torch.autograd.grad((values * signs).sum(), [images], retain_graph=True)
    energy = gradient.double().square().sum([axis for axis in range(gradient.ndim) if axis not in space])
    return energy / energy.sum() if energy.sum() > 0 else None


def _centre(energy: Tensor) -> Tensor:
    lines = [(torch.arange(side, dtype=torch.double) + 0.5) / side for side in energy.shape]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    return (places * energy).flatten(1).sum(1) / energy.sum()


# The table


def markdown(rows: Sequence[Placed]) -> str:
    """The table, how many are right above it, and what was warned of and the versions below it."""
    columns = list(rows[0].row())
    lines = [f"{sum(row.ok for row in rows)} of {len(rows)} right.", ""]
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row.row().values())} |" for row in rows]
    return "\n".join([*lines, "", versions(rows)])


def versions(rows: Sequence[Placed]) -> str:
    """What the table was made with."""
    libraries = dict.fromkeys(row.name.partition("/")[0] for row in rows)
    versions = [f"{library} {metadata.version(library)}" for library in dict.fromkeys(("torch", *libraries))]
    return f"integrative-cam {__version__}, {', '.join(versions)}, Python {platform.python_version()}."


def main() -> int:
    """Survey the networks whose names match, print the table and what was not right; 0 where all is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", default="*", help="glob over the networks' names, such as 'monai/*'")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    options = parser.parse_args()
    chosen = [name for name in NETWORKS if fnmatchcase(name, options.models)]
    if not chosen:
        parser.error(f"--models {options.models!r} matches none of {', '.join(NETWORKS)}.")
    rows = []
    # In a process of its own each, so that memory is given back, and one library's settings leave others alone.
    for name in chosen:
        with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
            row = pool.submit(place, name, options.seed).result()
        rows.append(row)
        print(f"{name}: {row.verdict}", *(f"  warning: {each}" for each in row.said), sep="\n", file=sys.stderr)
        print(*(f"  {look}" for look in row.looks if not look.is_right), sep="\n", end="", file=sys.stderr)
    print(markdown(rows))
    if options.out is not None:
        options.out.write_text(markdown(rows) + "\n", encoding="utf-8")
    return int(not all(row.ok for row in rows))


if __name__ == "__main__":
    sys.exit(main())
