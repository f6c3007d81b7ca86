"""What a file of a bare graph does not say: how to prepare photographs, what its output means, its classes' names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from .._choices import TASKS
from ..errors import ModelError
from ._image import MAX_PIXELS, Interpolation, Preprocessing

EXTREME = 1e6
"""No mean or deviation of pixels is larger, no deviation smaller than its inverse."""
FIELDS = ("resize", "crop", "interpolation", "mean", "std", "squash", "labels", "task")
_PLAIN: Mapping[str, Any] = {"interpolation": "bilinear", "squash": False, "labels": [], "task": "classification"}


@dataclass(frozen=True)
class Sidecar:
    """Preprocessing, class names and task for a file, None where it does not say, and remarks on what was assumed."""

    preprocessing: Preprocessing
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    task: str | None


def read_sidecar(file: Path, channels: int, size: tuple[int | None, int | None]) -> Sidecar:
    """The JSON file beside `file` with the same stem: an object with any of FIELDS, named as in `Network`.

    Without `resize`, photographs are squashed to the network's input size; without `mean` and `std`, its values are
    those of the pixels divided by 255. A note says so, since most networks want more.

    Args:
        file: the network.
        channels: that the network takes: 1 or 3.
        size: (height, width) that it takes, None where it takes any.

    Raises:
        ModelError: not such an object, or a size that the network does not take.
    """
    path = file.with_suffix(".json")
    stated = _read(path) if path.exists() else {}
    crop = _fixed(size, path) if stated.get("crop") is None else _pair(stated["crop"], path)
    if crop[0] * crop[1] > MAX_PIXELS:
        raise ModelError(
            f"{file}: takes images of {crop[0]} x {crop[1]} pixels, which is over {MAX_PIXELS // 10**6} megapixels."
        )
    if any(own is not None and own != wanted for own, wanted in zip(size, crop, strict=True)):
        raise ModelError(f"{path}: crop is {list(crop)}, but {file.name} takes {list(size)} (height, width).")
    given = {"resize": crop, "mean": [0.0] * channels, "std": [1.0] * channels, **_PLAIN, **stated}
    resize = given["resize"] if _is_side(given["resize"]) else _pair(given["resize"], path)
    mean, std = (_numbers(given[key], channels, key, path) for key in ("mean", "std"))
    if given["interpolation"] not in get_args(Interpolation):
        raise ModelError(f"{path}: interpolation must be one of {', '.join(get_args(Interpolation))}.")
    if not isinstance(given["squash"], bool):
        raise ModelError(f"{path}: squash must be true or false, but got {given['squash']!r}.")
    if given["task"] not in list(TASKS):
        raise ModelError(f"{path}: task must be one of {', '.join(TASKS)}, but got {given['task']!r}.")
    if not isinstance(given["labels"], list):
        raise ModelError(f"{path}: labels must be a list of names, but got {type(given['labels']).__name__}.")
    note = (
        f"{file.name} does not say how its input is normalised: pixels / 255 are taken as they are. If it was "
        f'trained otherwise, say so in {path.name} beside it: {{"mean": [...], "std": [...], "labels": [...]}}.'
    )
    return Sidecar(
        Preprocessing(resize, crop, given["interpolation"], mean, std, given["squash"]),
        tuple(map(str, given["labels"])),
        () if stated.keys() & {"mean", "std"} else (note,),
        stated.get("task"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(given, dict):
        raise ModelError(f"{path}: must hold an object, but holds {type(given).__name__}.")
    unknown = [key for key in given if key not in FIELDS]
    if unknown:
        raise ModelError(f"{path}: unknown key {unknown[0]!r}; there are {', '.join(FIELDS)}.")
    return given


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PIXELS


def _pair(value: Any, path: Path) -> tuple[int, int]:
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_side, value)):
        return int(value[0]), int(value[1])
    raise ModelError(f"{path}: sizes must be [height, width] in pixels, but got {value!r}.")


def _fixed(size: tuple[int | None, int | None], path: Path) -> tuple[int, int]:
    height, width = size
    if height is None or width is None:
        raise ModelError(
            f'{path.stem}: takes any size; say which it was trained on in {path} beside it: {{"crop": [224, 224]}}.'
        )
    return height, width


def _numbers(value: Any, channels: int, key: str, path: Path) -> tuple[float, ...]:
    least = 1 / EXTREME if key == "std" else -EXTREME
    fitting = isinstance(value, Sequence) and len(value) == channels
    if not fitting or not all(isinstance(each, int | float) and least <= each <= EXTREME for each in value):
        positive = " positive" if key == "std" else ""
        raise ModelError(f"{path}: {key} must be {channels}{positive} numbers in units of [0, 1], but got {value!r}.")
    return tuple(map(float, value))
