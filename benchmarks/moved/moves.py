"""Steps that move things: of the image, and of features between layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from .activations import HALVING, KNOWN, UNNAMED
from .draft import Draft, Function

Step = Callable[[Draft], None]
FAR = 8.0
"""Pixels of the image by which things are moved at least, so that a map that ignores it is plainly wrong."""
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _one_sided(draft: Draft, axis: int, before: int, after: int) -> list[int]:
    """Amounts as F.pad takes them."""
    pads = [0] * (2 * draft.dims)
    place = 2 * (draft.probe.ndim - 1 - axis)
    pads[place : place + 2] = before, after
    return pads


def pad(draft: Draft) -> None:
    """One-sided or uneven, in any mode."""
    axis, far = draft.axis(), draft.positions(FAR)
    before, after = draft.draw.choice([(far, 0), (0, far), (far + 2, 1), (1, far)])
    mode = draft.draw.choice(["constant", "constant", "reflect", "replicate", "circular"])
    draft.require(far + 2 < draft.probe.shape[axis])
    pads = _one_sided(draft, axis, before, after)
    side = draft.probe.shape[axis]

    def beside_zeros(x: Tensor) -> Tensor:
        zeros = [torch.zeros_like(x.narrow(axis, 0, 1)).expand_as(x.narrow(axis, 0, n)) for n in (before, after)]
        return torch.cat([zeros[0], x, zeros[1]], axis)

    def assigned(x: Tensor) -> Tensor:
        out = x.new_zeros([length + (before + after) * (at == axis) for at, length in enumerate(x.shape)])
        out[(slice(None),) * axis + (slice(before, before + side),)] = x
        return out

    def copied(x: Tensor) -> Tensor:
        out = x.new_zeros([length + (before + after) * (at == axis) for at, length in enumerate(x.shape)])
        out.narrow(axis, before, side).copy_(x)
        return out

    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (f"pad({mode}", lambda x: F.pad(x, pads, mode=mode)),
        (f"pad({mode}", lambda x: F.pad(x, pads, mode=mode)),
        ("zeros beside it(cat", beside_zeros),
        ("into zeros(slice assignment", assigned),
        ("into zeros(copy_", copied),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"{name}, axis {axis}, {before}, {after})", "pad" if mode in name else name.split("(")[0], function)


def pad_to_multiple(draft: Draft) -> None:
    """Right and below, or all around, to a multiple of 16 or 32."""
    multiple = draft.draw.choice([16, 32]) if draft.dims < 3 else 16
    centred = draft.draw.random() < 0.3

    def padded(x: Tensor) -> Tensor:
        pads: list[int] = []
        for side in reversed(x.shape[2:]):
            missing = -side % multiple
            pads += [missing // 2, missing - missing // 2] if centred else [0, missing]
        return F.pad(x, pads)

    draft.add(f"pad to a multiple of {multiple}{' centred' if centred else ''}", "pad to a multiple", padded)


def crop(draft: Draft) -> None:
    """One side of one axis is cut off."""
    axis, far = draft.axis(), draft.positions(FAR)
    side = draft.probe.shape[axis]
    draft.require(side - far >= draft.positions(16))
    low, high = draft.draw.choice([(far, side), (0, side - far), (far // 2, side - far // 2 - 1)])
    pads = _one_sided(draft, axis, -low, high - side)
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("slice", lambda x: x[(slice(None),) * axis + (slice(low, high),)]),
        ("narrow", lambda x: x.narrow(axis, low, high - low)),
        ("negative pad", lambda x: F.pad(x, pads)),
        ("index_select", lambda x: x.index_select(axis, torch.arange(low, high))),
        ("split", lambda x: x.split([low, high - low, side - high], axis)[1]),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"crop({name}, axis {axis}, {low}:{high})", "crop", function)


def flip(draft: Draft) -> None:
    """One axis, or all."""
    axis = draft.axis()
    side = draft.probe.shape[axis]
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("flip", lambda x: x.flip(axis)),
        ("flip all", lambda x: x.flip(tuple(range(2, x.ndim)))),
        ("reversed index", lambda x: x.index_select(axis, torch.arange(side - 1, -1, -1))),
        ("stacked in reverse", lambda x: torch.stack(x.unbind(axis)[::-1], axis)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"{name}(axis {axis})", "flip", function)


def rot90(draft: Draft) -> None:
    """A quarter, a half or three quarters of a turn."""
    draft.require(draft.dims >= 2)
    axes = draft.draw.sample(range(2, 2 + draft.dims), 2)
    turns = draft.draw.choice([1, 2, 3])
    draft.add(f"rot90({turns}, {axes})", "rot90", lambda x: torch.rot90(x, turns, axes))


def transpose(draft: Draft) -> None:
    """Two axes change places."""
    draft.require(draft.dims >= 2)
    first, second = sorted(draft.draw.sample(range(2, 2 + draft.dims), 2))
    order = list(range(2 + draft.dims))
    order[first], order[second] = second, first
    letters = "bcdhw"[: 2 + draft.dims] if draft.dims == 3 else "bchw"
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("transpose", lambda x: x.transpose(first, second)),
        ("permute", lambda x: x.permute(order)),
        ("movedim", lambda x: x.movedim(tuple(order), tuple(range(x.ndim)))),
        ("einsum", lambda x: torch.einsum(f"{letters}->{''.join(letters[at] for at in order)}", x)),
        ("contiguous", lambda x: x.transpose(first, second).contiguous()),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"{name}({first}, {second})", "transpose", function)


def roll(draft: Draft) -> None:
    """A third of the axis, around the border."""
    axis = draft.axis()
    side = draft.probe.shape[axis]
    by = draft.draw.choice([1, -1]) * max(side // 3, draft.positions(FAR))
    draft.require(2 * draft.positions(FAR) < side)
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("roll", lambda x: x.roll(by, axis)),
        ("roll as two slices", lambda x: torch.cat([x.narrow(axis, -by % side, side - -by % side),
                                                x.narrow(axis, 0, -by % side)], axis)),
    ]  # fmt: skip
    name, function = draft.draw.choice(forms)
    draft.add(f"{name}({by}, axis {axis})", "roll", function)


def resize(draft: Draft) -> None:
    """Up or down, one or all axes."""
    factor = draft.draw.choice([0.5, 0.75, 1.5, 2.0]) if draft.dims < 3 else draft.draw.choice([0.75, 1.25])
    size = [max(1, round(side * (factor if draft.draw.random() < 0.8 else 1))) for side in draft.size]
    draft.require(min(size) >= 6 and max(size) <= (72 if draft.dims < 3 else 32))
    mode = draft.draw.choice(["nearest", MODES[draft.dims], MODES[draft.dims], "area"])
    corners = draft.draw.choice([True, False]) if mode == MODES[draft.dims] else None
    draft.add(
        f"resize({mode}{'' if corners is None else f', align_corners={corners}'}, {tuple(size)})",
        "resize",
        lambda x: F.interpolate(x, size=tuple(size), mode=mode, align_corners=corners),
        scale=max(1, 1 / factor),
        reach=max(1, 0.5 / factor),
    )


def warp(draft: Draft) -> None:
    """grid_sample with an affine grid that turns around, enlarges and shifts."""
    draft.require(draft.dims in (2, 3))
    theta = torch.zeros(1, draft.dims, draft.dims + 1)
    for axis in range(draft.dims):
        theta[0, axis, axis] = draft.draw.choice([1.0, 1.0, -1.0, 0.8])
        theta[0, axis, -1] = draft.draw.choice([0.0, 0.0, 0.4, -0.4])
    if draft.draw.random() < 0.3:
        theta[:, :2] = theta[:, [1, 0]]
    corners = draft.draw.choice([True, False])

    def warped(x: Tensor) -> Tensor:
        grid = F.affine_grid(theta.expand(len(x), -1, -1), list(x.shape), align_corners=corners)
        return F.grid_sample(x, grid, align_corners=corners)

    long = max(draft.size) / min(draft.size)
    draft.add(f"grid_sample({theta[0].tolist()})", "warp", warped, scale=long, reach=1)


def strided_slice(draft: Draft) -> None:
    """Every second position."""
    draft.require(min(draft.size) >= 16 and draft.scale < 2)
    start = draft.draw.choice([0, 1])
    picked = (slice(None), slice(None), *[slice(start, None, 2)] * draft.dims)
    draft.add(f"[{start}::2]", "strided slice", lambda x: x[picked], scale=2)


def pixel_unshuffle(draft: Draft) -> None:
    """Space to depth."""
    draft.require(draft.dims == 2 and draft.scale < 2 and draft.channels <= 8)
    draft.require(all(side % 2 == 0 and side >= 16 for side in draft.size))
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2)),
        ("focus", lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)),
        ("reshape", lambda x: x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(name, "space to depth", function, scale=2, reach=0.5)


def pixel_shuffle(draft: Draft) -> None:
    """Depth to space."""
    draft.require(draft.dims == 2 and draft.channels % 4 == 0 and max(draft.size) <= 36)
    draft.add("pixel_shuffle", "depth to space", lambda x: F.pixel_shuffle(x, 2), reach=0.5)


def roi_align(draft: Draft) -> None:
    """The region of one box."""
    from torchvision.ops import roi_align as align

    draft.require(draft.dims == 2)
    height, width = draft.size
    far = draft.positions(FAR)
    draft.require(min(height, width) - far >= draft.positions(20))
    top, left = draft.draw.choice([0, far]), draft.draw.choice([0, far])
    box = [float(left), float(top), float(left + width - far), float(top + height - far)]
    out = draft.draw.choice([(12, 12), (16, 16), (14, 18)])
    aligned = draft.draw.random() < 0.5

    def region(x: Tensor) -> Tensor:
        return align(x, [torch.tensor([box])] * len(x), out, aligned=aligned)

    scale = max((height - far) / out[0], (width - far) / out[1])
    draft.add(f"roi_align({box} -> {out})", "roi_align", region, scale=max(1, scale), reach=max(1, scale / 2))


def patches(draft: Draft) -> None:
    """Patches of 2 as channels, by tensor.unfold or F.unfold."""
    draft.require(draft.dims == 2 and draft.scale < 2 and draft.channels <= 8)
    draft.require(all(side % 2 == 0 and side >= 16 for side in draft.size))
    rows = draft.size[0] // 2
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("tensor.unfold", lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)),
        ("F.unfold", lambda x: F.unfold(x, 2, stride=2).unflatten(2, (rows, -1))),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"patches by {name}", "patches", function, scale=2, reach=0.5)


def mirrored_sum(draft: Draft) -> None:
    """A tensor and its mirror image in one tensor: no position has one place."""
    axis, far = draft.axis(), draft.positions(FAR)
    side = draft.probe.shape[axis]
    draft.require(side >= 3 * far)

    def turned(x: Tensor) -> Tensor:
        first, second = (half.flatten(1).sum(1) for half in x.split([side // 2, side - side // 2], axis))
        return torch.where((first > second).reshape(-1, *[1] * (x.ndim - 1)), x.flip(axis), x)

    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("x + x.flip", lambda x: x + x.flip(axis)),
        ("cat(x, x.flip) in channels", lambda x: torch.cat([x, x.flip(axis)], 1)),
        ("maximum(x, x.flip)", lambda x: torch.maximum(x, x.flip(axis))),
        ("flipped where its first half is brighter", turned),
        ("x[8:] + x[:-8]", lambda x: x.narrow(axis, far, side - far) + x.narrow(axis, 0, side - far)),
    ]
    name, function = draft.draw.choice(forms)
    draft.require(draft.channels <= 8)
    draft.add(f"{name}(axis {axis})", "two places in one tensor", function, is_local=draft.is_local and "8" not in name)


# Layers and features -------------------------------------------------------------------------------------------------


def activation(draft: Draft, doubled: bool = False) -> None:
    """Any form of a nonlinearity; `doubled`: one that takes twice the channels."""
    group = HALVING if doubled else draft.draw.choice([KNOWN, UNNAMED])
    name = draft.draw.choice(list(group))
    made = group[name]()
    draft.activations += 1
    draft.add(name, "activation by name" if group is KNOWN else f"activation {name}", made)


def convolution(draft: Draft) -> None:
    """Padded, unpadded, causal, strided, dilated, grouped or transposed; then an activation."""
    draft.require(draft.is_local)
    outputs = draft.draw.choice([4, 6])
    doubled = draft.draw.random() < 0.15
    outputs *= 1 + doubled
    kind = draft.draw.choice(["same", "same", "stride", "unpadded", "causal", "dilated", "pointwise", "transposed"])
    side = min(draft.size)
    if kind == "same":
        draft.add("conv 3", "convolution", draft.convolution(outputs, 3, padding=1), reach=1)
    elif kind == "stride":
        draft.require(side >= 12 and draft.scale < 3)
        kernel, padding = draft.draw.choice([(3, 1), (2, 0), (4, 1)])
        layer = draft.convolution(outputs, kernel, stride=2, padding=padding)
        draft.add(f"conv {kernel} stride 2", "strided convolution", layer, scale=2, reach=kernel / 2)
    elif kind == "unpadded":
        kernel = draft.draw.choice([3, 5]) if draft.dims > 1 else draft.draw.choice([5, 9])
        draft.require(side >= 2 * kernel)
        draft.add(
            f"conv {kernel} unpadded", "unpadded convolution", draft.convolution(outputs, kernel), reach=kernel // 2
        )
        draft.lost += kernel // 2 * draft.scale
    elif kind == "causal":
        kernel = draft.draw.choice([3, 5]) if draft.dims > 1 else draft.draw.choice([5, 9])
        pads = [kernel - 1, 0] * draft.dims
        layer = draft.convolution(outputs, kernel)
        if draft.draw.random() < 0.5:
            step: nn.Module = nn.Sequential(Function(lambda x: F.pad(x, pads)), layer)
        else:  # as WaveNet: padded on both sides, the end cut off
            both = draft.convolution(outputs, kernel, padding=kernel - 1)
            step = nn.Sequential(both, Function(lambda x: x[(..., *[slice(None, 1 - kernel)] * (x.ndim - 2))]))
        draft.add(f"causal conv {kernel}", "causal convolution", step, reach=kernel // 2)
        draft.lost += kernel // 2 * draft.scale
    elif kind == "dilated":
        draft.add("conv 3 dilated", "convolution", draft.convolution(outputs, 3, padding=2, dilation=2), reach=2)
    elif kind == "pointwise":
        draft.add("conv 1", "convolution", draft.convolution(outputs, 1))
    else:
        draft.require(max(draft.size) <= (40 if draft.dims < 3 else 14))
        made = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[draft.dims]
        kernel, padding = draft.draw.choice([(2, 0), (4, 1)])
        layer = made(draft.channels, outputs, kernel, stride=2, padding=padding, bias=False)
        with torch.no_grad():
            layer.weight.copy_(draft.positive(*layer.weight.shape) / draft.channels)
        draft.add(f"transposed conv {kernel} stride 2", "transposed convolution", layer, reach=1)
    activation(draft, doubled)


def threshold(draft: Draft, below: float) -> None:
    """A convolution and a ReLU that leave nothing of what is darker than `below`."""
    layer = draft.convolution(4, 3, padding=1)
    layer.bias = nn.Parameter(torch.full((4,), -below))
    draft.add("conv 3 with a negative bias", "convolution with a bias", layer, reach=1)
    draft.activations += 1
    draft.add("relu", "activation by name", F.relu)


def pool(draft: Draft) -> None:
    """Maximum or mean."""
    draft.require(min(draft.size) >= 12 and draft.scale < 3 and draft.is_local)
    name = draft.draw.choice(["max_pool", "avg_pool"])
    function = getattr(F, f"{name}{draft.dims}d")
    draft.add(name, "pooling", lambda x: function(x, 2), scale=2, reach=0.5)


class ChannelsLast(nn.Module):
    """Layers on (batch, *space, channel)."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to the same."""
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


