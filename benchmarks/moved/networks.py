"""Networks composed at random from a seed, with bright spots on dark images, so that the true place is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .draft import Draft, UnfitError, averaging
from .judge import Truth
from .moves import FEATURE_MOVES, IMAGE_MOVES, activation, border, convolution, largest_reach, threshold

SIZES = {1: (84, 128), 2: (46, 64), 3: (26, 32)}
LARGEST_REACH = {1: 16, 2: 9, 3: 5}
"""How far, in pixels, the last layer may look."""
LARGEST_SCALE = {1: 4.0, 2: 2.7, 3: 2.0}
ATTEMPTS = 400
CLASSES = 3


@dataclass(frozen=True)
class Composition:
    """A network, its inputs and where the evidence lies on each.

    `channel_axis`: of the inputs, where it is no space; `activations`: how many nonlinearities are in the network.
    """

    seed: int
    recipe: str
    kinds: tuple[str, ...]
    model: nn.Module
    inputs: tuple[Tensor, ...]
    truths: tuple[Truth, ...]
    target: int
    channel_axis: int | None
    activations: int

    @property
    def has_places(self) -> bool:
        """Whether each position looks at one place, whatever the images."""
        return not any(word in kind for kind in self.kinds for word in ("two places", "place depends"))


def compose(seed: int, moves: int | None = None) -> Composition:
    """The composition of a seed, with so many moves besides the reference network's layers; default: 0 to 4."""
    plan = _planned(random.Random(seed), moves)
    for attempt in range(ATTEMPTS):
        try:
            return _composed(seed, random.Random(f"{seed} {attempt}"), plan)
        except UnfitError:
            continue
    raise RuntimeError(f"no composition fits seed {seed}")


# The form of the input ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a network takes its images: a view of (batch, channel, *space) and back; `channel_axis`: where it is."""

    name: str
    dims: tuple[int, ...]
    given: Callable[[Tensor], Tensor]
    taken: Callable[[Tensor], Tensor]
    channel_axis: int | None
    channels: tuple[int, ...] = (1, 3)


EEG = Form("(batch, electrode, time)", (1,), lambda x: x, lambda x: x, None, (6,))
FORMS = (
    Form("channels first", (1, 2, 3), lambda x: x, lambda x: x, 1),
    Form("channels last", (2, 3), lambda x: x.movedim(1, -1), lambda x: x.movedim(-1, 1), -1),
    Form("(batch, length, feature)", (1,), lambda x: x.movedim(1, -1), lambda x: x.movedim(-1, 1), -1, (3, 5)),
    Form("no channel axis", (2,), lambda x: x[:, 0], lambda x: x[:, None], None, (1,)),
    EEG,
)


# What is folded into the batch ----------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The body on the images as they are taken."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.taken = body, taken

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        return self.body(self.taken(x))


class Views(nn.Module):
    """The body on several views of each image, in a loop or as one batch; logits averaged, added, or their maximum."""

    def __init__(
        self,
        body: nn.Module,
        taken: Callable[[Tensor], Tensor],
        views: Sequence[Callable[[Tensor], Tensor]],
        how: str,
        merge: str,
    ) -> None:
        super().__init__()
        self.body, self.taken, self.views, self.how, self.merge = body, taken, views, how, merge

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        x = self.taken(x)
        views = [view(x) for view in self.views]
        if self.how == "loop":
            logits = torch.stack([self.body(view) for view in views])
        elif self.how == "cat":
            logits = torch.stack(self.body(torch.cat(views)).chunk(len(views)))
        else:
            logits = self.body(torch.stack(views, 1).flatten(0, 1)).unflatten(0, (-1, len(views))).movedim(1, 0)
        return merged(logits, 0, self.merge)


def merged(logits: Tensor, axis: int, how: str) -> Tensor:
    """Views, frames or instances brought together."""
    if how == "attention":
        return (logits * logits.softmax(axis)).sum(axis)
    return logits.amax(axis) if how == "maximum" else getattr(logits, how)(axis)


