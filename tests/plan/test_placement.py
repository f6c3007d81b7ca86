"""Where maps lie: networks that pad, crop, flip, fold and transpose what they see, with the true place known."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import integrative_cam
from integrative_cam import Explanation, Recipe
from integrative_cam._maps.fusion import laid_on
from integrative_cam._plan.placement import Placement
from integrative_cam.errors import TapError

Run = Callable[[nn.Module, Tensor], Tensor]

# Averages over regions are as wide as what these tests tell apart.
AT_POSITIONS = Recipe(regions=None)
IntegrativeCAM = partial(integrative_cam.IntegrativeCAM, recipe=AT_POSITIONS)
explain = partial(integrative_cam.explain, recipe=AT_POSITIONS)


class Net(nn.Module):
    """A 3x3 mean of one channel to four, and what `run` does with it: dark where the image is dark."""

    def __init__(self, run: Callable[..., Tensor], channels: int = 1) -> None:
        super().__init__()
        self.run, self.conv = run, nn.Conv2d(channels, 4, 3, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 9)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self.conv, *inputs)


def spots(*places: tuple[int, int], size: tuple[int, int] = (32, 40)) -> Tensor:
    """(batch, 1, height, width), dark but for a bright 3x3 spot around one place an image."""
    images = torch.zeros(len(places), 1, *size)
    for image, (row, column) in zip(images, places, strict=True):
        image[:, row - 1 : row + 2, column - 1 : column + 2] = 1
    return images


def lies_at(values: Tensor, place: tuple[int, ...], reach: int = 3) -> bool:
    """Whether a map's maximum and .95 of its sum lie within `reach` pixels of a place."""
    near = values
    for axis, at in enumerate(place):
        near = near.narrow(axis, max(at - reach, 0), min(at + reach + 1, values.shape[axis]) - max(at - reach, 0))
    return bool(near.max() == values.max() > 0) and bool(near.sum() > 0.95 * values.sum())


PLACES = (6, 5), (24, 33)


def assert_right(explanation: Explanation) -> None:
    assert explanation.map.shape == (len(PLACES), 32, 40)
    assert all(lies_at(values, place) for values, place in zip(explanation.map, PLACES, strict=True))


def class_scores(features: Tensor) -> Tensor:
    return features.relu().mean((2, 3))


def in_canvas(x: Tensor) -> Tensor:
    canvas = x.new_zeros(len(x), 1, 48, 50)
    canvas[:, :, 9:41, 2:42].copy_(x)
    return canvas


def warped(x: Tensor) -> Tensor:
    """Shown in half the size, moved to the right."""
    grid = F.affine_grid(torch.tensor([[[1.25, 0, -0.2], [0, 1.25, 0]]]).expand(len(x), -1, -1), list(x.shape), False)
    return F.grid_sample(x, grid, align_corners=False)


def patches(x: Tensor) -> Tensor:
    """(batch, 80 patches of 4x4, 16)"""
    return x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(2, 3)[:, 0]