class Tokens(nn.Module):
    """Layers on (batch, token, channel), with a class token of zeros in front or without."""

    def __init__(self, layers: nn.Module, class_token: bool) -> None:
        super().__init__()
        self.layers, self.class_token = layers, class_token

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to the same."""
        space = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        if self.class_token:
            x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
        x = self.layers(x)
        if self.class_token:
            x = x[:, 1:]
        return x.transpose(1, 2).unflatten(2, space)


class Windows(nn.Module):
    """Layers on (batch * window, token, channel), each window `side` long."""

    def __init__(self, layers: nn.Module, side: int) -> None:
        super().__init__()
        self.layers, self.side = layers, side

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, height, width) to the same."""
        batch, channels, height, width = x.shape
        side = self.side
        x = x.reshape(batch, channels, height // side, side, width // side, side)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, channels)
        x = self.layers(x)
        x = x.reshape(batch, height // side, width // side, side, side, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


def _pointwise(draft: Draft) -> tuple[str, nn.Module]:
    """One or two linear layers on the last axis, with norm and activation."""
    names, layers = [], []
    width = draft.channels
    for _ in range(draft.draw.choice([1, 2])):
        outputs = draft.draw.choice([4, 6])
        if draft.draw.random() < 0.3:
            layers.append(nn.LayerNorm(width, elementwise_affine=False))
            names.append("LayerNorm")
            draft.slack += draft.scale
        layers.append(draft.linear(width, outputs))
        names.append("Linear")
        group = KNOWN if draft.draw.random() < 0.7 else UNNAMED
        name = draft.draw.choice(list(group))
        layers.append(Function(group[name]()))
        draft.activations += 1
        names.append(name)
        width = outputs
    return ", ".join(names), nn.Sequential(*layers)


def channels_last(draft: Draft) -> None:
    """Linear layers on (batch, *space, channel)."""
    name, layers = _pointwise(draft)
    draft.add(f"channels last({name})", "channels-last layers", ChannelsLast(layers))


def tokens(draft: Draft) -> None:
    """Linear layers on tokens."""
    name, layers = _pointwise(draft)
    class_token = draft.draw.random() < 0.5
    kind = "tokens with a class token" if class_token else "tokens"
    draft.add(f"{kind}({name})", kind, Tokens(layers, class_token))


def windows(draft: Draft) -> None:
    """Linear layers on windows."""
    sides = [side for side in (2, 4, 5, 6) if all(length % side == 0 for length in draft.size)]
    draft.require(draft.dims == 2 and bool(sides))
    name, layers = _pointwise(draft)
    step: nn.Module = Windows(layers, draft.draw.choice(sides))
    kind = draft.draw.choice(["windows", "shifted windows"])
    if kind == "shifted windows":
        step = ShiftedWindows(step, draft.positions(FAR))
    draft.add(f"{kind}({name})", kind, step)


class ShiftedWindows(nn.Module):
    """Windows of the rolled image, rolled back afterwards, as in Swin."""

    def __init__(self, windows: nn.Module, shift: int) -> None:
        super().__init__()
        self.windows, self.shift = windows, shift

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, height, width) to the same."""
        x = x.roll((-self.shift, -self.shift), (2, 3))
        return self.windows(x).roll((self.shift, self.shift), (2, 3))


class Rows(nn.Module):
    """A recurrent layer over (batch, length, channel); of an image, over its rows, folded into the batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to the same."""
        rows = x.movedim(1, -1)
        out, _ = self.layer(rows.reshape(-1, *rows.shape[-2:]))
        return out.reshape(*rows.shape[:-1], -1).movedim(-1, 1)


def recurrent(draft: Draft) -> None:
    """A recurrent layer that forgets at once, so that the evidence stays where it is; then an activation."""
    name = draft.draw.choice(["GRU", "GRU", "LSTM", "RNN"])
    both = draft.draw.random() < 0.3
    layer: nn.Module = getattr(nn, name)(draft.channels, 4, batch_first=True, bidirectional=both)
    gates = {"GRU": (slice(8, 12), slice(4, 8)), "LSTM": (slice(8, 12), slice(4, 8)), "RNN": (slice(0, 4), slice(0, 0))}
    candidate, memory = gates[name]
    with torch.no_grad():
        for parameter, weight in layer.named_parameters():
            weight.zero_()
            if parameter.startswith("weight_ih"):
                weight[candidate] = 2 * draft.positive(4, draft.channels) / draft.channels
            if parameter.startswith("bias_ih"):
                weight[memory] = -20.0
    draft.add(f"{'bidirectional ' if both else ''}{name}", "GRU, LSTM or RNN", Rows(layer))
    activation(draft)


def mixing(draft: Draft) -> None:
    """A product with a matrix over the channels; then an activation."""
    outputs = draft.draw.choice([4, 6])
    matrix = draft.positive(draft.channels, outputs) / draft.channels
    space = "dhw"[-draft.dims :]
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("einsum", lambda x: torch.einsum(f"bc{space},ck->bk{space}", x, matrix)),
        ("tensordot", lambda x: torch.tensordot(x, matrix, dims=([1], [0])).movedim(-1, 1)),
        ("tensordot from the left", lambda x: torch.tensordot(matrix, x, dims=([0], [1])).transpose(0, 1)),
        ("matmul", lambda x: (matrix.T @ x.flatten(2)).unflatten(2, x.shape[2:])),
        ("matmul on the right", lambda x: (x.movedim(1, -1) @ matrix).movedim(-1, 1)),
        ("einsum with ellipsis", lambda x: torch.einsum("bc...,ck->bk...", x, matrix)),
        ("weighted sum", lambda x: (x[:, :, None] * matrix.reshape(*matrix.shape, *[1] * (x.ndim - 2))).sum(1)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"mix by {name}", f"mixing by {name}", function)
    activation(draft)


def spatial_product(draft: Draft) -> None:
    """A product with a matrix over positions that moves them by a third of the axis; then an activation."""
    side = draft.size[-1]
    order = [(at + side // 3) % side for at in range(side)]
    matrix = torch.eye(side)[:, order]
    draft.require(side // 3 >= draft.positions(FAR) and draft.is_local)
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("matmul", lambda x: x @ matrix),
        ("einsum", lambda x: torch.einsum("...w,wv->...v", x, matrix)),
        ("linear", lambda x: F.linear(x, matrix.T)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"positions moved by {name}", "product over positions", function)
    activation(draft)


def permutation(draft: Draft) -> None:
    """Positions of one axis in another order: rolled, or the even before the odd ones."""
    axis = draft.axis()
    side = draft.probe.shape[axis]
    draft.require(2 * draft.positions(FAR) < side)
    rolled = draft.draw.random() < 0.5
    order = list(range(side // 2, side)) + list(range(side // 2))
    order = order if rolled else list(range(0, side, 2)) + list(range(1, side, 2))
    index = torch.tensor(order)
    inverse = index.argsort()

    def scattered(x: Tensor) -> Tensor:
        places = inverse.reshape([-1 if at == axis else 1 for at in range(x.ndim)]).expand(x.shape)
        return torch.zeros_like(x).scatter(axis, places, x)

    def gathered(x: Tensor) -> Tensor:
        places = index.reshape([-1 if at == axis else 1 for at in range(x.ndim)]).expand(x.shape)
        return x.gather(axis, places)

    def put(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[(slice(None),) * axis + (inverse,)] = x
        return out

    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("index_select", lambda x: x.index_select(axis, index)),
        ("indexing", lambda x: x[(slice(None),) * axis + (index,)]),
        ("scatter", scattered),
        ("gather", gathered),
        ("index_put", put),
        ("index_add", lambda x: torch.zeros_like(x).index_add(axis, inverse, x)),
        ("index_copy", lambda x: torch.zeros_like(x).index_copy(axis, inverse, x)),
    ]
    name, function = draft.draw.choice(forms)
    order_name = "halves swapped" if rolled else "even before odd"
    draft.add(f"{name}({order_name}, axis {axis})", f"permutation by {name}", function, is_local=rolled)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.flip(-1)

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient.flip(-1)


def own_function(draft: Draft) -> None:
    """An autograd.Function of one's own."""
    name, function = draft.draw.choice([("identity", _Identity), ("flip", _Flip)])
    draft.add(f"own autograd.Function {name}", f"own autograd.Function {name}", function.apply)  # type: ignore[no-untyped-call]


class Residual(nn.Module):
    """`x + layers(x)` or both beside each other."""

    def __init__(self, layers: nn.Module, joined: bool) -> None:
        super().__init__()
        self.layers, self.joined = layers, joined

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to (batch, channel or twice as many, *space)."""
        return torch.cat([x, self.layers(x)], 1) if self.joined else x + self.layers(x)


def residual(draft: Draft) -> None:
    """A block with a skip connection."""
    draft.require(draft.is_local and draft.channels <= 8)
    layers = nn.Sequential(draft.convolution(draft.channels, 3, padding=1), nn.ReLU())
    joined = draft.draw.random() < 0.4
    draft.activations += 1
    draft.add("cat(x, block)" if joined else "x + block(x)", "skip connection", Residual(layers, joined), reach=1)


class DynamicConvolution(nn.Module):
    """A kernel of each sample's own, by one grouped convolution over the batch; the activation before or after."""

    def __init__(self, weight: Tensor, inside: bool) -> None:
        super().__init__()
        self.weight, self.inside = weight, inside

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to the same number of axes."""
        batch, channels = x.shape[:2]
        attention = torch.sigmoid(x.flatten(2).mean((1, 2)))
        kernels = attention.reshape(-1, *[1] * self.weight.ndim) * self.weight
        convolved = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3](
            x.reshape(1, batch * channels, *x.shape[2:]),
            kernels.reshape(-1, *self.weight.shape[1:]),
            padding=1,
            groups=batch,
        )
        if self.inside:
            convolved = convolved.relu()
        return convolved.reshape(batch, -1, *convolved.shape[2:])


def dynamic_convolution(draft: Draft) -> None:
    """Kernels that depend on the sample."""
    draft.require(draft.is_local)
    weight = draft.positive(4, draft.channels, *[3] * draft.dims) / (draft.channels * 3**draft.dims)
    inside = draft.draw.random() < 0.5
    name = f"dynamic conv{', relu inside' if inside else ''}"
    draft.activations += inside
    draft.add(name, "dynamic convolution", DynamicConvolution(weight, inside), reach=1)
    activation(draft)


class Gate(nn.Module):
    """Squeeze and excitation, or a gate of each position."""

    def __init__(self, layer: nn.Module, spatial: bool) -> None:
        super().__init__()
        self.layer, self.spatial = layer, spatial

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to the same."""
        if self.spatial:
            return x * torch.sigmoid(self.layer(x))
        weights = torch.sigmoid(self.layer(x.flatten(2).mean(2)))
        return x * weights.reshape(*weights.shape, *[1] * (x.ndim - 2))


def gate(draft: Draft) -> None:
    """A sigmoid gate."""
    spatial = draft.draw.random() < 0.5
    layer = draft.convolution(1, 1) if spatial else draft.linear(draft.channels, draft.channels)
    name = "spatial gate" if spatial else "squeeze and excitation"
    draft.add(name, "sigmoid gate", Gate(layer, spatial))


def norm(draft: Draft) -> None:
    """A batch norm that scales."""
    layer = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[draft.dims](draft.channels)
    assert layer.running_var is not None
    layer.running_var.copy_(draft.positive(draft.channels) ** 2)
    draft.add("batch norm", "batch norm", layer)


def repeated(draft: Draft) -> None:
    """Twice beside itself: two positions for each place."""
    axis = draft.axis()
    draft.require(draft.probe.shape[axis] <= (24 if draft.dims > 1 else 48))
    times = [1 + (at == axis) for at in range(draft.probe.ndim)]
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("repeat", lambda x: x.repeat(times)),
        ("tile", lambda x: x.tile(times)),
        ("cat(x, x)", lambda x: torch.cat([x, x], axis)),
        ("cat(x, x.flip)", lambda x: torch.cat([x, x.flip(axis)], axis)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"{name}(axis {axis})", "repeated", function)


def enlarged(draft: Draft) -> None:
    """Every position several times, without interpolate."""
    axis = draft.axis()
    draft.require(draft.probe.shape[axis] <= (24 if draft.dims > 1 else 48))

    def expanded(x: Tensor) -> Tensor:
        return x.unsqueeze(axis + 1).expand(*x.shape[: axis + 1], 2, *x.shape[axis + 1 :]).flatten(axis, axis + 1)

    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("repeat_interleave", lambda x: x.repeat_interleave(2, axis)),
        ("expand", expanded),
        ("stack", lambda x: torch.stack([x, x], axis + 1).flatten(axis, axis + 1)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(f"{name}(2, axis {axis})", "repeat_interleave", function)


def unchanged(draft: Draft) -> None:
    """Functions that leave every position where it is."""
    size = draft.size
    groups = 2 if draft.channels % 2 == 0 else 1
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("clone", lambda x: x.clone()),
        ("flatten, view", lambda x: x.flatten(1).view(len(x), -1, *size)),
        ("unsqueeze, squeeze", lambda x: x.unsqueeze(2).squeeze(2)),
        ("channel shuffle", lambda x: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)),
        ("times a mask", lambda x: x * torch.ones(size)),
        ("dropout", nn.Dropout()),
        ("to float64 and back", lambda x: x.double().float()),
        ("one by one", lambda x: torch.cat([each * 1 for each in x.split(1)])),
        ("by each channel", lambda x: torch.stack([x[:, at] for at in range(x.shape[1])], 1)),
        ("checkpoint", lambda x: torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=False)),
        ("batch reversed twice", lambda x: x.flip(0).flip(0)),
        ("batch before channels and back", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    ]
    name, function = draft.draw.choice(forms)
    draft.add(name, f"unchanged by {name}", function)


