"""Where feature maps lie on the image: tokens, windows and heads brought back to the grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import examples
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, trace
from integrative_cam.errors import TapError


class Steps(nn.Module):
    """A convolution 1x1 with weights 1 and 10, so that the input's entries can be read off, then any function."""

    def __init__(self, run) -> None:
        super().__init__()
        self.run = run
        self.embed = nn.Conv2d(1, 2, 1, bias=False)
        self.embed.weight.data.copy_(torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1))
        self.token = nn.Parameter(torch.tensor([[[100.0, 200.0]]]))
        self.norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.embed(x))


def image(height: int, width: int, batch: int = 2) -> Tensor:
    """1, 2, 3, ... row by row, the next sample going on."""
    return torch.arange(1.0, 1 + batch * height * width).reshape(batch, 1, height, width)


def tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def windows(y: Tensor, size: int) -> Tensor:
    """(batch, channel, height, width) -> (batch * windows, size * size, channel)."""
    batch, channel, height, width = y.shape
    y = y.permute(0, 2, 3, 1).reshape(batch, height // size, size, width // size, size, channel)
    return y.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channel)


LAYOUTS = {
    "tokens": lambda m, y: tokens(y),
    "tokens with a class token": lambda m, y: torch.cat([m.token.expand(len(y), -1, -1), tokens(y)], 1),
    "tokens with registers behind": lambda m, y: torch.cat([tokens(y), m.token.expand(len(y), 3, -1)], 1),
    "class token taken off again": lambda m, y: torch.cat([m.token.expand(len(y), -1, -1), tokens(y)], 1)[:, 1:],
    "channels last": lambda m, y: y.permute(0, 2, 3, 1),
    "rows of tokens": lambda m, y: y.permute(0, 2, 3, 1).flatten(0, 1),
    "all tokens in the batch": lambda m, y: tokens(y).flatten(0, 1),
    "windows": lambda m, y: windows(y, 2),
    "windows on an axis": lambda m, y: windows(y, 2).reshape(len(y), -1, 4, 2),
    "shifted windows": lambda m, y: windows(y.roll((-1, -1), (2, 3)), 2),
    "padded windows": lambda m, y: windows(F.pad(y, (0, 2)), 4),
    "strided grid": lambda m, y: y.reshape(len(y), 2, 2, 2, 2, 3).permute(0, 3, 5, 2, 4, 1).reshape(-1, 4, 2),
    "heads": lambda m, y: tokens(y).reshape(len(y), -1, 2, 1).transpose(1, 2),
    "the other way round": lambda m, y: tokens(y).flip(1),
    "sequence first": lambda m, y: tokens(y).transpose(0, 1),
    "stacked and split": lambda m, y: torch.stack([y, y]).unbind(0)[1],
    "channels unfolded": lambda m, y: F.unfold(y, 1).unflatten(1, (1, 2)).squeeze(1),
    "pixels unshuffled and back": lambda m, y: F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2),
    "Fourier there and back": lambda m, y: torch.fft.irfft2(torch.fft.rfft2(y.double()), s=(4, 6)).float(),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_any_layout_is_brought_back_to_the_grid(layout: str) -> None:
    """4 x 6, so that rows and columns cannot be mistaken; the gradient is 1 in channel 0 and 2 in channel 1."""

    def run(m: Steps, y: Tensor) -> Tensor:
        at = LAYOUTS[layout](m, y).relu()
        batch, channel = y.new_tensor([0.0] * len(y)), at
        weight = torch.where(_channel(at) == 1, 2.0, 1.0)
        if len(at) == len(y):
            return (at * weight).flatten(1).sum(1)[:, None]
        total = (channel * weight).sum()
        return total[None, None].expand(len(y), 1) / len(y) + batch[:, None]

    images = image(4, 6)
    (tap,) = trace(Steps(run), images, target=0).taps
    expected = torch.cat([images, 10 * images], 1)
    torch.testing.assert_close(tap.activation, expected, atol=1e-4, rtol=0)
    assert tap.gradient[:, 0].unique().tolist() == [1]
    assert tap.gradient[:, 1].unique().tolist() == [2]


