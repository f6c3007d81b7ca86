"""Networks in files that hold only a graph; a JSON file beside it describes preprocessing, class names and task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import nn

from .._choices import TASKS
from ..errors import ModelError
from ._image import MAX_PIXELS, Interpolation, Preprocessing
from ._network import Network

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Size = tuple[int | None, int | None]
"""(height, width) that a network takes, None where it takes any."""
Axes = tuple[int, Size, bool]
"""How many channels an input has, its size, and whether the channels come last."""
EXTREME = 1e6
"""Means and deviations of pixels are refused above it, deviations below its inverse."""
FIELDS = ("resize", "crop", "interpolation", "mean", "std", "squash", "labels", "task")


def graph_network(
    file: Path,
    model: nn.Module,
    axes: Axes,
    labels: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    task: str = "classification",
) -> Network:
    """The network in a graph's file, with the preprocessing, class names and task of the JSON file beside it.

    The JSON file has the same stem and holds an object with any of FIELDS, named as in `Network` and `Preprocessing`.
    Without `resize`, photographs are squashed to the network's input size. Without `mean` and `std`, the network gets
    pixels / 255; a note says so, since most networks want more.

    Args:
        file: of the graph.
        model: the graph as a module.
        axes: of its input, see `image_axes`.
        labels: class names, where the JSON file has none.
        notes: what the user should know.
        task: one of TASKS, where the JSON file has none.

    Raises:
        ModelError: the JSON file holds no such object, or a size that the network does not take.
    """
    channels, size, channels_last = axes
    path = file.with_suffix(".json")
    stated = _read(path) if path.exists() else {}
    crop = _fixed(size, path) if stated.get("crop") is None else _pair(stated["crop"], path)
    if crop[0] * crop[1] > MAX_PIXELS:
        raise ModelError(
            f"{file}: takes images of {crop[0]} x {crop[1]} pixels, which is over {MAX_PIXELS // 10**6} megapixels."
        )
    if any(own is not None and own != wanted for own, wanted in zip(size, crop, strict=True)):
        raise ModelError(f"{path}: crop is {list(crop)}, but {file.name} takes {list(size)} (height, width).")
    settings = {
        "resize": crop,
        "interpolation": "bilinear",
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "squash": False,
        "labels": [],
        "task": task,
        **stated,
    }
    resize = settings["resize"] if _is_side(settings["resize"]) else _pair(settings["resize"], path)
    mean, std = (_numbers(settings[key], channels, key, path) for key in ("mean", "std"))
    for key, fits, wanted in (
        ("interpolation", settings["interpolation"] in get_args(Interpolation), _one_of(get_args(Interpolation))),
        ("squash", isinstance(settings["squash"], bool), "true or false"),
        ("task", settings["task"] in TASKS, _one_of(TASKS)),
        ("labels", isinstance(settings["labels"], list), "a list of names"),
    ):
        if not fits:
            raise ModelError(f"{path}: {key} must be {wanted}, but got {str(settings[key])[:80]!r}.")
    if not stated.keys() & {"mean", "std"}:
        notes = (
            f"{file.name} does not say how its input is normalised: pixels / 255 are taken as they are. If it was "
            f'trained otherwise, say so in {path.name} beside it: {{"mean": [...], "std": [...], "labels": [...]}}.',
            *notes,
        )
    return Network(
        file.name,
        ChannelsLast(model) if channels_last else model,
        Preprocessing(resize, crop, settings["interpolation"], mean, std, settings["squash"]),
        tuple(map(str, settings["labels"])) or labels,
        notes,
        settings["task"],
    )


class ChannelsLast(nn.Module):
    """Takes images with channels first to a model that wants (batch, height, width, channel)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Any:
        """What the model returns."""
        return self.model(images.permute(0, 2, 3, 1))


def image_axes(shape: Sequence[int | None], file: Path) -> Axes:
    """Which axes of an input's shape are which, where None stands for an axis of any length.

    Raises:
        ModelError: no batch of greyscale or colour pictures.
    """
    if len(shape) == 4:
        if shape[1] in (1, 3):
            return shape[1] or 0, (shape[2], shape[3]), False
        if shape[3] in (1, 3):
            return shape[3] or 0, (shape[1], shape[2]), True
    shown = ", ".join("any" if side is None else str(side) for side in shape)
    raise ModelError(
        f"model '{file}': takes input of shape ({shown}), not (batch, 1 or 3, height, width) or (batch, height, width, "
        "1 or 3). Write FILE.py with a factory that returns the module, and give it its input in Python."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: must hold an object, but holds {type(settings).__name__}.")
    unknown = [key for key in settings if key not in FIELDS]
    if unknown:
        raise ModelError(f"{path}: unknown key {unknown[0]!r}; there are {', '.join(FIELDS)}.")
    return settings


def _one_of(choices: Sequence[str]) -> str:
    return f"one of {', '.join(choices)}"


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PIXELS


def _pair(value: Any, path: Path) -> tuple[int, int]:
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_side, value)):
        return int(value[0]), int(value[1])
    raise ModelError(f"{path}: sizes must be [height, width] in pixels, but got {value!r}.")


def _fixed(size: Size, path: Path) -> tuple[int, int]:
    height, width = size
    if height is None or width is None:
        raise ModelError(
            f'{path.stem}: takes any size; say which it was trained on in {path} beside it: {{"crop": [224, 224]}}.'
        )
    return height, width


def _numbers(value: Any, channels: int, key: str, path: Path) -> tuple[float, ...]:
    least = 1 / EXTREME if key == "std" else -EXTREME
    fitting = isinstance(value, Sequence) and len(value) == channels
    if not fitting or not all(isinstance(number, int | float) and least <= number <= EXTREME for number in value):
        positive = " positive" if key == "std" else ""
        raise ModelError(f"{path}: {key} must be {channels}{positive} numbers in units of [0, 1], but got {value!r}.")
    return tuple(map(float, value))
