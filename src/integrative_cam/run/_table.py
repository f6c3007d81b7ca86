"""Explanations as rows of a table: what a row holds, the numbers of a map, and the way back."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._maps.blocks import at_least_float32
from .._maps.completeness import Completeness
from ..explanation import BiasLayer, Explanation, Layer, SeenRegion
from ..models._image import encode_image
from ..query import probabilities, score_parts
from ..recipe import Recipe
from ..targets import class_scores

if TYPE_CHECKING:
    import pyarrow as pa
    from jaxtyping import Float, Int, UInt8

    from ..models import Network
    from ._decode import Sample

LEVELS = 255
"""A stored map is round(LEVELS * map) / LEVELS: its error is at most 1 / (2 * LEVELS)."""
META = b"integrative_cam"
"""Under which a shard's file keeps what its rows share."""
GROUP = 32
"""Rows that are stored, and read, together."""
HEAVY = ("output", "map", "thumbnail", "seen")
"""Columns that a table of results is better read without."""

_LAYER_SCORES = ("gradient_score", "activation_score", "joint_score")


def schema() -> pa.Schema:
    """The columns of a shard."""
    import pyarrow as pa

    text, whole, real, content = pa.string(), pa.int32(), pa.float32(), pa.binary()
    reals = pa.list_(real)
    columns = {"image": text, "rank": pa.int16(), "target": whole, "target_name": text}
    columns |= {"prediction": whole, "prediction_name": text, "probability": real}
    columns |= dict.fromkeys(("score", "score_input", "score_bias", "score_remainder"), real)
    columns |= dict.fromkeys(("area", "centroid_x", "centroid_y"), real)
    columns |= dict.fromkeys(("box_left", "box_top", "box_right", "box_bottom", "image_width", "image_height"), whole)
    columns |= {"seen": reals, "guarded": pa.int64(), "layer_weights": reals}
    columns |= dict.fromkeys((*(f"layer_{name}s" for name in _LAYER_SCORES), "layer_activation", "layer_bias"), reals)
    columns |= {"layer_is_cut": pa.list_(pa.bool_()), "bias_layer_weights": reals, "output": reals}
    return pa.schema(list({**columns, "map": content, "thumbnail": content}.items()))


def rows_of(
    explanation: Explanation, rank: int, samples: Sequence[Sample], network: Network, threshold: float
) -> list[dict[str, Any]]:
    """One row per image; see `docs/scale.md` for the columns. `rank` counts the targets of an image from 1."""
    parts, scores = explanation.completeness, score_parts(explanation)
    logits = class_scores(explanation.output, "target").detach().cpu()
    assert explanation.target is not None
    target = explanation.target.cpu()
    prediction = logits.argmax(1)
    maps = at_least_float32(explanation.map.detach())
    columns: dict[str, list[Any]] = {
        "image": [sample.key for sample in samples],
        "rank": [rank] * len(samples),
        "target": target.tolist(),
        "target_name": [network.label(index) for index in target.tolist()],
        "prediction": prediction.tolist(),
        "prediction_name": [network.label(index) for index in prediction.tolist()],
        "probability": probabilities(logits, network.task).gather(1, target[:, None])[:, 0].tolist(),
        "score": scores.pop("score"),
        **{f"score_{name}": values for name, values in scores.items()},
        **measured(maps, threshold),
        "image_width": [sample.width for sample in samples],
        "image_height": [sample.height for sample in samples],
        "seen": [list(sample.region) for sample in samples],
        "guarded": explanation.clamped.tolist(),
        "layer_weights": explanation.weights.tolist(),
        **{f"layer_{name}s": _across(explanation.layers, name, len(samples)) for name in _LAYER_SCORES},
        "layer_activation": parts.activation.tolist(),
        "layer_bias": parts.tap_bias.tolist(),
        "layer_is_cut": [parts.is_cut.tolist()] * len(samples),
        "bias_layer_weights": _across(explanation.bias_layers, "weight", len(samples)),
        "output": list(logits.float().numpy()),
    }
    levels = quantised(maps).cpu().numpy()
    return [
        {**dict(zip(columns, row, strict=True)), "map": level, "thumbnail": sample.picture}
        for row, level, sample in zip(zip(*columns.values(), strict=True), levels, samples, strict=True)
    ]


def _across(layers: Sequence[Layer | BiasLayer], name: str, batch: int) -> list[list[float]]:
    """An attribute of all layers, image by image."""
    return torch.stack([getattr(layer, name) for layer in layers], 1).tolist() if layers else [[]] * batch


