"""Taps, completeness and cost per network: the table of docs/performance.md.

    make bench

Cost is a ratio: a call of IntegrativeCAM over forward + gradient to the same taps with nothing else. The two take
turns within a round; printed are the median over the rounds and the range of its middle half.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, __version__, explain, trace
from integrative_cam.models import load

LITE = "efficientnet-lite0"
NETWORKS = (
    "resnet18", "vgg11_bn", "densenet121", "googlenet", "squeezenet1_1", "resnet50", "vgg16", "mobilenet_v2",
    LITE, "efficientnet_b0", "inception_v3", "convnext_tiny",
)  # fmt: skip


def network(name: str) -> nn.Module:
    """A torchvision network with random weights, and biases and batch statistics that are not trivial, or the bundled
    one with its own.
    """
    if name == LITE:
        return load(name).model.eval()
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1)
    return model


def limit(model: nn.Module, images: Tensor, target: int) -> Callable[[], None]:
    """Forward and gradient to the taps: what no method of this family can do without."""
    run, tensors = bare(model, images, target)
    run()
    found = len(trace(model, images, target).taps)
    assert len(tensors) == found, (len(tensors), found)

    def freed() -> None:
        # As a call does: what it would hold until its next turn, the other side would have to ask the system for.
        run()
        tensors.clear()

    return freed


def bare(model: nn.Module, images: Tensor, target: int) -> tuple[Callable[[], None], list[Tensor]]:
    """The limit, and the list in which each run puts the taps' tensors."""
    tensors: list[Tensor] = []

    class Keep(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "").strip("_") in KEPT and output.ndim == 4 and output[0, 0].numel() > 1:
                tensors.append(output)
            return output

    def run() -> None:
        tensors.clear()
        leaf = images.clone().requires_grad_()
        with Keep():
            score = model(leaf.clone())[:, target].sum()
        torch.autograd.grad(score, [leaf, *tensors])

    return run, tensors


KEPT = frozenset({"relu", "relu6", "hardtanh", "silu", "gelu", "hardswish"})


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(run: Callable[[], object], reference: Callable[[], object], rounds: int) -> str:
    """Median and middle half of run's time over the reference's, taking turns."""
    found = [timed(run) / timed(reference) for _ in range(rounds)]
    low, median, high = statistics.quantiles(found, n=4)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="paired timings per network")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help=f"torchvision names, or {LITE}")
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    title = f"{arguments.batch} x 3 x 224 x 224; completeness in float64, time in float32 on one thread"
    table = Table(title=title)
    for column in ("network", "taps", "cuts", "bias sites", "|remainder|", "|bypass| at cuts", "call", "bias='none'"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name in track(arguments.networks, description="Networks", console=Console(stderr=True)):
        model = network(name)
        size = 299 if name == "inception_v3" else 224
        images = torch.randn(arguments.batch, 3, size, size, generator=torch.Generator().manual_seed(1))
        parts = explain(model.double(), images.double(), target=7).completeness
        at_cuts = parts.bypass[:, parts.is_cut]
        row = [
            name,
            str(len(parts.is_cut)),
            str(int(parts.is_cut.sum())),
            str(len(trace(model, images.double(), 7).sites)),
            f"{float(parts.remainder.abs().max()):.1e}",
            f"{float(at_cuts.abs().max()):.1e}" if at_cuts.numel() else "-",
        ]
        model = model.float()
        reference = limit(model, images, target=7)
        for recipe in ({}, {"bias": "none"}):
            cam = IntegrativeCAM(model, **recipe)
            cam(images, target=7)
            row.append(ratios(partial(cam, images, target=7), reference, arguments.rounds))
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    console.print(
        f"integrative-cam {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}; {arguments.rounds} rounds"
    )


if __name__ == "__main__":
    main()