MOVES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "padded right and below": lambda conv, x: class_scores(conv(F.pad(x, (0, 24, 0, 32)))),
    "padded on one side, by reflection": lambda conv, x: class_scores(conv(F.pad(x, (8, 0, 0, 0), mode="reflect"))),
    "in a canvas": lambda conv, x: class_scores(conv(in_canvas(x))),
    "cropped": lambda conv, x: class_scores(conv(x[..., 3:, 2:])),
    "flipped": lambda conv, x: class_scores(conv(x.flip(-1))),
    "flip and original": lambda conv, x: class_scores(conv(x)) + class_scores(conv(x.flip(-1))),
    "flip and original in one batch": lambda conv, x: (
        class_scores(conv(torch.cat([x, x.flip(-1)]))).unflatten(0, (2, -1)).sum(0)
    ),
    "turned": lambda conv, x: class_scores(conv(x.rot90(1, (2, 3)))),
    "transposed": lambda conv, x: class_scores(conv(x.transpose(2, 3))),
    "rolled": lambda conv, x: class_scores(conv(x.roll((9, 11), (2, 3)))),
    "enlarged": lambda conv, x: class_scores(conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))),
    "warped": lambda conv, x: class_scores(conv(warped(x))),
    "in two tiles": lambda conv, x: class_scores(conv(torch.cat(x.split(20, 3)))).unflatten(0, (2, -1)).sum(0),
    "features flipped and padded": lambda conv, x: class_scores(F.pad(conv(x).relu().flip(-2), (7, 0, 0, 5))),
    "features by a permutation matrix": lambda conv, x: class_scores(conv(x).relu() @ torch.eye(40).flip(0)),
    "features through a Fourier transform": lambda conv, x: class_scores(
        torch.fft.irfft2(torch.fft.rfft2(conv(x).relu()), s=x.shape[2:])
    ),
    "channels by einsum": lambda conv, x: class_scores(torch.einsum("bchw,cd->bdhw", conv(x).relu(), torch.ones(4, 3))),
    "channels by tensordot": lambda conv, x: class_scores(
        torch.tensordot(conv(x).relu(), torch.ones(4, 3), dims=([1], [0])).permute(0, 3, 1, 2)
    ),
    "causal convolutions": lambda conv, x: class_scores(
        F.conv2d(F.pad(conv(x).relu(), (2, 0, 2, 0)), torch.ones(2, 4, 3, 3) / 36)
    ),
    "unpadded convolutions": lambda conv, x: class_scores(F.conv2d(conv(x).relu(), torch.ones(2, 4, 5, 5) / 100)),
    "kernels of each image": lambda conv, x: class_scores(
        F.conv2d(conv(x).relu().reshape(1, -1, 32, 40), torch.ones(4 * len(x), 1, 1, 1), groups=4 * len(x)).reshape(
            len(x), 4, 32, 40
        )
    ),
}
REACH = {"warped": 4, "unpadded convolutions": 5}


@pytest.mark.parametrize("move", MOVES)
def test_a_map_lies_where_the_network_looked(move: str) -> None:
    model, images = Net(MOVES[move]), spots(*PLACES)
    cam = IntegrativeCAM(model)
    for explanation in (cam(images, 0), cam(images, 0)):  # studied, then by its plan
        assert explanation.map.shape == (2, 32, 40)
        for values, place in zip(explanation.map, PLACES, strict=True):
            assert lies_at(values, place, REACH.get(move, 3)), move
    torch.testing.assert_close(cam(images[1:], 0).map, explanation.map[1:], atol=2e-3, rtol=0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "mask": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "maxout": lambda x: x.unflatten(1, (2, 2)).amax(2),
    "in pieces": lambda x: x * torch.sigmoid(1.7 * x),
    "in place on a part": lambda x: _part_in_place(x),
}


def _part_in_place(x: Tensor) -> Tensor:
    x = x + 0
    x[:, :2].relu_()
    return x


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_under_other_names_are_taps(name: str) -> None:
    """Beside a gate of one channel, which must not become the map."""

    def run(conv: nn.Module, x: Tensor) -> Tensor:
        features = ACTIVATIONS[name](conv(x))
        return (features * features.mean(1, keepdim=True).sigmoid()).mean((2, 3))

    layers = explain(Net(run), spots(*PLACES), 0).layers
    assert len(layers) == 2
    assert ":sigmoid" in layers[1].name


def test_what_lies_at_two_places_is_named_and_left_out() -> None:
    def run(conv: nn.Module, x: Tensor) -> Tensor:
        features = conv(x).relu()
        return class_scores(features + features.flip(-1))

    with pytest.warns(UserWarning, match=r"Beside the map's 1, .* at several places at once: :relu#2"):
        assert_right(explain(Net(run), spots(*PLACES), 0))
    with pytest.raises(TapError, match="of the network's nonlinearities"), warnings.catch_warnings():
        explain(Net(lambda conv, x: class_scores(conv(x) + conv(x).flip(-1))), spots(*PLACES), 0)


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.numpy(force=True).clip(0))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (x > 0)


def test_a_function_that_cannot_be_seen_is_measured() -> None:
    explanation = explain(Net(lambda conv, x: OwnRelu.apply(conv(x.flip(-1))).mean((2, 3))), spots(*PLACES), 0)
    assert [layer.name for layer in explanation.layers] == [":OwnRelu"]
    assert_right(explanation)


class OwnRoll(torch.autograd.Function):
    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return torch.from_numpy(np.roll(x.numpy(force=True), 13, -1))

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient.roll(-13, -1)


