"""The result: one map per image, what every layer gave to it, and how the score splits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._deprecation import warn_deprecated
from ._maps.completeness import Completeness
from ._maps.fusion import by_magnitude, fuse, signed_sum
from ._maps.streams import Streams
from ._maps.weighting import shares
from ._plan.inputs import Inputs, floating
from ._plan.placement import Placement
from .errors import InputError, MissingExtraError
from .recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from .models import View

_VIEWS = "_seen_regions"
"""The attribute of a tensor that says which parts of photographs it shows."""
_PER_NETWORK = ("is_cut", "reached")
"""Tensors that have no batch axis: they say something about the network, not about an image."""


@dataclass(frozen=True)
class SeenRegion:
    """The rectangle of a photograph that a network saw, scaled to its input.

    Attributes:
        size: (width, height) of the photograph in pixels.
        box: (left, top, right, bottom) in its pixels, not rounded; beyond its borders where the input was padded.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]

    def scaled_to(self, size: tuple[int, int]) -> SeenRegion:
        """The same rectangle of the photograph scaled to another (width, height)."""
        across, down = size[0] / self.size[0], size[1] / self.size[1]
        left, top, right, bottom = self.box
        return SeenRegion(size, (left * across, top * down, right * across, bottom * down))

    def to_input(self, box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """A box in pixels of the photograph, in those of a network's input, or map, of `size` (width, height)."""
        (left, top, right, bottom), (width, height) = self.box, size
        across, down = width / (right - left), height / (bottom - top)
        return (box[0] - left) * across, (box[1] - top) * down, (box[2] - left) * across, (box[3] - top) * down

    def to_photograph(self, box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """A box in pixels of the network's input of `size` (width, height), in those of the photograph."""
        (left, top, right, bottom), (width, height) = self.box, size
        across, down = (right - left) / width, (bottom - top) / height
        return left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down


def remember_views(images: Tensor, views: Sequence[SeenRegion]) -> None:
    """Note at a tensor (batch, channel, height, width) what it shows; tensors computed from it do not keep that."""
    # Plain numbers, so that torch.save and torch.load(weights_only=True) still work on the tensor.
    setattr(images, _VIEWS, tuple((view.size, view.box) for view in views))


@dataclass(frozen=True)
class Layer:
    """One tap's part. Scores and weights are per sample; see `LayerScores`.

    `map` is signed, not scaled, and at the tap's own resolution; it includes `bias`, which is zero except for the
    recipes with bias="complete" and bias="residual". `placement` says where it lies on the input, None where it
    covers it evenly.
    """

    name: str
    kind: str
    map: Float[Tensor, "batch *space"]
    bias: Float[Tensor, "batch *space"]
    weight: Float[Tensor, "batch"]
    gradient_score: Float[Tensor, "batch"]
    activation_score: Float[Tensor, "batch"]
    joint_score: Float[Tensor, "batch"]
    placement: Placement | None = None

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
    """A bias site that joined the fusion (bias="layers"): its signed map, its weight in the fusion, and its place."""

    name: str
    map: Float[Tensor, "batch *space"]
    weight: Float[Tensor, "batch"]
    placement: Placement | None = None


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why each image of a batch got its score.

    It is a sequence of its images: `len(explanation)`, `explanation[0]`, `explanation[2:5]` and a loop over it give
    explanations of these images, each with its batch axis.

    Attributes:
        map: (batch, *space) of the input's size, in [0, 1]; its maximum is 1, or it is blank. Of several inputs, that
            of the first one that has a map.
        layers: every tap, in execution order, with its weight in `map`; none for a map that is not made of layers.
        bias_layers: with bias="layers", the biases that joined the fusion.
        score: (batch,), the explained score: of a class, what `recipe.score` says.
        output: what the model returned (its logits where it returned several things).
        target: (batch,) class indices, or None where the target is a callable.
        target_names: the class index or the callable's name, per image.
        clamped: (batch,), the number of entries of the feature maps whose alpha had to be limited: its denominator
            came near zero or below.
        completeness: the score's parts, at the input and at every tap.
        recipe: the ingredients; None where the map is made in another way, such as Score-CAM's.
        streams: each input's map and share of the evidence; None for a network of one floating-point input.
        views: for each image, the part of its photograph that the network saw, so that pictures lie where it looked;
            None where that is not known. Tensors that `Preprocessing` made bring it along.

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
    views: tuple[SeenRegion, ...] | None = None

    @property
    def weights(self) -> Float[Tensor, "batch tap"]:
        """Each tap's weight; rows sum to 1. With bias layers, the taps share 1 - recipe.bias_share like this."""
        return torch.stack([layer.weight for layer in self.layers], 1) if self.layers else self.score[:, None][:, :0]

    @property
    def guarded(self) -> Int[Tensor, "batch"]:
        """The old name of `clamped`."""
        warn_deprecated("Explanation.guarded is now clamped; the old name goes with the next release.")
        return self.clamped

    @property
    def signed_map(self) -> Float[Tensor, "batch *space"]:
        """The map before it was cut at zero, divided by its largest magnitude: in [-1, 1], evidence against below 0.

        Cut at zero, divided by its maximum and raised to `recipe.gamma` it is `map`. Only recipes with signed=True and
        fusion="sum" keep evidence against the target until the end; for all others this is `map` itself.
        """
        if self.recipe is None or not self.recipe.signed or self.recipe.fusion != "sum":
            return self.map
        maps, weights, placements = self._fused_parts()
        return signed_sum(maps, weights, tuple(self.map.shape[1:]), placements)

    def fuse(
        self,
        layers: Sequence[Layer | BiasLayer] | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch *space"]:
        """Fuse the map again as `recipe` does: of some of its layers, or of all after a change.

        >>> explanation.fuse(explanation.layers[-3:])        # the last three layers, with their weights
        >>> explanation.fuse(change=smoothed)                # all, each layer's map smoothed before

        Args:
            layers: some of this explanation's `layers` and `bias_layers`; None takes all that `map` is made of.
            change: what is done to each layer's signed map, (batch, *space), before the fusion.

        Returns:
            (batch, *space) in [0, 1]. A map that is not made of layers, or whose layers' maps were not stored, is
            changed itself and divided by its maximum.

        Raises:
            InputError: no layers, or layers that `map` is not made of.
        """
        # Those of a run do not hold their layers' maps.
        if layers is None and (self.recipe is None or not any(layer.map.numel() for layer in self.layers)):
            return self.map if change is None else by_magnitude(change(self.map))
        maps, weights, placements = self._fused_parts(layers)
        if change is not None:
            maps = [change(layer_map) for layer_map in maps]
        recipe = self.recipe or Recipe()
        return fuse(maps, weights, tuple(self.map.shape[1:]), recipe.fusion, recipe.gamma, recipe.signed, placements)

    def _fused_parts(
        self, chosen: Sequence[Layer | BiasLayer] | None = None
    ) -> tuple[list[Tensor], Float[Tensor, "batch layer"], list[Placement | None]]:
        """The maps that `map` is fused of, or the chosen ones among them, their weights, which sum to 1, and places."""
        parts: list[tuple[Layer | BiasLayer, Tensor]] = []
        if self.recipe is not None:
            tap_share = 1 - self.recipe.bias_share if self.bias_layers else 1.0
            parts += [(layer, layer.weight * tap_share) for layer in self._mapped_layers()]
            parts += [(layer, layer.weight) for layer in self.bias_layers]
        if chosen is not None:
            wanted = set(map(id, chosen))
            parts = [part for part in parts if id(part[0]) in wanted]
            if not parts or len(parts) < len(wanted):
                raise InputError(
                    "layers must be some of this explanation's layers and bias_layers, such as explanation.layers[-3:]"
                    f", but {len(wanted) - len(parts)} of {len(wanted)} are no part of its map."
                )
        weights = torch.stack([weight for _, weight in parts], 1)
        weights = weights if chosen is None else shares(weights)
        return [layer.map for layer, _ in parts], weights, [layer.placement for layer, _ in parts]

    def _mapped_layers(self) -> list[Layer]:
        """The taps that `map` is made of: of several inputs, those that depend on the one that it is the map of."""
        if self.streams is None:
            return list(self.layers)
        reached = self.streams.reached[:, mapped_input(self)].tolist()
        return [
            layer
            for layer, depends in zip(self.layers, reached, strict=True)
            if depends and layer.map.ndim == self.map.ndim
        ]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.map)

    def __getitem__(self, index: int | slice) -> Explanation:
        """The explanation of one image, or of a slice of them; the batch axis stays.

        Raises:
            IndexError: there is no such image.
            TypeError: neither an integer nor a slice.
        """
        if not isinstance(index, slice):
            try:
                place = operator.index(index)
            except TypeError:
                raise TypeError(
                    f"an explanation's images are chosen by an integer or a slice, but got {index!r}."
                ) from None
            if not -len(self) <= place < len(self):
                raise IndexError(f"image {place} is out of range: the explanation has {len(self)} images.")
            place %= len(self)
            index = slice(place, place + 1)
        part: Explanation = _with_tensors(self, lambda name, tensor: tensor if name in _PER_NETWORK else tensor[index])
        return replace(part, target_names=self.target_names[index], views=self.views and self.views[index])

    def __iter__(self) -> Iterator[Explanation]:
        """One explanation per image."""
        return (self[place] for place in range(len(self)))

    def to(self, device: str | torch.device) -> Explanation:
        """The same explanation with all of its tensors on a device, such as "cpu"."""
        moved: Explanation = _with_tensors(self, lambda _, tensor: tensor.to(device))
        return moved

    def plot(
        self,
        images: Tensor | Image | View | Sequence[Image | View] | None = None,
        sample: int = 0,
        raw: bool | None = None,
    ) -> Figure:
        """The image beside its map, where the network looked; without images the bare map; see `render.plot`.

        Args:
            images: one per map: photographs, the views that `Preprocessing` made of them, or the input tensor (batch,
                channel, *space).
            sample: which of them to draw.
            raw: without effect, and deprecated.

        Raises:
            MissingExtraError: matplotlib or Pillow is not installed (extra `render`).
        """
        from .render import plot
        from .render._drawing import check_sample
        from .render._placement import images_of

        check_sample(self, sample)
        return plot(self, None if images is None else images_of(images, len(self))[sample], sample=sample, raw=raw)

    def overlay(self, images: Tensor | Image | View | Sequence[Image | View]) -> list[Image]:
        """The maps over the images, where the network looked, one picture each; `images` as for `plot`.

        Raises:
            InputError: not one image per map, or an image of another shape than what the network saw of it.
        """
        from .render import overlay
        from .render._placement import images_of, placed

        pictures = (placed(self, sample, image) for sample, image in enumerate(images_of(images, len(self))))
        return [overlay(saliency, *picture) for saliency, picture in zip(self.map, pictures, strict=True)]

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
            from .render._notebook import summary
        except MissingExtraError as error:
            return f"<pre>{escape(repr(self))}\n{escape(str(error))}</pre>"
        return summary(self)

    def __repr__(self) -> str:
        return (
            f"Explanation({len(self.map)} image(s), map {'x'.join(map(str, self.map.shape[1:]))}, "
            f"target {', '.join(self.target_names)}, {len(self.layers)} layers)"
        )


def mapped_input(explanation: Explanation) -> int:
    """Which of the inputs `Explanation.map` is of."""
    maps = (explanation.map,) if explanation.streams is None else explanation.streams.maps
    return next(index for index, stream_map in enumerate(maps) if stream_map is not None)


def with_views(explanation: Explanation, images: Inputs) -> Explanation:
    """The explanation with the views that its inputs bring along, if they do; see `Explanation.views`."""
    given = floating(images)[mapped_input(explanation)]
    noted = getattr(given, _VIEWS, ())
    fits = len(noted) == len(explanation) and given.shape[2:] == explanation.map.shape[1:]
    return replace(explanation, views=tuple(SeenRegion(*view) for view in noted)) if fits else explanation


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dataclasses and tuples, each with its path, such as "layers.0.map"."""
    if isinstance(value, Tensor):
        yield name, value
        return
    parts: Iterable[tuple[object, Any]] = enumerate(value) if isinstance(value, tuple) else ()
    if _holds_tensors(value):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
    for part, inner in parts:
        yield from tensors_in(inner, f"{name}.{part}" if name else str(part))


def _with_tensors(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    """The same with `change(name of the field, tensor)` for every tensor in nested dataclasses and tuples."""
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, tuple):
        return tuple(_with_tensors(inner, change, name) for inner in value)
    if _holds_tensors(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{part: _with_tensors(inner, change, part) for part, inner in parts.items()})
    return value


def _holds_tensors(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type | Recipe)
