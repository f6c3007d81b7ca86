"""What `icam explain` wrote, one case per explained photograph and target."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from ..errors import ExplanationError, first_line
from ..evaluate._localisation import energy, mask_of_boxes
from ..models import read_image
from ..storage import ARRAYS
from ._truth import Truth, Truths, stands_for

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RECORD = "record.json"
SIDE = 240
"""Of a thumbnail's longer side, in pixels, of few cases."""
PICTURES = 1000
"""Cases beyond which thumbnails shrink, so that together they hold as many pixels as these."""
LEAST_SIDE = 96
RIM = 0.1
"""Of a picture's sides, counted as its border at each end."""


@dataclass(frozen=True)
class Case:
    """One explanation.

    `confidence` is the probability, or a detector's score, of the predicted class; `right` None where the truth is not
    known. Shares, 0 to 1: `area` of the picture above half of the map's maximum; `border` of the evidence in the outer
    tenth at each side; `on_object` of the evidence in the true boxes of the explained class, and `object_area` of the
    picture in them; `remainder` of the score's parts. `picture` is a data URI, `folder` the explanation's in the run's.
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
    """The cases of the folders that `icam explain --out FOLDER` wrote, and what could not be read, in words.

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
    side = side_of(len(records))
    cases, unread = [], []
    for place in records:
        try:
            cases.append(_case(place.parent, folder, truths, side))
        except Exception as error:  # a folder may hold anything under these names
            unread.append(f"{place.parent}: {first_line(error)}")
    return cases, unread


def side_of(count: int) -> int:
    """Of a thumbnail, in pixels."""
    share: float = min(1.0, PICTURES / count) ** 0.5
    return max(LEAST_SIDE, round(SIDE * share))


def _case(folder: Path, top: Path, truths: Truths, side: int) -> Case:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    with safe_open(folder / "explanation" / ARRAYS, framework="pt") as arrays:
        saliency = arrays.get_tensor("map")[0].float()
    size = (int(record["size"][0]), int(record["size"][1]))
    truth = truths.of(Path(record["image"]), size)
    predicted = (record["top"] or [{}])[0]
    measure = next((name for name in ("probability", "score") if name in predicted), None)
    values = [entry[measure] for entry in record["top"]] if measure else []
    on_object, object_area = _object(record, truth, saliency) or (None, None)
    parts = [abs(float(record["parts"][name])) for name in ("input", "bias", "remainder")]
    return Case(
        image=str(record["image"]),
        explained=str(record["named"]),
        prediction=str(predicted.get("label", "")),
        confidence=float(values[0]) if values else None,
        runner_up=float(values[1]) if measure == "probability" and len(values) > 1 else None,
        truth=tuple(_named(label, record) for label in truth.labels),
        right=_right(predicted, truth, record["classes"]) if measure else None,
        area=float((saliency > 0.5).double().mean()),
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
    """An index by its class's name, where the network has it among its first."""
    names = {str(entry["index"]): str(entry["label"]) for entry in record["top"]}
    return names.get(truth, f"class {truth}" if truth.isdigit() else truth)


def _right(predicted: Mapping[str, Any], truth: Truth, classes: int) -> bool | None:
    if not truth.labels:
        return None
    return any(stands_for(label, predicted["index"], predicted["label"], classes) for label in truth.labels)


def _object(
    record: Mapping[str, Any], truth: Truth, saliency: Float[Tensor, "height width"]
) -> tuple[float, float] | None:
    """Shares of the evidence and of the picture in the true boxes of the explained class, if it has any."""
    explained = record["target"]["classes"]
    names = {entry["index"]: entry["label"] for entry in record["top"]}
    chosen = [
        boxes
        for label, boxes in truth.boxes.items()
        if any(stands_for(label, index, names.get(index, ""), record["classes"]) for index in explained)
    ]
    if not chosen:
        return None
    inside = _in_map(torch.cat(chosen), record["seen"], saliency)
    if not len(inside):
        return None
    mask = mask_of_boxes(inside, (saliency.shape[0], saliency.shape[1]))
    if not mask.any():
        return None
    return float(energy(saliency[None], mask[None])[0]), float(mask.double().mean())


def _in_map(boxes: Float[Tensor, "box 4"], seen: Sequence[float], saliency: Tensor) -> Float[Tensor, "inside 4"]:
    """Boxes of the photograph in pixels of the map, which shows the region `seen`; those outside of it left out."""
    left, top, right, bottom = seen
    height, width = saliency.shape
    scale = torch.tensor([width / (right - left), height / (bottom - top)] * 2)
    moved = (boxes - torch.tensor([left, top] * 2)) * scale
    clipped = moved.clamp_min(0).minimum(torch.tensor([float(width), float(height)] * 2))
    return clipped[(clipped[:, 2:] > clipped[:, :2]).all(1)]


def border(saliency: Float[Tensor, "height width"]) -> float:
    """The share of the map in the outer tenth at each side; 0 of a blank map. A flat map has 0.36."""
    height, width = saliency.shape
    down, across = round(height * RIM), round(width * RIM)
    total = float(saliency.double().sum())
    inner = float(saliency[down : height - down, across : width - across].double().sum())
    return (total - inner) / total if total > 0 else 0.0


def thumbnail(file: Path, side: int) -> str:
    """The picture, at most `side` pixels wide and high, as a data URI of WebP."""
    small = read_image(file)
    small.thumbnail((side, side))
    stored = io.BytesIO()
    small.save(stored, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"