def _in_half(x: Tensor) -> Tensor:
    canvas = x + 0
    canvas.narrow(1, 0, 2).add_(OwnRoll.apply(x)[:, :2])
    return canvas


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "added": lambda x: x + OwnRoll.apply(x),
    "beside it in the channels": lambda x: torch.cat([x, OwnRoll.apply(x)], 1),
    "the larger": lambda x: torch.maximum(x, OwnRoll.apply(x)),
    "added to a part in place": _in_half,
}


@pytest.mark.parametrize("how", UNKNOWN)
def test_what_is_joined_with_something_unknown_is_unknown(how: str) -> None:
    """Rolled by what cannot be seen: where the sum lies does not follow from the other operand."""
    with pytest.warns(UserWarning, match=r"Beside the map's 1, there are . activation"):
        assert_right(explain(Net(lambda conv, x: class_scores(UNKNOWN[how](conv(x).relu()))), spots(*PLACES), 0))


COPIES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "twice in one batch": lambda conv, x: class_scores(conv(x.repeat(2, 1, 1, 1))).unflatten(0, (2, -1)).sum(0),
    "twice in a row": lambda conv, x: class_scores(conv(x)[..., [*range(40), *range(40)]]),
    "every one twice": lambda conv, x: class_scores(conv(x).repeat_interleave(2, 3)),
    "views with kernels of their own": lambda conv, x: (
        class_scores(
            F.conv2d(
                conv(torch.stack([x, x.flip(-1)], 1).flatten(0, 1)).reshape(1, -1, 32, 40),
                torch.ones(4 * len(x), 4, 1, 1),
                groups=2 * len(x),
            )
            .relu()
            .reshape(2 * len(x), 2, 32, 40)
        )
        .unflatten(0, (-1, 2))
        .sum(1)
    ),
    "an empty piece beside it": lambda conv, x: class_scores(conv(torch.cat([x[..., :0], x, x[..., :8] * 0], 3))),
    "into zeros, then the larger of it and 0": lambda conv, x: torch.maximum(conv(in_canvas(x)), torch.zeros(())).mean(
        (2, 3)
    ),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_an_image_are_laid_on_it_together(how: str) -> None:
    images, model = spots(*PLACES), Net(COPIES[how])
    both = explain(model, images, 0)
    assert_right(both)
    for sample in range(2):
        torch.testing.assert_close(explain(model, images[sample : sample + 1], 0).map[0], both.map[sample])


