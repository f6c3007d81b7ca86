"""The pictures of the page: small for the screen, whole for keeping."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

from ..explanation import Explanation
from ..render import coloured, overlay, presented, presented_layer
from ..render.comparison import side_by_side

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .visit import Seen

SIDE = 320
"""Pixels of a map's longer side as it is sent to the browser, which stretches it over the photograph."""


def map_of(explanation: Explanation, layer: int | None, raw: bool) -> Float[Tensor, "height width"]:
    """The fused map, or a layer's, which is signed, as it is to be shown."""
    if layer is None:
        return presented(explanation, raw=raw)[0]
    return presented_layer(explanation, layer, raw=raw)[0]


def map_uri(saliency: Float[Tensor, "height width"], seen: Seen, signed: bool) -> str:
    """The colours of a map alone, transparent where there is no evidence, as a data URI."""
    height, width = seen.tensor.shape[2:]
    scale = min(1, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _uri(coloured(saliency, size, signed=signed), quality=80, method=0, alpha_quality=80)


def photograph_uri(shown: Image.Image) -> str:
    """The photograph for the screen, as a data URI."""
    return _uri(shown, quality=85, method=2)


def kept_picture(
    maps: dict[str, Float[Tensor, "height width"]], shown: Image.Image, seen: Seen, signed: list[bool], opacity: float
) -> bytes:
    """PNG: one map over the photograph, or several beside it under their names, as opaque as on the page, 0 to 1."""
    photograph = shown.convert("RGB")
    drawn = {
        name: Image.blend(photograph, overlay(saliency, shown, seen.region, against), opacity)
        for (name, saliency), against in zip(maps.items(), signed, strict=True)
    }
    if len(drawn) == 1:
        return png(*drawn.values())
    stored = io.BytesIO()
    figure = side_by_side({"photograph": photograph, **drawn})
    figure.savefig(stored, format="png", dpi=150, metadata={"Software": None})
    return stored.getvalue()


def png(picture: Image.Image) -> bytes:
    """The picture as a file."""
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return stored.getvalue()


def _uri(picture: Image.Image, **options: int) -> str:
    stored = io.BytesIO()
    picture.save(stored, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"
