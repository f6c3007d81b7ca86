"""What a run is: all that a worker needs to know, and what two runs into one place must share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..errors import InputError, ModelError, TargetError
from ..methods._registry import Method
from ..models import Network, load
from ..query import parse_target
from ..recipe import Recipe
from ._failures import RetryPolicy
from ._sources import Source

FORMAT = 1
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Job:
    """Explain every image of `source` and keep the results in `dest`.

    Args:
        source: see `open_source`.
        dest: a folder, or a URL that fsspec writes to.
        model: a network by name, as `models.load` takes it; workers load it themselves.
        weights: a local file of weights, at the same path for every worker.
        method: how maps are made.
        target: "top1", "top3", ... (the network's top classes, a row each), or a class index or name.
        threshold: of the map's region: the share of its maximum above which it counts, at least 0 and below 1.
        shard: images per shard, which is written at once.
        thumbnail: longer side in pixels of a small overlay kept with each map; 0 for none.
        batch: images that the network takes at once.
        decoders: processes per worker that read and decode; with 0 the worker does.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is CUDA where there is some.
        precision: of the network's arithmetic, one of PRECISIONS; maps are made in float32 whatever it is.
        patience: with a source that does not answer.

    Raises:
        InputError: a value is out of range.
    """

    source: str
    dest: str
    model: str
    method: Method
    weights: Path | None = None
    target: str = "top1"
    threshold: float = 0.5
    shard: int = 256
    thumbnail: int = 0
    batch: int = 16
    decoders: int = 1
    device: str = "auto"
    precision: str = "float32"
    patience: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        for name, least in (("shard", 1), ("batch", 1), ("decoders", 0), ("thumbnail", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, but got {getattr(self, name)}.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, but got {self.precision!r}.")
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold must be at least 0 and below 1, but got {self.threshold}.")
        if self.patience.timeout <= 0 or self.patience.attempts < 1:
            raise InputError(
                f"patience must have a timeout above 0 and at least 1 attempt, but got {self.patience.timeout:g} s and "
                f"{self.patience.attempts}."
            )

    @property
    def recipe(self) -> Recipe | None:
        """The method's ingredients, if it is made of them."""
        return self.method.way if isinstance(self.method.way, Recipe) else None

    def targets(self, network: Network) -> int | list[int]:
        """The number of top classes to explain, or the one class, in a list; TargetError for any other target."""
        target = parse_target(self.target, network)
        if isinstance(target, int):
            return target
        if len(target) > 1:
            raise TargetError(f"target {self.target!r}: a run explains one class, or top1, top2, ...; name one class.")
        return list(target)

    def network(self, fingerprint: str | None = None) -> Network:
        """Load the network, on the CPU; ModelError where it is not the one with that fingerprint."""
        network = load(self.model, self.weights)
        if fingerprint is not None and fingerprint_of(network) != fingerprint:
            raise ModelError(
                f"model {self.model!r}: this worker's weights or preprocessing are not those that the run began with; "
                "give all machines the same files."
            )
        return network

    def identity(self, network: Network, source: Source) -> dict[str, Any]:
        """What makes two runs the same; how the work is spread does not matter."""
        same = ("model", "target", "threshold", "precision", "shard", "thumbnail")
        return {
            "format": FORMAT,
            "integrative_cam": __version__,
            "torch": torch.__version__,
            **{name: getattr(self, name) for name in same},
            "model_fingerprint": fingerprint_of(network),
            "method": self.method.name,
            "recipe": self.recipe and self.recipe.described(),
            "source": self.source.rstrip("/"),
            "source_fingerprint": source.fingerprint,
            "parts": len(source.parts),
        }


def fingerprint_of(network: Network) -> str:
    """The same for networks with the same weights and preprocessing."""
    digest = hashlib.sha256(repr(network.preprocessing).encode())
    for name, value in sorted(network.model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().tobytes())
    return digest.hexdigest()
