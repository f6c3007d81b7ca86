"""Weights from local files, read without running code from the file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ModelError, first_line

EXPANDED = 2**26
"""Bytes up to which a tensor may be larger than its content in the file."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a torch file that holds nothing but tensors and containers.

    It is taken out of a dict that holds it as `state_dict` or `model`; the prefix `module.` of DataParallel is removed.

    Raises:
        ModelError: no such file, unreadable, or it holds more than plain weights.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"weights {path}: no such file.") from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"weights {path}: not a file of plain weights. Files that hold pickled objects are not loaded, since they "
            "can run code; save model.state_dict() instead."
        ) from None
    except Exception as error:  # broken files fail in many ways
        raise ModelError(f"weights {path}: cannot be read ({first_line(error)}).") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"weights {path}: holds {type(content).__name__}, not a dict of tensors.")
    for name, value in content.items():
        if not _is_plain(value):
            kind = f"{value.layout}, {value.device}, {tuple(value.shape)}"
            raise ModelError(f"weights {path}: {str(name)[:80]} is no tensor that holds its own values ({kind}).")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _is_plain(value: Tensor) -> bool:
    """Whether the tensor holds its own values: a file of a few bytes can hold an expanded tensor of many gigabytes."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        return False
    return value.nbytes <= max(EXPANDED, value.untyped_storage().nbytes())


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Load `weights` into the model; names and shapes must be equal.

    Raises:
        ModelError: names or shapes differ; the message says how many and shows one of each.
    """
    own = model.state_dict()
    # A counter that only training uses, and that older files do not have.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(own)} tensors are missing (such as {missing[0]})")
    if unexpected:
        problems.append(f"{len(unexpected)} are not part of this network (such as {unexpected[0]})")
    if reshaped:
        name = reshaped[0]
        problems.append(
            f"{len(reshaped)} have another shape (such as {name}: {tuple(weights[name].shape)}, "
            f"wanted {tuple(own[name].shape)})"
        )
    if problems:
        raise ModelError(f"weights {source} do not fit {type(model).__name__}: {'; '.join(problems)}.")
    try:
        model.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:  # dtypes that cannot be converted into one another
        raise ModelError(f"weights {source} do not fit {type(model).__name__}: {first_line(error)}") from None


def classes_in(weights: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """The number of classes of the weights, if they fit the model but for its classifier; else None."""
    own = model.state_dict()
    sizes = {
        value.shape[0]
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape and value.ndim and value.shape[1:] == own[name].shape[1:]
    }
    return sizes.pop() if len(sizes) == 1 else None
