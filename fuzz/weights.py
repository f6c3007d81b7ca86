"""Files of weights: safetensors and torch's zip and legacy formats."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from safetensors.torch import save
from torch import nn

with harness.instrumented("safetensors", "zipfile"):
    from integrative_cam.models._weights import classes_in, fill, read_weights

FILES = [harness.WORK / f"weights{suffix}" for suffix in (".safetensors", ".pth")]


def model() -> nn.Module:
    """With parameters, buffers and a counter."""
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


OWN = model()


def attempt(data: bytes) -> None:
    """Read it as both kinds of file; what is read fills a network or does not fit it."""
    file = FILES[data[:1] == b"\x80" or data[:2] == b"PK"]
    file.write_bytes(data)
    found = read_weights(file)
    assert all(isinstance(value, torch.Tensor) for value in found.values())
    classes = classes_in(found, OWN)
    assert classes is None or classes >= 0
    fill(OWN, found, file)


class Payload:
    """Writes into the working folder if it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (harness.WORK / "payload",)


def seeds() -> Iterator[bytes]:
    """Right ones, ones of other shapes and kinds, pickles that would run code."""
    right = model().state_dict()
    other = {**right, "3.bias": torch.tensor(1.0), "3.weight": torch.zeros(5, 2)}
    for state in (right, other, {"a": torch.zeros(0)}, {"a": torch.zeros(2, dtype=torch.bfloat16)}):
        yield save({name: value.contiguous() for name, value in state.items()})
    at_least_float32 = torch.zeros(1).expand(10**9, 2)
    special = {
        "sparse": {**right, "3.weight": torch.zeros(3, 2).to_sparse()},
        "complex": {**right, "3.weight": torch.zeros(3, 2, dtype=torch.complex64)},
        "expanded": {**right, "3.weight": at_least_float32, "3.bias": torch.zeros(1).expand(10**9)},
        "meta": {**right, "3.weight": torch.zeros(3, 2, device="meta")},
    }
    contents: list[Any] = [
        right, {"state_dict": right}, {"model": {f"module.{k}": v for k, v in right.items()}}, other, [1, 2], 5, {1: 2},
        OrderedDict(right), {"state_dict": Payload()}, {1: torch.zeros(2)}, *special.values(),
    ]  # fmt: skip
    for content in contents:
        for modern in (True, False):
            stored = io.BytesIO()
            try:
                torch.save(content, stored, _use_new_zipfile_serialization=modern)
            except Exception:
                continue
            yield stored.getvalue()
    yield pickle.dumps(Payload())
    yield pickle.dumps({"a": 1}, 0)


if __name__ == "__main__":
    harness.fuzz(attempt, seeds())
