"""Time of a call with the network in other forms over the same call in float32: channels last, bfloat16, both.

    python benchmarks/forms.py

One thread; the forms take turns within a round; printed are the median of the paired ratios and their middle half, and
the largest difference between the maps, which lie in [0, 1].
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from overview import LITE, network, ratios
from torch import Tensor

from integrative_cam import Explanation, IntegrativeCAM

NETWORKS = ("resnet50", "vgg16", "mobilenet_v2", LITE)


def forms(name: str, images: Tensor) -> dict[str, Callable[[], Explanation]]:
    """The call in float32 as it is, and in each other form."""
    model = network(name)
    plain = IntegrativeCAM(model)
    last = IntegrativeCAM(copy.deepcopy(model).to(memory_format=torch.channels_last))
    images_last = images.contiguous(memory_format=torch.channels_last)

    def half(cam: IntegrativeCAM, images: Tensor) -> Explanation:
        with torch.autocast("cpu", torch.bfloat16):
            return cam(images, 7)

    return {
        "float32": lambda: plain(images, 7),
        "channels last": lambda: last(images_last, 7),
        "bfloat16": lambda: half(plain, images),
        "both": lambda: half(last, images_last),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="paired timings of each form")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| network | images | form | time over float32 | largest difference of maps |")
    print("|---|---|---|---|---|")
    for name in NETWORKS:
        for batch in (1, 8):
            images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
            plain, *others = forms(name, images).items()
            expected = plain[1]().map
            for form, run in others:
                away = float((run().map - expected).abs().max())
                print(f"| {name} | {batch} | {form} | {ratios(run, plain[1], rounds)} | {away:.1g} |", flush=True)


if __name__ == "__main__":
    main()