def _channel(at: Tensor) -> Tensor:
    """0 or 1 for each entry: the last axis, or the first after the batch, whichever has two."""
    for axis in (at.ndim - 1, 1):
        if at.shape[axis] == 2:
            return torch.arange(2.0).reshape([2 if each == axis else 1 for each in range(at.ndim)])
    raise AssertionError(at.shape)


def test_what_is_nowhere_on_the_grid_is_in_the_split_and_not_in_the_map() -> None:
    """Patch tokens 1..6 and 10..60 times gradient 1; the class token 100, 200 times gradient 1: 21 + 210 and 300."""
    model = Steps(lambda m, y: torch.cat([m.token.expand(len(y), -1, -1), tokens(y)], 1).relu().sum((1, 2))[:, None])
    found = trace(model, image(2, 3, 1), target=0)
    (tap,) = found.taps
    assert tap.shape == (2, 2, 3)
    assert tap.rest is not None
    assert (tap.rest.item(), tap.part.item()) == (300, 531)
    split = explain(model, image(2, 3, 1), target=0, readout="identity", bias="none").completeness
    assert (split.activation.item(), split.bypass.item()) == (531, 0)


def test_a_bias_of_tokens_splits_alike() -> None:
    """A bias of 1 and 5 at each of 6 patch tokens and one class token: 36 on the grid, 6 beside it."""

    def run(m: Steps, y: Tensor) -> Tensor:
        y = torch.cat([m.token.expand(len(y), -1, -1), tokens(y)], 1)
        return F.linear(y, torch.eye(2), torch.tensor([1.0, 5.0])).relu().sum((1, 2))[:, None]

    found = trace(Steps(run), image(2, 3, 1), target=0)
    (site,) = [site for site in found.sites if site.name == ":linear"]
    assert site.shift.shape == (1, 2, 2, 3)
    assert site.rest is not None
    assert (site.rest.item(), site.part.item()) == (6, 42)


def test_attention_leaves_tokens_where_the_queries_are() -> None:
    """softmax(q k') v, and the same in one function and in nn.MultiheadAttention, with keys in another order."""
    attention = nn.MultiheadAttention(2, 1, batch_first=True)
    ways = (
        lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1) @ v,
        F.scaled_dot_product_attention,
        lambda q, k, v: attention(q, k, v)[0],
    )
    for way in ways:

        def run(m: Steps, y: Tensor, way=way) -> Tensor:
            query = m.norm(tokens(y))
            return (way(query, query.flip(1), query.flip(1)) + tokens(y)).relu().sum((1, 2))[:, None]

        (tap,) = trace(Steps(run), image(2, 3), target=0).taps
        assert tap.shape == (2, 2, 3)
        # The residual part dominates: values rise along rows and from row to row.
        assert (tap.activation[:, 1].flatten(1).diff() > 0).all()