def test_the_space_of_an_input_is_known_once_a_layer_saw_it() -> None:
    """Colours last, behind frames; an activation and another input come before the first layer."""
    clips = torch.zeros(2, 3, 32, 40, 3)
    for clip, frame, image in zip(clips, (2, 0), spots(*PLACES), strict=True):
        clip[frame] = image[0, :, :, None]

    def run(conv: nn.Module, x: Tensor) -> Tensor:
        return class_scores(conv(x.relu().flatten(0, 1).permute(0, 3, 1, 2))).unflatten(0, (2, 3)).sum(1)

    with pytest.warns(UserWarning, match="Beside the map's 1, there are 1 activation"):
        maps = explain(Net(run, 3), clips, 0).map
    assert maps.shape == (2, 3, 32, 40)
    assert lies_at(maps[0, 2], PLACES[0])
    assert lies_at(maps[1, 0], PLACES[1])

    def towers(conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return class_scores(conv(a[:, None])) + class_scores(conv(b[:, None]))

    grey = spots(*PLACES)[:, 0]
    streams = explain(Net(towers), (grey, grey.flip(-1)), 0).streams
    assert streams is not None
    for maps, flipped in zip(streams.maps, (False, True), strict=True):
        assert maps is not None
        assert all(
            lies_at(values, (row, 39 - column if flipped else column), 6)
            for values, (row, column) in zip(maps, PLACES, strict=True)
        )


def test_few_grey_frames_in_the_batch_are_frames() -> None:
    clips = torch.zeros(2, 3, 32, 40)
    clips[0, 2], clips[1, 0] = spots(*PLACES)[:, 0]

    def run(conv: nn.Module, x: Tensor) -> Tensor:
        return class_scores(conv(x.flatten(0, 1)[:, None])).unflatten(0, (2, 3)).sum(1)

    maps = explain(Net(run), clips, 0).map
    assert maps.shape == (2, 3, 32, 40)
    assert lies_at(maps[0, 2], PLACES[0])
    assert lies_at(maps[1, 0], PLACES[1])


def test_warped_frames_keep_their_frame() -> None:
    clips = torch.zeros(2, 3, 1, 32, 40)
    clips[0, 2], clips[1, 0] = spots(*PLACES)

    def run(conv: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([class_scores(conv(warped(frame))) for frame in x.unbind(1)]).sum(0)

    maps = explain(Net(run), clips, 0).map
    assert lies_at(maps[0, 2], PLACES[0], 4)
    assert lies_at(maps[1, 0], PLACES[1], 4)


def test_frames_of_a_clip_keep_their_places() -> None:
    clips = torch.zeros(2, 5, 1, 32, 40)
    clips[0, 3], clips[1, 1] = spots(PLACES[0])[0], spots(PLACES[1])[0]

    def folded(conv: nn.Module, x: Tensor) -> Tensor:
        return class_scores(conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean(1)

    def looped(conv: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([class_scores(conv(frame)) for frame in x.unbind(1)]).mean(0)

    for run in (folded, looped):
        maps = explain(Net(run), clips, 0).map
        assert maps.shape == (2, 5, 32, 40)
        assert lies_at(maps[0, 3], PLACES[0])
        assert lies_at(maps[1, 1], PLACES[1])
        assert maps[0, [0, 1, 2, 4]].abs().sum() == maps[1, [0, 2, 3, 4]].abs().sum() == 0


def test_two_images_in_one_batch_of_an_encoder_have_a_map_each() -> None:
    def run(conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        first, second = conv(torch.cat([a, b])).relu().chunk(2)
        return (first + second).mean((2, 3))

    a, b = spots(*PLACES), spots(*PLACES[::-1])
    streams = explain(Net(run), (a, b), 0).streams
    assert streams is not None
    for maps, places in zip(streams.maps, (PLACES, PLACES[::-1]), strict=True):
        assert maps is not None
        assert all(lies_at(values, place) for values, place in zip(maps, places, strict=True))


def test_signals_and_sequences_keep_the_inputs_axes() -> None:
    """(batch, electrode, time) turned to (batch, 1, time, electrode), and (batch, length, feature)."""

    class Electrodes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None].transpose(2, 3)
            x = F.conv2d(F.conv2d(x, torch.ones(4, 1, 5, 1)), torch.ones(4, 4, 1, 6))
            return F.elu(x).mean((2, 3))

    signal = torch.zeros(1, 6, 60)
    signal[..., 40:43] = 1
    values = explain(Electrodes(), signal, 0).map[0]
    assert values.shape == (6, 60)
    assert torch.equal(values, values[:1].expand(6, 60))
    assert lies_at(values[0], (41,), 4)
    sequence = torch.zeros(1, 40, 5)
    sequence[:, 30:33] = 1

    class Sequence(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, torch.full((8, 5), 0.2)).relu().mean(1)

    values = explain(Sequence(), sequence, 0).map
    assert values.shape == (1, 40)
    assert values[0, :29].abs().sum() == values[0, 34:].abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 2)),
        min_size=1,
        max_size=4,
    )
)
def test_lines_are_the_centres_of_receptive_fields(layers: list[tuple[int, int, int, int, int]]) -> None:
    """Against centres worked out window by window. Each layer may count for its cell, half a place off."""
    size, windows, slack, stride_before = 64, [(float(i), float(i)) for i in range(64)], 0.0, 1

    def run(x: Tensor) -> Tensor:
        for kernel, stride, left, right, dilation in layers:
            x = F.conv1d(F.pad(x, (left, right)), torch.ones(1, 1, kernel), stride=stride, dilation=dilation)
        return x.relu()

    lines = [sum(window) / 2 for window in windows]
    for kernel, stride, left, right, dilation in layers:
        step = lines[1] - lines[0] if len(lines) > 1 else 1.0
        padded = [lines[0] + step * i for i in range(-left, len(lines) + right)]
        reach = (kernel - 1) * dilation
        if len(padded) - reach < 4:
            return
        lines = [(padded[i] + padded[i + reach]) / 2 for i in range(0, len(padded) - reach, stride)]
        slack += 0.5 * stride_before
        stride_before *= stride
    inside = [line for line in lines if -0.5 * stride_before < line + 0.5 < size + 0.5 * stride_before]
    if len(inside) < 3:
        return

    class Layers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return run(x).sum(2)

    (layer,) = explain(Layers(), torch.rand(1, 1, size), 0).layers
    inside = [line for line in lines if -0.5 * stride_before < line + 0.5 < size + 0.5 * stride_before]
    if layer.placement is None:  # evenly, to a quarter of a line's distance
        count = layer.map.shape[1]
        found = [(place + 0.5) * size / count - 0.5 for place in range(count)]
        slack += 0.25 * size / count
    else:
        found = [at * size - 0.5 for at in layer.placement.lines[0]]
    # Entries of nothing but padding lie nowhere, and those on the edge may.
    assert abs(len(found) - len(inside)) <= 2 + sum(left + right for _, _, left, right, _ in layers)
    for line in found:
        assert min(abs(line - centre) for centre in lines) <= slack + 1e-3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 96), min_size=2, max_size=6, unique=True),
    st.integers(3, 20),
    st.integers(0, 40),
    st.integers(60, 100),
)
def test_a_map_is_laid_between_its_lines(places: list[int], size: int, first: int, last: int) -> None:
    line, low, high = [place / 97 for place in sorted(places)], first / 101, last / 101
    values = torch.rand(1, len(line), dtype=torch.float64)
    (laid,) = laid_on(values, (size,), Placement((tuple(line),), ((low, high),), (False,)))
    for pixel in range(size):
        centre, half = (pixel + 0.5) / size, 0.5 / size
        if centre + half <= low or centre - half >= high:
            wanted = 0.0
        elif centre <= line[0] or centre >= line[-1]:
            wanted = float(values[0, 0 if centre <= line[0] else -1])
        else:
            after = next(at for at, place in enumerate(line) if place >= centre)
            part = (centre - line[after - 1]) / (line[after] - line[after - 1])
            wanted = float((1 - part) * values[0, after - 1] + part * values[0, after])
        assert float(laid[pixel]) == pytest.approx(wanted, abs=1e-9)


