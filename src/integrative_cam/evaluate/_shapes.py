"""Shapes of tensors that many metrics share, for type checkers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    Images = Float[Tensor, "batch channel *space"]
    Pictures = Float[Tensor, "batch channel height width"]
    Maps = Float[Tensor, "batch *space"]
    FlatMaps = Float[Tensor, "batch height width"]
    Masks = Bool[Tensor, "batch height width"]
    PerImage = Float[Tensor, "batch"]
