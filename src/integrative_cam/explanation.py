"""The result: one map per image, what every layer gave to it, and how the score splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._maps.completeness import Completeness
from ._maps.streams import Streams
from .errors import MissingExtraError
from .recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from matplotlib.figure import Figure
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

    @property
    def summary(self) -> dict[str, Any]:
        """The first sample's numbers, for JSON."""
        return {
            "name": self.name,
            "size": list(self.map.shape[1:]),
            "weight": float(self.weight[0]),
            "gradient_score": float(self.gradient_score[0]),
            "activation_score": float(self.activation_score[0]),
        }


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
        map: (batch, *space) of the input's size, in [0, 1]; its maximum is 1, or it is blank. Of several inputs, that
            of the first one that has a map.
        layers: every tap, in execution order, with its weight in `map`; none for a map that is not made of layers.
        bias_layers: with bias="layers", the biases that joined the fusion.
        score: (batch,), the explained score, such as a logit.
        output: what the model returned (its logits where it returned several things).
        target: (batch,) class indices, or None where the target is a callable.
        target_names: the class index or the callable's name, per image.
        guarded: (batch,), entries of the feature maps where the pole guard limited alpha.
        completeness: the score's parts, at the input and at every tap.
        recipe: the ingredients; None where the map is made in another way, such as Score-CAM's.
        streams: each input's map and share of the evidence; None for a network of one floating-point input.

    Its tensors are detached; with `differentiable=True` all those with floats keep their graphs.
    """

    map: Float[Tensor, "batch *space"]
    layers: tuple[Layer, ...]
    bias_layers: tuple[BiasLayer, ...]
    score: Float[Tensor, "batch"]
    output: Tensor
    target: Int[Tensor, "batch"] | None
    target_names: tuple[str, ...]
    clamped: Int[Tensor, "batch"]
    completeness: Completeness
    recipe: Recipe | None
    streams: Streams | None

    @property
    def weights(self) -> Float[Tensor, "batch tap"]:
        """Each tap's weight; rows sum to 1. With bias layers, the taps share 1 - recipe.bias_share like this."""
        return torch.stack([layer.weight for layer in self.layers], 1) if self.layers else self.score[:, None][:, :0]

    def plot(
        self, images: Tensor | Image | Sequence[Image] | None = None, sample: int = 0, raw: bool = False
    ) -> Figure:
        """The image beside its map; without images the bare map; see `render.plot`.

        Args:
            images: one per map, each of any size, or the input tensor (batch, channel, *space).
            sample: which of them to draw.
            raw: the map without the smoothing for showing.

        Raises:
            MissingExtraError: matplotlib or Pillow is not installed (extra `render`).
        """
        from .render import plot
        from .render._drawing import one_of_batch

        return plot(self, one_of_batch(images, len(self.map), sample), sample=sample, raw=raw)

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

    def _repr_html_(self) -> str:
        """What a notebook shows: maps, scores, layers; the text alone where pictures cannot be drawn."""
        try:
            from .render._html import summary
        except MissingExtraError as error:
            return f"<pre>{escape(repr(self))}\n{escape(str(error))}</pre>"
        return summary(self)

    def __repr__(self) -> str:
        return (
            f"Explanation({len(self.map)} image(s), map {'x'.join(map(str, self.map.shape[1:]))}, "
            f"target {', '.join(self.target_names)}, {len(self.layers)} layers)"
        )