def test_frames_that_were_left_out_get_nothing() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]])
    (laid,) = laid_on(values, (5,), Placement(((0.1, 0.5, 0.9),), ((0.0, 1.0),), (True,)))
    assert laid.tolist() == [1, 0, 2, 0, 3]


def test_a_placement_is_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    explanation = explain(Net(MOVES["cropped"]), spots(*PLACES), 0)
    assert explanation.layers[0].placement is not None
    again = Explanation.load(explanation.save(tmp_path / "explanation"))
    assert again.layers[0].placement == explanation.layers[0].placement
    assert torch.equal(again.fuse(), explanation.map)


class ClassToken(nn.Module):
    """The mean of all tokens stands before them, as in attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.linear, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).relu().flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.linear(tokens).relu().mean(1))


def test_a_mean_before_the_tokens_hides_no_layer() -> None:
    torch.manual_seed(0)
    layers = explain(ClassToken(), torch.randn(1, 3, 64, 48), 0).layers
    assert [layer.kind for layer in layers] == ["activation", "activation"]


class Attention(nn.Module):
    """Attention with positions in the columns, over the whole image or in four windows folded into the batch."""

    def __init__(self, windows: bool) -> None:
        super().__init__()
        self.windows, self.patches, self.qkv = windows, nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 24, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        batch, channels, height, width = x.shape
        if self.windows:
            x = x.view(batch, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
            x = x.reshape(batch * 4, channels, height // 2, width // 2)
        q, k, v = self.qkv(x).flatten(2).split(8, 1)
        x = (v @ (q.mT @ k).softmax(-1).mT).view(x.shape).relu()
        return x.view(batch, -1, channels, *x.shape[2:]).mean((1, 3, 4))


@pytest.mark.parametrize("windows", [False, True])
def test_attention_keeps_the_queries_places(windows: bool) -> None:
    torch.manual_seed(0)
    (layer,) = explain(Attention(windows), torch.randn(1, 3, 48, 32), 0).layers
    assert layer.map.shape == (1, 12, 8)