def measured(maps: Float[Tensor, "batch height width"], threshold: float) -> dict[str, list[float | int | None]]:
    """Area, centroid and box of each map.

    The region is where the map is above `threshold` of its maximum; its area is a share of the map, 0 to 1, its box
    (left, top, right, bottom) the smallest around all of it. The centroid is the mean position, weighted by the map.
    In pixels of the map, whose own area reaches from 0 to width and height. None for the box and centroid of a blank
    map.
    """
    height, width = maps.shape[1:]
    highest = maps.amax((1, 2), keepdim=True)
    region = maps > threshold * highest
    columns, rows = region.any(1), region.any(2)
    mass = maps.sum((1, 2))
    across = (maps.sum(1) * (torch.arange(width, device=maps.device) + 0.5)).sum(1) / mass
    down = (maps.sum(2) * (torch.arange(height, device=maps.device) + 0.5)).sum(1) / mass
    blank = (highest[:, 0, 0] <= 0).tolist()
    places: dict[str, Tensor] = {
        "centroid_x": across,
        "centroid_y": down,
        "box_left": _first(columns),
        "box_top": _first(rows),
        "box_right": width - _first(columns.flip(1)),
        "box_bottom": height - _first(rows.flip(1)),
    }
    columns_of_places = {
        name: [None if empty else value for value, empty in zip(values.tolist(), blank, strict=True)]
        for name, values in places.items()
    }
    return {"area": region.double().mean((1, 2)).tolist(), **columns_of_places}


def _first(flags: Tensor) -> Int[Tensor, "batch"]:
    return flags.int().argmax(1)


def quantised(maps: Float[Tensor, "batch *space"]) -> UInt8[Tensor, "batch *space"]:
    """Maps in [0, 1] as whole numbers, 0 to LEVELS."""
    return (maps * LEVELS).round().to(torch.uint8)


def as_parquet(rows: Sequence[dict[str, Any]], about: Mapping[str, Any]) -> bytes:
    """Rows, and what they share, as the content of a Parquet file; the maps as greyscale PNG.

    PNG predicts each pixel from its neighbours, which halves what general compression leaves of a map; and every
    reader of images knows it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema().with_metadata({META: json.dumps(about).encode()})
    maps = (encode_image(Image.fromarray(row["map"]), "PNG", compress_level=1) for row in rows)
    stored = [{**row, "map": content} for row, content in zip(rows, maps, strict=True)]
    table = pa.Table.from_pylist(stored, columns)
    content = io.BytesIO()
    # Encoded images do not compress again.
    compression = {name: "none" if name in ("map", "thumbnail") else "zstd" for name in _leaves(table.schema)}
    pq.write_table(
        table,
        content,
        row_group_size=GROUP,
        compression=compression,
        use_dictionary=["image", "target_name", "prediction_name"],
    )
    return content.getvalue()


def _leaves(schema: pa.Schema) -> list[str]:
    """Parquet's paths to the values of each column."""
    import pyarrow as pa

    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def explanation_of(row: Mapping[str, Any], about: Mapping[str, Any], recipe: Recipe | None) -> Explanation:
    """The explanation of a row, of one image, on the CPU in float32.

    `about` names the layers. What is not stored is absent: `Layer.map`, `Layer.bias` and `BiasLayer.map` have no
    elements, shape (1, 0, 0).
    """
    levels = np.array(Image.open(io.BytesIO(row["map"]), formats=["PNG"]))
    absent = torch.zeros(1, 0, 0)
    score = torch.tensor([row["score"]])
    scores = zip(row["layer_weights"], *(row[f"layer_{name}s"] for name in _LAYER_SCORES), strict=True)
    layers = tuple(
        Layer(name, kind, absent, absent, *(torch.tensor([value]) for value in values))  # type: ignore[arg-type]
        for (name, kind), values in zip(about["layers"], scores, strict=True)
    )
    bias_layers = tuple(
        BiasLayer(name, absent, torch.tensor([weight]))
        for name, weight in zip(about["bias_layers"], row["bias_layer_weights"], strict=True)
    )
    seen = row.get("seen")  # 0.1.0 did not store it
    view = seen and SeenRegion((row["image_width"], row["image_height"]), tuple(seen))
    return Explanation(
        map=torch.from_numpy(levels)[None].float() / LEVELS,
        layers=layers,
        bias_layers=bias_layers,
        score=score,
        output=torch.tensor([row["output"]]),
        target=torch.tensor([row["target"]]),
        target_names=(str(row["target"]),),
        clamped=torch.tensor([row["guarded"]]),
        completeness=Completeness(
            score=score,
            input=torch.tensor([row["score_input"]]),
            bias=torch.tensor([row["score_bias"]]),
            activation=torch.tensor([row["layer_activation"]]),
            tap_bias=torch.tensor([row["layer_bias"]]),
            is_cut=torch.tensor(row["layer_is_cut"], dtype=torch.bool),
        ),
        recipe=recipe and replace(recipe, score=about.get("score", recipe.score)),
        streams=None,
        views=(view,) if view else None,
    )
