"""The result: one map per image, what every layer gave to it, and how the score splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .bias import Completeness
from .recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from PIL.Image import Image


@dataclass(frozen=True)
class Layer:
    """One tap's part. Scores and weights are per sample; see `weighting.LayerScores`.

    `map` is signed, raw (nothing scaled) and at the tap's own resolution; it includes `bias`, which is not
    zero for the recipes "complete" and "residual".
    """

    name: str
    kind: str
    map: Float[Tensor, "batch *space"]
    bias: Float[Tensor, "batch *space"]
    weight: Float[Tensor, "batch"]
    gradient_score: Float[Tensor, "batch"]
    activation_score: Float[Tensor, "batch"]
    joint_score: Float[Tensor, "batch"]


@dataclass(frozen=True)
class BiasLayer:
    """A bias site that joined the fusion (bias="layers"): its signed map and its weight in the fusion."""

    name: str
    map: Float[Tensor, "batch *space"]
    weight: Float[Tensor, "batch"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why each image of a batch got its score.

    Attributes:
        map: (batch, *space) of the input's size, in [0, 1]; its maximum is 1, or it is blank.
        layers: every tap, in execution order; none for a map that is not made of layers.
        bias_layers: with bias="layers", the biases that joined the fusion.
        score: (batch,), the explained score, such as a logit.
        output: what the model returned (its logits where it returned several things).
        target: (batch,) class indices, or None where the target is a callable.
        target_names: the class index or the callable's name, per image.
        guarded: (batch,), entries of the feature maps where the pole guard limited alpha.
        completeness: the score's parts, at the input and at every tap.
        recipe: the ingredients; None where the map is made in another way, such as Score-CAM's.
    """

    map: Float[Tensor, "batch *space"]
    layers: tuple[Layer, ...]
    bias_layers: tuple[BiasLayer, ...]
    score: Float[Tensor, "batch"]
    output: Tensor
    target: Int[Tensor, "batch"] | None
    target_names: tuple[str, ...]
    guarded: Int[Tensor, "batch"]
    completeness: Completeness
    recipe: Recipe | None

    @property
    def weights(self) -> Float[Tensor, "batch tap"]:
        """Each tap's weight; rows sum to 1. With bias layers, the taps share 1 - recipe.bias_share like this."""
        return torch.stack([layer.weight for layer in self.layers], 1) if self.layers else self.score[:, None][:, :0]

    def overlay(self, images: Tensor | Image | Sequence[Image]) -> list[Image]:
        """The maps over the images, one picture each; see `render.overlay`."""
        from .render import overlays

        return overlays(self.map, images)

    def save(self, folder: str | Path) -> Path:
        """Write the explanation to `folder`: tensors as safetensors, then the manifest, then all into place.

        An earlier explanation there is replaced; any other content is left alone, with an error.
        """
        from .storage import save

        return save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> Explanation:
        """Read what `save` wrote, to the CPU. Runs no code from the files."""
        from .storage import load

        return load(Path(folder))

    def __repr__(self) -> str:
        return (
            f"Explanation({len(self.map)} image(s), map {'x'.join(map(str, self.map.shape[1:]))}, "
            f"target {', '.join(self.target_names)}, {len(self.layers)} layers)"
        )