class Frames(nn.Module):
    """The body on each frame, instance or slice of (batch, frame, ...)."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor], how: str, picked: str, merge: str) -> None:
        super().__init__()
        self.body, self.taken, self.how, self.picked, self.merge = body, taken, how, picked, merge

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        x = x[:, ::2] if self.picked == "every second" else x.flip(1) if self.picked == "reversed" else x
        batch, frames = x.shape[:2]
        if self.how == "flatten":
            logits = self.body(self.taken(x.flatten(0, 1))).unflatten(0, (batch, frames))
        elif self.how == "reshape":
            logits = self.body(self.taken(x.reshape(-1, *x.shape[2:]))).reshape(batch, frames, -1)
        elif self.how == "permute, reshape":  # (batch, ..., frame) in between, as of clips with the frames behind
            behind = x.movedim(1, -1)
            images = behind.permute(0, -1, *range(1, behind.ndim - 1)).reshape(-1, *x.shape[2:])
            logits = self.body(self.taken(images)).reshape(batch, frames, -1)
        elif self.how == "time first":
            logits = self.body(self.taken(x.transpose(0, 1).flatten(0, 1))).reshape(frames, batch, -1).transpose(0, 1)
        elif self.how == "loop":
            logits = torch.stack([self.body(self.taken(frame)) for frame in x.unbind(1)], 1)
        else:
            logits = torch.stack([self.body(self.taken(x[:, at])) for at in range(frames)], 1)
        return merged(logits, 1, self.merge)


class Batches(nn.Module):
    """The body on the batch in another order, in parts or repeated."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor], how: str) -> None:
        super().__init__()
        self.body, self.taken, self.how = body, taken, how

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        x = self.taken(x)
        if self.how == "one by one":
            return torch.cat([self.body(each) for each in x.split(1)])
        if self.how == "batch reversed":
            return self.body(x.flip(0)).flip(0)
        if self.how == "batch twice":
            return self.body(x.repeat(2, *[1] * (x.ndim - 1))).unflatten(0, (2, -1)).sum(0)
        return self.body(x.repeat_interleave(2, 0)).unflatten(0, (-1, 2)).sum(1)


class Regions(nn.Module):
    """The body on regions of each image, two boxes of each, folded into the batch."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor], side: int, merge: str) -> None:
        super().__init__()
        self.body, self.taken, self.side, self.merge = body, taken, side, merge

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        from torchvision.ops import roi_align

        x = self.taken(x)
        height, width = x.shape[2:]
        boxes = []
        for _ in range(len(x)):
            by = 4.0
            boxes.append(torch.tensor([[0, by, width - 10, height - 10 + by], [10, 0, width, height - 10 - by]]))
        regions = roi_align(x, boxes, (self.side, self.side), aligned=True)
        return merged(self.body(regions).unflatten(0, (-1, 2)), 1, self.merge)


class Averaged(nn.Module):
    """Features of an image and of its mirror image, flipped back and added before the head."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor], axis: int) -> None:
        super().__init__()
        self.body, self.taken, self.axis = body, taken, axis

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        assert isinstance(self.body, nn.Sequential)
        x = self.taken(x)
        *steps, head = self.body
        first, second = x, x.flip(self.axis)
        for step in steps:
            first, second = step(first), step(second)
        return head(first + second.flip(self.axis))


