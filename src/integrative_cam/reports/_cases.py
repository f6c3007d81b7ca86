"""The explanations that `icam explain` wrote, one case for each photograph and target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from ..errors import ExplanationError, first_line
from ..evaluate._localisation import energy, mask_of_boxes
from ..explanation import SeenRegion
from ..models import read_image
from ..query import RECORD, area_above_half, read_record
from ..render._templates import data_uri
from ..storage import ARRAYS
from ._truth import Truth, Truths, stands_for

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

THUMBNAIL_SIDE = 240
"""Longer side of a thumbnail, in pixels, of up to FULL_SIZE_CASES cases."""
FULL_SIZE_CASES = 1000
"""With more cases, thumbnails shrink, so that the page stays as large as with so many."""
MIN_THUMBNAIL_SIDE = 96
BORDER_SHARE = 0.1
"""Share of the map's height and width that counts as its border, at each side."""


@dataclass(frozen=True)
class Case:
    """One explained photograph and target. Shares are from 0 to 1.

    Attributes:
        image: the photograph's file.
        explained: the target in words, with the predicted value.
        prediction: the network's top class.
        confidence: its probability, or a detector's score; None for a network that gives neither.
        runner_up: the probability of the second class.
        truth: the true classes; empty if unknown.
        right: whether the prediction is one of them; None if unknown.
        area: share of the map above half of its maximum.
        border: share of the evidence in the outer tenth at each side.
        on_object: share of the evidence in the true boxes of the explained class; None without such boxes.
        object_area: share of the map in these boxes.
        remainder: share of the remainder in the absolute parts of the score.
        model, method: names.
        picture: the overlay as a data URI.
        folder: of the explanation, in the folder of the run.
    """

    image: str
    explained: str
    prediction: str
    confidence: float | None
    runner_up: float | None
    truth: tuple[str, ...]
    right: bool | None
    area: float
    border: float
    on_object: float | None
    object_area: float | None
    remainder: float
    model: str
    method: str
    picture: str
    folder: str


def cases_of_explanations(folder: Path, truths: Truths) -> tuple[list[Case], list[str]]:
    """The cases in the folder that `icam explain --out FOLDER` wrote, and a line for each that cannot be read.

    Raises:
        ExplanationError: there are none.
    """
    records = sorted(folder.rglob(RECORD))
    if not records:
        if (folder / "shards").is_dir():
            raise ExplanationError(
                f"{folder}: holds no explanation with a {RECORD}, but what icam run wrote: "
                f"integrative_cam.run.Results({str(folder)!r}) reads it. A report is made of what icam explain wrote."
            )
        raise ExplanationError(
            f"{folder}: holds no explanation with a {RECORD}; write some with icam explain PHOTOGRAPHS --out {folder}."
        )
    side = thumbnail_side(len(records))
    cases, unread = [], []
    for file in records:
        try:
            cases.append(_case(file.parent, folder, truths, side))
        except Exception as error:  # a folder may hold anything under these names
            unread.append(f"{file.parent}: {first_line(error)}")
    return cases, unread


def thumbnail_side(cases: int) -> int:
    """The longer side of each thumbnail in pixels, for a page of so many cases."""
    share: float = min(1.0, FULL_SIZE_CASES / cases) ** 0.5
    return max(MIN_THUMBNAIL_SIDE, round(THUMBNAIL_SIDE * share))


def _case(folder: Path, top: Path, truths: Truths, side: int) -> Case:
    record = read_record(folder)
    with safe_open(folder / "explanation" / ARRAYS, framework="pt") as arrays:
        saliency = arrays.get_tensor("map")[0].float()
    size = (int(record["size"][0]), int(record["size"][1]))
    truth = truths.of(Path(record["image"]), size)
    predicted = (record["top"] or [{}])[0]
    measure = next((name for name in ("probability", "score") if name in predicted), None)
    values = [entry[measure] for entry in record["top"]] if measure else []
    exclusive = record.get("task") != "multi-label"
    on_object, object_area = _object(record, truth, saliency) or (None, None)
    parts = [abs(float(record["parts"][name])) for name in ("input", "bias", "remainder")]
    return Case(
        image=str(record["image"]),
        explained=str(record["named"]),
        prediction=str(predicted.get("label", "")),
        confidence=float(values[0]) if values else None,
        # Labels that do not exclude each other have no runner-up.
        runner_up=float(values[1]) if measure == "probability" and exclusive and len(values) > 1 else None,
        truth=tuple(_named(label, record) for label in truth.labels),
        right=_right(predicted, truth, record["classes"]) if measure else None,
        area=float(area_above_half(saliency[None])),
        border=border(saliency),
        on_object=on_object,
        object_area=object_area,
        remainder=parts[2] / (sum(parts) or 1.0),
        model=str(record["model"]),
        method=str(record["method"]),
        picture=thumbnail(folder / "overlay.png", side),
        folder=folder.relative_to(top).as_posix(),
    )


def _named(truth: str, record: Mapping[str, Any]) -> str:
    """The true class's name if it is given as an index and is among the network's top classes."""
    names = {str(entry["index"]): str(entry["label"]) for entry in record["top"]}
    return names.get(truth, f"class {truth}" if truth.isdigit() else truth)


def _right(predicted: Mapping[str, Any], truth: Truth, classes: int) -> bool | None:
    if not truth.labels:
        return None
    return any(stands_for(label, predicted["index"], predicted["label"], classes) for label in truth.labels)


def _object(
    record: Mapping[str, Any], truth: Truth, saliency: Float[Tensor, "height width"]
) -> tuple[float, float] | None:
    """Shares of the evidence and of the map in the true boxes of the explained class, if it has any."""
    explained = record["target"]["classes"]
    names = {entry["index"]: entry["label"] for entry in record["top"]}
    chosen = [
        boxes
        for label, boxes in truth.boxes.items()
        if any(stands_for(label, index, names.get(index, ""), record["classes"]) for index in explained)
    ]
    if not chosen:
        return None
    inside = _in_map(torch.cat(chosen), SeenRegion(record["size"], record["seen"]), saliency)
    mask = mask_of_boxes(inside, (saliency.shape[0], saliency.shape[1]))
    if not mask.any():
        return None
    return float(energy(saliency[None], mask[None])[0]), float(mask.double().mean())


def _in_map(boxes: Float[Tensor, "box 4"], seen: SeenRegion, saliency: Tensor) -> Float[Tensor, "inside 4"]:
    """Boxes in pixels of the map instead of the photograph, clipped to the region `seen` that the map covers."""
    height, width = saliency.shape
    moved = torch.tensor([seen.to_input(box, (width, height)) for box in boxes.tolist()])
    clipped = moved.clamp_min(0).minimum(torch.tensor([float(width), float(height)] * 2))
    return clipped[(clipped[:, 2:] > clipped[:, :2]).all(1)]


def border(saliency: Float[Tensor, "height width"]) -> float:
    """The share of the map's sum in the outer tenth at each side: 0.36 for a flat map, 0 for a blank one."""
    height, width = saliency.shape
    down, across = round(height * BORDER_SHARE), round(width * BORDER_SHARE)
    total = float(saliency.double().sum())
    inner = float(saliency[down : height - down, across : width - across].double().sum())
    return (total - inner) / total if total > 0 else 0.0


def thumbnail(file: Path, side: int) -> str:
    """The picture, at most `side` pixels wide and high, as a data URI of WebP."""
    small = read_image(file)
    small.thumbnail((side, side))
    return data_uri(small, quality=70)
