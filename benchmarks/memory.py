"""Peak memory of a call over that of forward and gradient to the same taps alone, and growth over many calls.

    python benchmarks/memory.py

Each side runs in a process of its own, on one thread; its peak is the largest resident memory during the call above
that before it. Linux only: the kernel's own high-water mark is read.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import torch
from overview import bare, network
from rich.console import Console
from rich.progress import track
from rich.table import Table

from integrative_cam import IntegrativeCAM, __version__

NETWORKS = ("resnet50", "vgg16", "mobilenet_v2")


def resident(field: str) -> int:
    """Resident bytes now ("VmRSS") or at most since the mark was reset ("VmHWM")."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def peak(name: str, batch: int, side: str) -> int:
    """Bytes above those before the first call at this size; one on small images has loaded what is loaded once."""
    torch.set_num_threads(1)
    model = network(name)
    images = torch.randn(batch, 3, 224, 224)
    IntegrativeCAM(model)(images[:1, :, :64, :64], target=7)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if side == "limit":
        run, _ = bare(model, images, 7)
        run()
    else:
        IntegrativeCAM(model)(images, target=7)
    return resident("VmHWM") - before


def growth(calls: int) -> tuple[int, int]:
    """Resident bytes after a tenth of the calls and after all of them."""
    torch.set_num_threads(1)
    cam, images = IntegrativeCAM(network("resnet18")), torch.randn(1, 3, 64, 64)
    for call in range(calls):
        cam(images, target=call % 1000)
        if call == calls // 10:
            early = resident("VmRSS")
    return early, resident("VmRSS")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images in a call")
    parser.add_argument("--calls", type=int, default=1000, help="calls in one process")
    arguments = parser.parse_args()
    table = Table(title="Peak memory of one call at 224 x 224, MiB")
    for column in ("network", "images", "limit", "explain", "ratio"):
        table.add_column(column, justify="left" if column == "network" else "right")
    jobs = [(name, batch) for name in NETWORKS for batch in arguments.batch]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, batch in track(jobs, description="Networks", console=Console(stderr=True)):
            least, ours = (pool.apply(peak, (name, batch, side)) for side in ("limit", "explain"))
            table.add_row(name, str(batch), f"{least / 2**20:.0f}", f"{ours / 2**20:.0f}", f"{ours / least:.2f}")
        early, late = pool.apply(growth, (arguments.calls,))
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{arguments.calls} calls in one process: {early / 2**20:.1f} MiB after a tenth of them, "
        f"{late / 2**20:.1f} MiB at the end ({late / early - 1:+.2%})."
    )
    console.print(f"integrative-cam {__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