class Siamese(nn.Module):
    """One body for two inputs, as one batch or by two calls."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor], how: str) -> None:
        super().__init__()
        self.body, self.taken, self.how = body, taken, how

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Logits (batch, class)."""
        a, b = self.taken(a), self.taken(b)
        if self.how == "two calls":
            return self.body(a) + self.body(b)
        if self.how == "cat":
            first, second = self.body(torch.cat([a, b])).chunk(2)
        else:
            first, second = self.body(torch.stack([a, b], 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return first + second


class Tiles(nn.Module):
    """The body on tiles of each image, folded into the batch or in a loop."""

    def __init__(self, body: nn.Module, taken: Callable[[Tensor], Tensor], how: str, merge: str) -> None:
        super().__init__()
        self.body, self.taken, self.how, self.merge = body, taken, how, merge

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, class)."""
        x = self.taken(x)
        half = x.shape[-1] // 2
        if self.how == "loop":
            logits = torch.stack([self.body(tile) for tile in x.split(half, -1)], 1)
        elif self.how == "cat":
            logits = torch.stack(self.body(torch.cat(x.chunk(2, -1))).chunk(2), 1)
        elif self.how == "unfold":
            tiles = x.unfold(-1, half, half).movedim(-2, 1)
            logits = self.body(tiles.flatten(0, 1)).unflatten(0, (-1, 2))
        else:
            tiles = x.unflatten(-1, (2, half)).movedim(-2, 1)
            logits = self.body(tiles.reshape(-1, *tiles.shape[2:])).reshape(len(x), 2, -1)
        return merged(logits, 1, self.merge)


# The head -------------------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Positions brought together in one of many ways, then a linear classifier."""

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        choices = ["mean", "mean", "adaptive pool", "sum", "flatten", "maximum", "attention", "class token", "tokens"]
        choices += ["channels last", "layers on tokens", "layers channels last"]
        self.how = draft.draw.choice(choices)
        channels = draft.channels
        inputs = draft.probe[0].numel() if self.how == "flatten" else channels
        self.classifier = draft.linear(inputs, CLASSES)
        self.query = nn.Parameter(draft.positive(channels))
        self.layer = draft.linear(channels, channels) if "layers" in self.how else nn.Identity()
        draft.activations += "layers" in self.how
        self.gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to logits."""
        if self.how == "mean":
            x = x.mean(tuple(range(2, x.ndim)))
        elif self.how == "adaptive pool":
            x = getattr(nn.functional, f"adaptive_avg_pool{x.ndim - 2}d")(x, 1).flatten(1)
        elif self.how == "sum":
            x = x.flatten(2).sum(-1)
        elif self.how == "flatten":
            x = x.flatten(1)
        elif self.how == "maximum":
            x = x.flatten(2).amax(-1)
        elif self.how == "attention":
            flat = x.flatten(2)
            x = (flat * torch.einsum("c,bcl->bl", self.query, flat).softmax(-1)[:, None]).sum(-1)
        elif self.how == "class token":
            tokens = x.flatten(2).transpose(1, 2)
            tokens = torch.cat([self.query.expand(len(x), 1, -1), tokens], 1)
            x = nn.functional.scaled_dot_product_attention(tokens[:, :1], tokens[:, 1:], tokens[:, 1:])[:, 0]
        elif self.how == "tokens":
            x = x.flatten(2).transpose(1, 2).mean(1)
        elif self.how == "layers on tokens":
            x = self.layer(x.flatten(2).transpose(1, 2)).relu().mean(1)
        elif self.how == "layers channels last":
            x = self.layer(x.movedim(1, -1)).relu().flatten(1, -2).mean(1)
        else:
            x = x.movedim(1, -1).flatten(1, -2).mean(1)
        return self.gain * self.classifier(x)


class EegStem(nn.Module):
    """A convolution over time, then one over all electrodes, on (batch, 1, time, electrode) or these transposed."""

    def __init__(self, draft: Draft, electrodes: int) -> None:
        super().__init__()
        self.time_first, self.early, self.late = (draft.draw.random() < share for share in (0.7, 0.5, 0.5))
        self.time = nn.Conv2d(1, 4, self._of(5, 1), padding=self._of(2, 0), bias=False)
        self.electrodes = nn.Conv2d(4, 4, self._of(1, electrodes), bias=False)
        self.last = nn.Conv2d(4, 4, self._of(3, 1), padding=self._of(1, 0), bias=False)
        for layer in (self.time, self.electrodes, self.last):
            averaging(layer, draft)

    @property
    def activations(self) -> int:
        """How many nonlinearities."""
        return 1 + self.early + self.late

    def _of(self, time: int, electrode: int) -> tuple[int, int]:
        return (time, electrode) if self.time_first else (electrode, time)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, electrode, time) to (batch, 4, time)."""
        x = x[:, None].transpose(2, 3) if self.time_first else x[:, None]
        x = self.time(x)
        if self.early:
            x = x.relu()
        x = self.electrodes(x).relu()
        if self.late:
            x = self.last(x).relu()
        return x.squeeze(3 if self.time_first else 2)


FOLDS = ("views", "views", "views", "frames", "frames", "siamese", "tiles", "batches", "regions", "averaged")


# Compositions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outline:
    """What is drawn once for a seed, however often the steps are drawn until all fit."""

    dims: int
    batch: int
    form: Form
    fold: str
    of_image: int
    of_features: int


def _planned(draw: random.Random, moves: int | None) -> Outline:
    dims = draw.choice([1, 2, 2, 2, 2, 3])
    batch = draw.choice([1, 2, 3, 4])
    moves = draw.choice([0, 1, 1, 2, 2, 3, 4]) if moves is None else moves
    form = draw.choice([each for each in FORMS if dims in each.dims]) if moves and draw.random() < 0.3 else FORMS[0]
    moves -= form is not FORMS[0]
    fold = "plain"
    if moves and form is not EEG and draw.random() < 0.4:
        fold = draw.choice([each for each in FOLDS if dims == 2 or each != "regions"])
        moves -= 1
    of_image = 0 if form is EEG else sum(draw.random() < 0.5 for _ in range(moves))
    return Outline(dims, batch, form, fold, of_image, moves - of_image)


def _composed(seed: int, draw: random.Random, outline: Outline) -> Composition:
    dims, form = outline.dims, outline.form
    size = tuple(2 * draw.randint(SIZES[dims][0] // 2, SIZES[dims][1] // 2) for _ in range(dims))
    channels = draw.choice(form.channels)
    fold = _fold(draw, outline.fold, form, size)

    draft = Draft(draw, channels, fold.size)
    draft.scale = fold.factor
    draft.reach = fold.factor - 1
    for _ in range(outline.of_image):
        _step(draft, IMAGE_MOVES, "image ")
    background = 0.0
    if form is EEG:
        stem = EegStem(draft, channels)
        draft.activations += stem.activations
        draft.add("EEG stem", "electrodes and time", stem, reach=2 + stem.late)
    elif draft.is_local and draw.random() < 0.3:
        background = 0.05
        threshold(draft, 2 * background)
    else:
        convolution(draft)
    for _ in range(outline.of_features):
        _step(draft, FEATURE_MOVES, "features ")
        if draft.is_local and draw.random() < 0.6:
            convolution(draft)
        elif draw.random() < 0.6:
            activation(draft)
    if draft.kinds[-1].startswith(("convolution", "strided", "unpadded")) or draw.random() < 0.3:
        activation(draft)
    draft.require(draft.reach <= LARGEST_REACH[dims] and draft.scale <= LARGEST_SCALE[dims])
    draft.require(min(draft.size) >= 4)
    head = Head(draft)
    body = nn.Sequential(*draft.steps, head)

    model = fold.make(body).eval()
    names = [f"{dims}-D {size}, batch {outline.batch}, {channels} channels", form.name, *fold.names, *draft.names]
    kinds = [f"input {form.name}", *(f"fold {name}" for name in fold.names[:1]), *draft.kinds, f"head {head.how}"]

    axis = None if form.channel_axis is None else form.channel_axis + (bool(fold.frames) and form.channel_axis > 0)
    shape = (outline.batch, channels, *size)
    inputs, evidence = _planted(draw, draft, model, head, form, shape, background, fold, axis)
    zone = largest_reach(draft)
    shift = 1 + 0.5 * draft.scale + draft.slack
    radius, offset = (zone,) * dims, (shift,) * dims
    if fold.frames:
        radius, offset = (0.0, *radius), (0.25, *offset)
    if form is EEG:
        radius, offset = (float("inf"), *radius), (float("inf"), *offset)
    truths = tuple(Truth(each, radius, offset) for each in evidence)
    recipe = " > ".join([*names, f"head {head.how}"])
    kinds = list(dict.fromkeys(kinds))
    return Composition(
        seed, recipe, tuple(kinds), model, inputs, truths, draw.randrange(CLASSES), axis, draft.activations
    )


def _step(draft: Draft, moves: Sequence[Callable[[Draft], None]], where: str) -> None:
    before = len(draft.steps)
    for _ in range(20):
        try:
            draft.draw.choice(moves)(draft)
        except UnfitError:
            if len(draft.steps) != before:
                raise
            continue
        draft.kinds[before] = f"{where}{draft.kinds[before]}"
        return
    raise UnfitError


@dataclass(frozen=True)
class Fold:
    """How a network calls its body: on views, frames, tiles or several inputs.

    `size`: of what the body gets; `factor`: pixels of the image per pixel of that; `frames`: the length of the frames'
    axis, or 0; `inputs`: their number.
    """

    names: tuple[str, ...]
    size: tuple[int, ...]
    make: Callable[[nn.Module], nn.Module]
    frames: int = 0
    inputs: int = 1
    factor: float = 1


def _fold(draw: random.Random, kind: str, form: Form, size: tuple[int, ...]) -> Fold:
    merge = draw.choice(["mean", "sum", "mean", "maximum"])
    if kind == "views":
        return _views(draw, form, size, merge)
    if kind == "frames":
        frames = draw.choice([3, 4, 5])
        how = draw.choice(["flatten", "reshape", "time first", "loop", "indexed loop", "permute, reshape"])
        merge = draw.choice(["mean", "sum", "maximum", "attention"])
        picked = draw.choice(["all", "all", "all", "every second", "reversed"])
        names = (f"frames {how}", f"{picked} of {frames}", merge)
        return Fold(names, size, lambda body: Frames(body, form.taken, how, picked, merge), frames)
    if kind == "siamese":
        how = draw.choice(["cat", "stack", "two calls"])
        return Fold((f"siamese {how}",), size, lambda body: Siamese(body, form.taken, how), inputs=2)
    if kind == "tiles":
        how = draw.choice(["loop", "cat", "unfold", "unflatten"])
        half = (*size[:-1], size[-1] // 2)
        return Fold((f"tiles {how}", merge), half, lambda body: Tiles(body, form.taken, how, merge))
    if kind == "batches":
        how = draw.choice(["one by one", "batch reversed", "batch twice", "batch repeat_interleave"])
        return Fold((how,), size, lambda body: Batches(body, form.taken, how))
    if kind == "regions":
        if len(size) != 2:
            raise UnfitError
        side = draw.choice([24, 30])
        return Fold(
            (f"regions of {side}", merge), (side, side), lambda body: Regions(body, form.taken, side, merge), factor=2
        )
    if kind == "averaged":
        axis = draw.randrange(-len(size), 0)
        return Fold(("features of a flip, flipped back",), size, lambda body: Averaged(body, form.taken, axis))
    return Fold((), size, lambda body: Plain(body, form.taken))


def _views(draw: random.Random, form: Form, size: tuple[int, ...], merge: str) -> Fold:
    axis = draw.randrange(-len(size), 0)
    side = size[axis]
    several: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "flip": [lambda x: x, lambda x: x.flip(axis)],
        "all flips": [lambda x: x, lambda x: x.flip(-1), lambda x: x.flip(2), lambda x: x.flip((2, -1))],
        "half turn": [lambda x: x, lambda x: torch.rot90(x, 2, (2, x.ndim - 1)) if x.ndim > 3 else x.flip(-1)],
        "two crops": [lambda x: x.narrow(axis, 0, side - 8), lambda x: x.narrow(axis, 8, side - 8)],
        "crop of a flip": [lambda x: x.narrow(axis, 0, side - 8), lambda x: x.flip(axis).narrow(axis, 4, side - 8)],
        "rolled": [lambda x: x, lambda x: x.roll(side // 3, axis)],
        "shifted": [lambda x: x.roll(8, axis), lambda x: x.roll(-8, axis)],
        "one flip": [lambda x: x.flip(axis)],
    }
    name = draw.choice(list(several))
    how = draw.choice(["loop", "cat", "stack"])
    inner = list(size)
    inner[axis] -= 8 * ("crop" in name)
    return Fold(
        (f"views {name}, {how}", merge),
        tuple(inner),
        lambda body: Views(body, form.taken, several[name], how, merge),
    )


def _planted(
    draw: random.Random,
    draft: Draft,
    model: nn.Module,
    head: Head,
    form: Form,
    shape: tuple[int, ...],
    background: float,
    fold: Fold,
    channel_axis: int | None,
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Bright spots at places that the score depends on, each far from its mirror images; and where they are.

    What is around them is dark, or so dim that the first layer's bias leaves nothing of it.
    """
    batch, channels, *size = shape
    side = {1: 5, 2: 4, 3: 3}[len(size)]
    for _ in range(8):
        inputs = []
        for _ in range(fold.inputs):
            images = background * torch.rand(batch, max(1, fold.frames), channels, *size, generator=draft.generator)
            for sample in images:
                frames = [at for at in range(len(sample)) if len(sample) - 1 - at != at] or [0]  # not the middle one
                corner = _place(draw, draft, size, side)
                sample[draw.choice(frames)][(slice(None), *(slice(at, at + side) for at in corner))] = 1
            folded = form.given(images.flatten(0, 1))
            inputs.append(folded.unflatten(0, images.shape[:2]) if fold.frames else folded)
        leaves = [each.clone().requires_grad_() for each in inputs]
        try:
            logits = model(*leaves)
            gradients = torch.autograd.grad(logits[:, 0].sum(), leaves, allow_unused=True)
        except RuntimeError as error:  # views of several shapes, or in place what a backward pass needs
            raise UnfitError from error
        evidence = []
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is None:
                raise UnfitError
            seen = (leaf == 1) & (gradient.abs() > 0.01 * gradient.abs().amax())
            evidence.append(seen if channel_axis is None else seen.any(channel_axis))
        enough = all((seen.flatten(1).sum(1) >= 0.5 * side ** len(size)).all() for seen in evidence)
        enough = enough and bool((logits[:, 0] > 1e-3).all())
        if enough and _are_inside(draft, model, head, inputs, evidence, channel_axis):
            head.gain = 3 / float(logits.detach().mean())
            return tuple(inputs), evidence
    raise UnfitError


def _are_inside(
    draft: Draft, model: nn.Module, head: Head, inputs: Sequence[Tensor], evidence: Sequence[Tensor], axis: int | None
) -> bool:
    """Whether the features depend on all that is around the spots, on either side alike: none is at a cut border."""
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    leaves = [(0.5 + torch.rand(each.shape, generator=draft.generator)).requires_grad_() for each in inputs]
    model(*leaves)
    hook.remove()
    gradients = torch.autograd.grad(torch.cat([each.flatten() for each in features]).sum(), leaves)
    far, slack = border(draft), math.ceil(draft.scale) - 1
    for gradient, spots in zip(gradients, evidence, strict=True):
        dependence = gradient.abs() if axis is None else gradient.abs().sum(axis)
        for seen, spot in zip(dependence, spots, strict=True):
            places = spot.nonzero()
            low, high = places.amin(0), places.amax(0)
            low[-draft.dims :] -= far
            high[-draft.dims :] += far
            near = seen[tuple(slice(first, last + 1) for first, last in zip(low.tolist(), high.tolist(), strict=True))]
            around = near.nonzero()
            end = torch.tensor(near.shape) - 1
            if not len(around) or (around.amin(0) > slack).any() or (around.amax(0) < end - slack).any():
                return False
            weights = near[tuple(around.T)][:, None]
            centre = (around * weights).sum(0) / weights.sum()
            if ((centre - end / 2).abs()[-draft.dims :] > 1 + draft.scale / 4).any():
                return False
    return True


def _place(draw: random.Random, draft: Draft, size: Sequence[int], side: int) -> list[int]:
    """A corner away from the border, and a centre away from its mirror images, also across the diagonals."""
    margin = border(draft)
    least = largest_reach(draft) + side / 2
    for _ in range(50):
        if any(length - 2 * margin < side for length in size):
            raise UnfitError
        corner = [draw.randint(margin, length - margin - side) for length in size]
        twice = [2 * at + side - length for at, length in zip(corner, size, strict=True)]
        mirrored = all(abs(each) > least for each in twice)
        if mirrored and all(
            abs(abs(twice[a]) - abs(twice[b])) / 2 > least / 2 for a in range(len(size)) for b in range(a)
        ):
            return corner
    raise UnfitError
