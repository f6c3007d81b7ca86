"""How many times as long the peers take over the same layers: a table of docs/performance.md.

    make bench

The peers get modules whose outputs our taps are; where a network calls one activation module several times, they get a
copy in which each call has a module of its own, since their hooks tell no calls apart. Printed is the peer's time over
ours, for the default recipe over the same taps and for our recipe of the peer's own method, and over the limit: forward
and gradient to all activations with nothing else, which says what could be gained at most. All take turns within a
round; median over the rounds and the range of its middle half. All explain one class of the same images.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata

import pytorch_grad_cam
import torch
from overview import bare, network, timed
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, fx, nn
from torchcam import methods as torchcam

from integrative_cam import IntegrativeCAM, __version__, get_method, trace
from integrative_cam.integrations._libraries import layers_of
from integrative_cam.models import load

NETWORKS = ("efficientnet-lite0", "mobilenet_v2", "resnet50", "vgg16")
CLASS = 7
FEW = 8
"""Layers for RefineCAM: pytorch-grad-cam's runs the network once for each of them."""
ALL_LAYERS = {"weighting": "uniform", "fusion": "sum"}
"""Of layers that several methods of pytorch-grad-cam take the mean."""


def unrolled(model: nn.Module) -> nn.Module:
    """A copy in which every call of a module is one of a module of its own, with the same weights."""
    graph = fx.symbolic_trace(copy.deepcopy(model))
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
            if calls[node.target] > 1:
                name = f"{node.target}_{calls[node.target]}"
                graph.add_submodule(name, copy.deepcopy(graph.get_submodule(node.target)))
                node.target = name
    graph.recompile()
    return graph.eval()


def spaced(names: Sequence[str], count: int) -> list[str]:
    """So many of them, evenly over depth, the last one included."""
    return [names[round((place + 1) * len(names) / count) - 1] for place in range(count)]


def grad_cam(name: str, model: nn.Module, layers: Sequence[str], images: Tensor) -> Callable[[], object]:
    """As pytorch-grad-cam's README calls it; the object is made once."""
    chosen = getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.get_submodule(each) for each in layers])
    return lambda: chosen(input_tensor=images, targets=[ClassifierOutputTarget(CLASS)] * len(images))


def torch_cam(name: str, model: nn.Module, layers: Sequence[str], images: Tensor) -> Callable[[], object]:
    """As torchcam's README calls it, with several layers and their fusion at the images' size."""
    extractor = getattr(torchcam, name)(model, list(layers))
    size = tuple(images.shape[2:])
    return lambda: extractor.fuse_cams(extractor(CLASS, model(images)), size)


def refined(model: nn.Module, layers: Sequence[str], images: Tensor) -> Callable[[], object]:
    """Torchcam's RefineCAM fuses within its call."""
    extractor = torchcam.RefineCAM(model, list(layers))
    size = tuple(images.shape[2:])
    return lambda: extractor(CLASS, model(images), target_shape=size)


def ratios(peer: Callable[[], object], ours: Sequence[Callable[[], object]], rounds: int) -> list[str]:
    """The peer's time over that of each of ours, taking turns."""
    for run in (peer, *ours):
        run()
    found: list[list[float]] = [[] for _ in ours]
    for _ in range(rounds):
        reference = timed(peer)
        for own, run in zip(found, ours, strict=True):
            own.append(reference / timed(run))
    low_median_high = [statistics.quantiles(own, n=4) for own in found]
    return [f"{median:.2f} [{low:.2f}, {high:.2f}]" for low, median, high in low_median_high]


def rows(name: str, batch: int, rounds: int) -> list[tuple[str, ...]]:
    """One per peer: network, batch, peer, layers, and its time over ours."""
    model = load(name).model if name == "efficientnet-lite0" else network(name)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    taps = trace(model, images[:1], CLASS).taps
    names = [tap.name for tap in taps]
    few = spaced(names, FEW)
    theirs = unrolled(model) if any("#" in each for each in names) else copy.deepcopy(model)
    own = [(tap, found) for tap, found in zip(trace(theirs, images[:1], CLASS).taps, taps, strict=True)]
    assert all(torch.allclose(tap.activation, found.activation, atol=1e-3) for tap, found in own)
    every = layers_of(theirs, images[:1], [tap for tap, _ in own])
    some = layers_of(theirs, images[:1], [tap for tap, found in own if found.name in few])
    assert (len(every), len(some)) == (len(names), FEW), (len(every), len(some))
    compared = (
        ("GradCAMPlusPlus (pytorch-grad-cam)", partial(grad_cam, "GradCAMPlusPlus"), "gradcam++", ALL_LAYERS),
        ("LayerCAM (torchcam)", partial(torch_cam, "LayerCAM"), "layercam-fused", {}),
        ("RefineCAM (pytorch-grad-cam)", partial(grad_cam, "RefineCAM"), "refinecam", {}),
        ("RefineCAM (torchcam)", refined, "refinecam", {}),
    )
    found = []
    for peer, make, recipe, changed in compared:
        is_few = "RefineCAM" in peer
        chosen = few if is_few else "activations"
        run = make(copy.deepcopy(theirs), some if is_few else every, images)
        ours = (
            IntegrativeCAM(model, taps=chosen),
            IntegrativeCAM(model, get_method(recipe).recipe, taps=chosen, **changed),
        )
        layers = str(FEW if is_few else len(names))
        limit, _ = bare(model, images, CLASS)
        measured = ratios(run, [*(partial(each, images, target=CLASS) for each in ours), limit], rounds)
        found.append((name, str(batch), peer, layers, *measured))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings in turn per row")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="efficientnet-lite0 or torchvision names")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8), help="images in a call")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Peer's time over ours, 224 x 224, float32, one thread")
    columns = ("network", "images", "peer", "layers", "over the default recipe", "over our recipe", "over the limit")
    for column in columns:
        table.add_column(column)
    cases = [(name, batch) for batch in arguments.batches for name in arguments.networks]
    for name, batch in track(cases, description="Networks", console=Console(stderr=True)):
        for row in rows(name, batch, arguments.rounds):
            table.add_row(*row)
    console = Console(width=150)
    console.print(table)
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in ("torch", "grad-cam", "torchcam"))
    console.print(
        f"integrative-cam {__version__}, {versions}, Python {platform.python_version()}, {platform.machine()}; "
        f"{arguments.rounds} rounds"
    )


if __name__ == "__main__":
    main()