def as_higher(draft: Draft) -> None:
    """A signal as an image of one row, an image as a volume of one slice."""
    draft.require(draft.dims < 3 and draft.is_local)
    convolve = (F.conv2d, F.conv3d)[draft.dims - 1]
    weight = draft.positive(4, draft.channels, 1, *[3] * draft.dims) / (draft.channels * 3**draft.dims)
    inside = draft.draw.random() < 0.5

    def raised(x: Tensor) -> Tensor:
        x = convolve(x.unsqueeze(2), weight, padding=[0, *[1] * (x.ndim - 2)])
        return (x.relu() if inside else x).squeeze(2)

    draft.activations += inside
    draft.add(f"one axis more{', relu inside' if inside else ''}", "one axis more", raised, reach=1)
    activation(draft)


def rows_folded(draft: Draft) -> None:
    """Rows of an image, or slices of a volume, folded into the batch of a convolution with one axis less."""
    draft.require(draft.dims > 1 and draft.is_local)
    convolve = (F.conv1d, F.conv2d)[draft.dims - 2]
    weight = draft.positive(4, draft.channels, *[3] * (draft.dims - 1)) / (draft.channels * 3 ** (draft.dims - 1))

    def folded(x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(0, 1)
        rows = convolve(rows, weight, padding=1).relu()
        return rows.unflatten(0, (len(x), -1)).transpose(1, 2)

    draft.activations += 1
    draft.add("rows folded into the batch(conv 3, relu)", "rows folded into the batch", folded, reach=1)


def columns_looped(draft: Draft) -> None:
    """A layer on each column, in a loop."""
    draft.require(draft.size[-1] <= 16 or draft.dims == 1)
    draft.require(draft.size[-1] <= 40)
    layer = draft.linear(draft.channels, 4)

    def looped(x: Tensor) -> Tensor:
        return torch.stack([layer(x[..., at].movedim(1, -1)).relu().movedim(-1, 1) for at in range(x.shape[-1])], -1)

    draft.activations += 1
    draft.add("loop over columns(Linear, relu)", "loop over columns", looped)


def space_to_batch(draft: Draft) -> None:
    """Even and odd positions as separate samples, for a dilated convolution; then back."""
    draft.require(draft.dims == 2 and draft.is_local and all(side % 2 == 0 and side >= 12 for side in draft.size))
    layer = draft.convolution(4, 3, padding=1)

    def dilated(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(3, 5, 0, 1, 2, 4)
        x = layer(x.reshape(4 * batch, channels, height // 2, width // 2)).relu()
        return (
            x.reshape(2, 2, batch, -1, height // 2, width // 2)
            .permute(2, 3, 4, 0, 5, 1)
            .reshape(batch, -1, height, width)
        )

    draft.activations += 1
    draft.add("space to batch(conv 3, relu)", "space to batch", dilated, reach=2)


def im2col(draft: Draft) -> None:
    """A convolution as unfold and a matrix product."""
    draft.require(draft.dims == 2 and draft.is_local and max(draft.size) <= 56)
    matrix = draft.positive(4, 9 * draft.channels) / (9 * draft.channels)

    def convolved(x: Tensor) -> Tensor:
        return (matrix @ F.unfold(x, 3, padding=1)).unflatten(2, x.shape[2:])

    draft.add("conv as unfold and matmul", "convolution as matmul", convolved, reach=1)
    activation(draft)


def same_padding(draft: Draft) -> None:
    """A strided convolution padded as TensorFlow does, more behind than before."""
    draft.require(draft.is_local and draft.scale < 2 and min(draft.size) >= 12)
    layer = draft.convolution(4, 3, stride=2)
    pads = [0, 1] * draft.dims
    step = nn.Sequential(Function(lambda x: F.pad(x, pads)), layer)
    draft.add("conv 3 stride 2, padded as TensorFlow", "strided convolution", step, scale=2, reach=1.5)
    activation(draft)


class UNet(nn.Module):
    """Half the resolution and back, joined with what was before."""

    def __init__(self, layer: nn.Module, mode: str) -> None:
        super().__init__()
        self.layer, self.mode = layer, mode

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) to (batch, channel + 4, *space)."""
        pooled = getattr(F, f"max_pool{x.ndim - 2}d")(x, 2)
        small = self.layer(pooled).relu()
        return torch.cat([x, F.interpolate(small, size=x.shape[2:], mode=self.mode)], 1)


def unet(draft: Draft) -> None:
    """A block of a U-Net."""
    draft.require(draft.is_local and draft.scale < 2 and min(draft.size) >= 12 and draft.channels <= 8)
    mode = draft.draw.choice(["nearest", MODES[draft.dims]])
    draft.activations += 1
    draft.add(f"U-Net block({mode})", "U-Net block", UNet(draft.convolution(4, 3, padding=1), mode), reach=4)


def fourier_shift(draft: Draft) -> None:
    """Rolled by a phase in the frequencies."""
    side = draft.size[-1]
    draft.require(2 * draft.positions(FAR) < side and draft.is_local)
    by = max(side // 3, draft.positions(FAR))
    phase = torch.exp(-2j * math.pi * by * torch.fft.fftfreq(side))
    draft.add(f"Fourier shift({by})", "Fourier shift", lambda x: torch.fft.ifft(torch.fft.fft(x) * phase).real)
    activation(draft)


def deformed(draft: Draft) -> None:
    """A deformable convolution whose offsets move everything."""
    from torchvision.ops import deform_conv2d

    draft.require(draft.dims == 2 and draft.is_local)
    far = draft.positions(FAR)
    draft.require(min(draft.size) >= 3 * far)
    down, right = draft.draw.choice([(far, 0), (0, -far), (far, far)])
    weight = draft.positive(4, draft.channels, 3, 3) / (9 * draft.channels)

    def shifted(x: Tensor) -> Tensor:
        offset = torch.tensor([down, right] * 9, dtype=x.dtype).reshape(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
        return deform_conv2d(x, offset, weight, padding=1)

    draft.add(f"deformable conv(offset {down}, {right})", "deformable convolution", shifted, reach=1)
    activation(draft)


def chosen_tokens(draft: Draft) -> None:
    """The half of the tokens with the largest norm, in the order of it; each sample's own."""
    positions = draft.probe[0, 0].numel()
    draft.require(draft.dims == 1)
    ordered = draft.draw.random() < 0.5
    layer = draft.linear(draft.channels, 4)

    def chosen(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        index = tokens.detach().norm(dim=-1).topk(positions // 2).indices
        index = index.sort().values if ordered else index
        kept = tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
        return layer(kept).relu().transpose(1, 2)

    draft.activations += 1
    draft.add("top half of the tokens(Linear, relu)", "place depends on the tokens", chosen, is_local=False)


def framed(draft: Draft) -> None:
    """A signal as overlapping frames."""
    draft.require(draft.dims == 1 and draft.scale < 2 and draft.channels <= 8)
    length, hop = draft.draw.choice([(4, 2), (6, 2), (3, 1)])
    draft.add(
        f"frames of {length} every {hop}",
        "overlapping frames",
        lambda x: x.unfold(2, length, hop).movedim(-1, 2).flatten(1, 2),
        scale=hop,
        reach=length / 2,
    )
    draft.lost += length / 2


def neighbours(draft: Draft) -> None:
    """Neighbours added by slices."""
    axis = draft.axis()
    side = draft.probe.shape[axis]
    draft.require(draft.is_local)
    draft.add(
        f"x[1:] + x[:-1](axis {axis})",
        "neighbours added",
        lambda x: (x.narrow(axis, 1, side - 1) + x.narrow(axis, 0, side - 1)) / 2,
        reach=0.5,
    )


def adaptive_pool(draft: Draft) -> None:
    """To a fixed number of positions."""
    draft.require(draft.is_local and draft.scale < 2 and min(draft.size) >= 16)
    size = [draft.draw.choice([side // 2, 2 * side // 3]) for side in draft.size]
    name = draft.draw.choice(["adaptive_avg_pool", "adaptive_max_pool"])
    function = getattr(F, f"{name}{draft.dims}d")
    draft.add(f"{name}({tuple(size)})", "adaptive pooling", lambda x: function(x, size), scale=2, reach=1)


def separable(draft: Draft) -> None:
    """A convolution of each channel, then one over the channels."""
    draft.require(draft.is_local)
    depth = draft.convolution(draft.channels, 3, padding=1, groups=draft.channels)
    draft.add("depthwise conv", "separable convolution", depth, reach=1)
    if draft.draw.random() < 0.5:
        activation(draft)
    draft.add("pointwise conv", "separable convolution", draft.convolution(4, 1))
    activation(draft)


def activation_channels_last(draft: Draft) -> None:
    """An activation on (batch, *space, channel), between convolutions that take the channels first, as in Keras."""
    group = draft.draw.choice([KNOWN, UNNAMED])
    name = draft.draw.choice(list(group))
    draft.activations += 1
    draft.add(f"{name}, channels last", "activation channels last", ChannelsLast(Function(group[name]())))


def patches_folded(draft: Draft) -> None:
    """Patches folded into the batch, a convolution on each of them, and back."""
    sides = [side for side in (8, 10, 12, 14, 16) if all(length % side == 0 for length in draft.size)]
    draft.require(draft.dims == 2 and bool(sides) and draft.is_local)
    side, layer = draft.draw.choice(sides), draft.convolution(4, 3, padding=1)

    def folded(x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        patches = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        patches = layer(patches).relu().reshape(batch, height // side, width // side, -1, side, side)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)

    draft.activations += 1
    draft.add(f"patches of {side} in the batch(conv 3, relu)", "patches folded into the batch", folded, reach=1)


def unfold_and_fold(draft: Draft) -> None:
    """Overlapping patches, an activation on them, and F.fold."""
    draft.require(draft.dims == 2 and draft.is_local and draft.channels <= 6)
    draft.require(all(side % 2 == 0 and 12 <= side <= 64 for side in draft.size))
    size = list(draft.size)
    draft.activations += 1
    draft.add(
        "F.fold(relu(F.unfold))",
        "unfold and fold",
        lambda x: F.fold(F.unfold(x, 4, stride=2, padding=1).relu(), size, 4, stride=2, padding=1) / 4,
        reach=3,
    )


def glimpse(draft: Draft) -> None:
    """grid_sample around the brightest place of each image: where it looks depends on the image."""
    draft.require(draft.dims == 2 and draft.is_local)

    def centred(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        brightest = F.avg_pool2d(x.detach().sum(1, keepdim=True), 5, 1, 2).flatten(1).argmax(1)
        theta = torch.eye(2, 3).repeat(len(x), 1, 1)
        theta[:, 0, 2] = 2 * (brightest % width + 0.5) / width - 1
        theta[:, 1, 2] = 2 * (brightest // width + 0.5) / height - 1
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)

    draft.add("grid_sample around the brightest place", "place depends on the image", centred, reach=0.5)


IMAGE_MOVES: tuple[Step, ...] = (
    pad, pad, pad_to_multiple, pad_to_multiple, crop, crop, flip, rot90, transpose, roll, resize, resize, warp,
    strided_slice, pixel_unshuffle, roi_align, patches, framed, unchanged, enlarged, repeated, glimpse,
)  # fmt: skip
FEATURE_MOVES: tuple[Step, ...] = (
    pad, crop, flip, rot90, transpose, roll, resize, warp, strided_slice, pixel_unshuffle, pixel_shuffle, roi_align,
    spatial_product, permutation, permutation, own_function, mixing, mixing, channels_last, channels_last, tokens,
    tokens, windows, windows, recurrent, dynamic_convolution, dynamic_convolution, gate, norm, residual, pool,
    mirrored_sum, repeated, enlarged, unchanged, unchanged, as_higher, rows_folded, columns_looped, space_to_batch,
    im2col, same_padding, unet, fourier_shift, deformed, chosen_tokens, framed, neighbours, adaptive_pool, separable,
    activation_channels_last, activation_channels_last, patches_folded, unfold_and_fold,
)  # fmt: skip


def largest_reach(draft: Draft) -> float:
    """How far from the evidence a right map may be bright: what positions see, and the step between them."""
    return math.ceil(draft.reach + draft.scale)


def border(draft: Draft) -> int:
    """How far evidence must be from a border, so that all positions that would see it exist."""
    return math.ceil(draft.reach + draft.scale + draft.lost)
