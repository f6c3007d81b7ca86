"""Pictures of maps: small ones for the screen, a full one for download."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from ..render import coloured, overlay
from ..render._comparison import side_by_side
from ..render._sheet import DPI, png

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ._session import Seen

SIDE = 320
"""Longer side of a map in pixels as it is sent to the browser, which stretches it over the photograph."""


def map_uri(saliency: Float[Tensor, "height width"], seen: Seen, signed: bool) -> str:
    """The colours of a map alone, transparent where there is no evidence, as a data URI."""
    height, width = seen.tensor.shape[2:]
    scale = min(1, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _uri(coloured(saliency, size, signed=signed), quality=80, method=0, alpha_quality=80)


def photograph_uri(shown: Image.Image) -> str:
    """The photograph for the screen, as a data URI."""
    return _uri(shown, quality=85, method=2)


def picture_of_maps(
    maps: Sequence[tuple[str, Float[Tensor, "height width"], bool]],
    photograph: Image.Image,
    region: tuple[float, float, float, float],
    opacity: float,
) -> bytes:
    """PNG of one map over the photograph, or of several beside it under their titles.

    Args:
        maps: title, map, and whether the map is signed.
        photograph: as it is shown.
        region: of the photograph, which the maps cover.
        opacity: of the maps, 0 to 1, as on the page.
    """
    drawn = [
        (title, Image.blend(photograph, overlay(saliency, photograph, region, signed), opacity))
        for title, saliency, signed in maps
    ]
    if len(drawn) > 1:
        return png(side_by_side([("photograph", photograph), *drawn]), DPI)
    stored = io.BytesIO()
    drawn[0][1].save(stored, "PNG")
    return stored.getvalue()


def _uri(picture: Image.Image, **options: int) -> str:
    stored = io.BytesIO()
    picture.save(stored, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"