def test_patches_that_merge_make_a_coarser_grid() -> None:
    """Swin's merging: 4 x 6 positions, each 2 x 2 concatenated and mixed, are 2 x 3."""

    def run(m: Steps, y: Tensor) -> Tensor:
        y = y.permute(0, 2, 3, 1)
        y = torch.cat([y[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        return F.linear(y, torch.ones(1, 8)).flatten(1, 2).relu().sum((1, 2))[:, None]

    (tap,) = trace(Steps(run), image(4, 6), target=0).taps
    assert torch.equal(tap.activation, 11 * 4 * F.avg_pool2d(image(4, 6), 2))


def test_patches_cut_by_reshaping_are_a_grid() -> None:
    """No convolution: 4 x 6 pixels as 2 x 3 patches of 2 x 2, and a Linear on each."""

    class Patches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.reshape(len(x), 1, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 6, 4)
            return F.linear(x, torch.ones(1, 4)).relu().sum((1, 2))[:, None]

    (tap,) = trace(Patches(), image(4, 6), target=0).taps
    assert torch.equal(tap.activation, 4 * F.avg_pool2d(image(4, 6), 2))


def test_a_mean_over_the_image_is_nowhere_on_it() -> None:
    """Token mixing: 6 tokens become 8 mixtures of all, each of no place; then 6 tokens again, beside the old ones."""

    def run(m: Steps, y: Tensor) -> Tensor:
        mixed = F.linear(tokens(y).transpose(1, 2), torch.ones(8, 6)).relu()
        return (tokens(y) + F.linear(mixed, torch.ones(6, 8)).transpose(1, 2)).relu().sum((1, 2))[:, None]

    names = [tap.name for tap in trace(Steps(run), image(2, 3), target=0, taps=lambda tap: True).taps]
    assert ":relu" not in names
    assert ":relu#2" in names


@examples(20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 3), st.integers(0, 4), st.integers(1, 3))
def test_windows_of_any_size_and_shift(down: int, across: int, size: int, shift: int, batch: int) -> None:
    model = Steps(lambda m, y: _per_sample(windows(y.roll((shift, -shift), (2, 3)), size).relu(), len(y)))
    images = image(down * size, across * size, batch)
    (tap,) = trace(model, images, target=0).taps
    rolled = images.roll((shift, -shift), (2, 3))
    assert torch.equal(tap.activation[:, 0], rolled.roll((-shift, shift), (2, 3))[:, 0])


def _per_sample(values: Tensor, batch: int) -> Tensor:
    return values.reshape(batch, -1).sum(1)[:, None]


def test_sequences_of_feature_vectors_keep_their_axis() -> None:
    """An input (batch, time, feature) that a Linear takes first: features are channels."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    (tap,) = trace(model, torch.randn(2, 5, 3), target=0).taps
    assert tap.shape == (4, 5)


def test_data_parallel_is_looked_into() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    model[3].weight.data.abs_()
    model[0].weight.data.abs_()
    found = explain(nn.DataParallel(model), image(4, 6))
    assert [layer.name for layer in found.layers] == ["1"]
    assert torch.equal(found.map, explain(model, image(4, 6)).map)


def test_a_scripted_part_is_named() -> None:
    part = torch.jit.trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), image(4, 6))
    with pytest.warns(UserWarning, match=r"Some layers are not in the map. The model's part 0 is a TorchScript module"):
        explain(nn.Sequential(part, nn.Flatten(), nn.Linear(48, 2)), image(4, 6))
    seen = nn.Sequential(part, nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    with pytest.warns(UserWarning, match=r"Some layers are not in the map. The model's part 0 is"):
        assert [tap.name for tap in IntegrativeCAM(seen).taps(image(4, 6))][-1] == "2"


def test_a_program_of_torch_export_is_told_from_a_network_without_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (image(4, 6),))
    with pytest.raises(TapError, match=r"program.module\(\) of torch.export"):
        explain(program.module(), image(4, 6))


def _shapes(model: nn.Module, side: int = 12) -> list[tuple[int, ...]]:
    with torch.no_grad():  # alive whatever the seed
        for each in model.parameters():
            each.abs_()
    return [tap.shape for tap in IntegrativeCAM(model.eval()).taps(torch.rand(2, 3, side, side))]


class Rearranged(nn.Module):
    """A convolution and a ReLU behind something done to the image's axes."""

    def __init__(self, rearrange: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.rearrange, self.conv = rearrange, nn.Conv2d(channels, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(self.rearrange(F.relu(images))).relu().mean((2, 3))


@pytest.mark.parametrize(
    ("rearrange", "channels", "space"),
    [
        (lambda x: F.pad(x, (0, 1, 2, 3)), 3, (12, 11)),  # what lies beyond the image is left out
        (lambda x: F.pad(x[..., 2:-1, 3:], (1, 1, 1, 1)), 3, (9, 9)),
        (lambda x: x[:, :, ::2, ::3], 3, (4, 2)),
        (lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), 6, (4, 4)),  # the focus layer of detectors
        (lambda x: F.pixel_unshuffle(x, 2), 12, (4, 4)),
        (lambda x: F.channel_shuffle(x, 3), 3, (10, 10)),
    ],
)
def test_a_picture_stays_one(rearrange: Callable[[Tensor], Tensor], channels: int, space: tuple[int, ...]) -> None:
    assert _shapes(Rearranged(rearrange, channels))[-1] == (4, *space)
