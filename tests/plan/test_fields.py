"""Small networks of the kinds that other fields use: their taps lie where their input gradients say that they look."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from survey import places
from survey.fields import Network
from survey.places import by_evidence, fault, looks, wrong_turns
from torch import Tensor, nn

from integrative_cam import explain


class Shaped(nn.Module):
    """A part that is a function of the tensor alone."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Block(nn.Module):
    """Attention and a feed-forward part on (batch, token, channel), of which `reduce` makes keys and values."""

    def __init__(self, width: int, reduce: nn.Module | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.reduce = reduce or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        keys = self.reduce(self.first(x))
        x = x + self.attention(self.first(x), keys, keys, need_weights=False)[0]
        return x + self.mlp(self.second(x))


def classified(width: int, over: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(Shaped(lambda x: x.mean(over)), nn.Linear(width, 3))


def of_electrodes() -> Network:
    """braindecode's ShallowFBCSPNet: (batch, 1, time, electrode) inside, and a logarithm of a mean of squares."""
    return Network(
        nn.Sequential(
            Shaped(lambda x: x[..., None].permute(0, 3, 2, 1)),
            nn.Conv2d(1, 6, (9, 1)),
            nn.Conv2d(6, 6, (1, 8), bias=False),
            nn.BatchNorm2d(6),
            Shaped(torch.square),
            nn.AvgPool2d((15, 1), (5, 1)),
            Shaped(lambda x: x.clamp_min(1e-6).log()),
            classified(6, (2, 3)),
        ),
        (8, 160),
        ("electrode", "time"),
        whole=("electrode",),
    )


class Causal(nn.Module):
    """A residual block of a temporal convolutional network."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=dilation) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(F.pad(y, (self.past, 0))).relu()
        return (x + y).relu()


def of_causal_convolutions() -> Network:
    return Network(
        nn.Sequential(nn.Conv1d(2, 8, 1), *(Causal(8, 2**level) for level in range(3)), classified(8, (2,))),
        (2, 120),
        ("channel", "time"),
    )


def of_spectrogram() -> Network:
    """transformers' AST: (batch, time, mel), turned over before overlapping patches are cut."""
    return Network(
        nn.Sequential(
            Shaped(lambda x: x[:, None].transpose(2, 3)),
            nn.Conv2d(1, 16, 8, 5),
            Shaped(lambda x: x.flatten(2).transpose(1, 2)),
            Shaped(lambda x: torch.cat([torch.ones(len(x), 2, 16), x], 1)),
            Block(16),
            Block(16),
            Shaped(lambda x: x[:, :2].mean(1)),
            nn.Linear(16, 3),
        ),
        (80, 32),
        ("time", "mel"),
    )


def of_waveform() -> Network:
    """transformers' wav2vec2: (batch, time), unpadded convolutions, then tokens with convolved positions."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(16, 16, 4, padding=2, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            return x + F.gelu(self.conv(x.transpose(1, 2))[..., :-1]).transpose(1, 2)

    return Network(
        nn.Sequential(
            Shaped(lambda x: x[:, None]),
            nn.Conv1d(1, 16, 10, 5, bias=False),
            nn.GroupNorm(16, 16),
            nn.GELU(),
            nn.Conv1d(16, 16, 3, 2, bias=False),
            nn.GELU(),
            Shaped(lambda x: x.transpose(1, 2)),
            nn.LayerNorm(16),
            Positions(),
            Block(16),
            classified(16, (1,)),
        ),
        (400,),
        ("time",),
    )


def of_reduced_keys() -> Network:
    """transformers' SegFormer and PVT: keys and values at fewer places than queries, and a map at the end."""

    class Reduce(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.transpose(1, 2).unflatten(2, (16, 12))).flatten(2).transpose(1, 2)

    return Network(
        nn.Sequential(
            nn.Conv2d(3, 16, 7, 4, 3),
            Shaped(lambda x: x.flatten(2).transpose(1, 2)),
            Block(16, Reduce()),
            Shaped(lambda x: x.transpose(1, 2).unflatten(2, (16, 12))),
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.GELU(),
            nn.Upsample(scale_factor=4, mode="bilinear"),
            nn.Conv2d(16, 2, 1),
        ),
        (3, 64, 48),
        ("channel", "height", "width"),
    )


def of_channels_last() -> Network:
    """keras 3 on torch: (batch, height, width, channel), asymmetric padding of strided layers."""
    first, last = Shaped(lambda x: x.permute(0, 3, 1, 2)), Shaped(lambda x: x.permute(0, 2, 3, 1))
    return Network(
        nn.Sequential(
            *(first, Shaped(lambda x: F.pad(x, (0, 1, 0, 1))), nn.Conv2d(3, 8, 3, 2), last, nn.SiLU()),
            *(first, nn.BatchNorm2d(8), last, first, nn.Conv2d(8, 8, 3, 1, 1, groups=8), last, nn.ReLU6()),
            classified(8, (1, 2)),
        ),
        (40, 48, 3),
        ("height", "width", "channel"),
    )


def of_volume_windows() -> Network:
    """MONAI's SwinUNETR and torchvision's swin3d: shifted windows in three dimensions, and a way past them."""

    def cut(x: Tensor) -> Tensor:
        b, d, h, w, c = x.shape
        x = x.roll((-1, -1, -1), (1, 2, 3)).view(b, d // 2, 2, h // 2, 2, w // 2, 2, c)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 8, c)

    def joined(x: Tensor) -> Tensor:
        x = x.view(-1, 4, 4, 6, 2, 2, 2, 8).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(-1, 8, 8, 12, 8).roll((1, 1, 1), (1, 2, 3))

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.conv = Block(8), nn.Conv3d(1, 8, 2, 2)
            self.out = nn.Sequential(nn.Conv3d(16, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU())
            self.head = nn.Conv3d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            skip = self.conv(x)
            x = joined(self.block(cut(skip.permute(0, 2, 3, 4, 1)))).permute(0, 4, 1, 2, 3)
            return self.head(F.interpolate(self.out(torch.cat([skip, x], 1)), scale_factor=2, mode="trilinear"))

    return Network(Windows(), (1, 16, 16, 24), ("channel", "depth", "height", "width"))


def of_several_scales() -> Network:
    """ultralytics' detectors: pools of growing size side by side, two scales of boxes in one row."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.SiLU()
            self.fine, self.coarse = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 2, 1)
            self.pooled, self.heads = nn.Conv2d(24, 8, 1), nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            fine = self.act(self.fine(x))
            coarse = self.act(self.coarse(fine))
            pools = [coarse]
            for _ in range(2):
                pools.append(F.max_pool2d(pools[-1], 3, 1, 1))
            coarse = self.act(self.pooled(torch.cat(pools, 1)))
            rows = [head(each).flatten(2) for head, each in zip(self.heads, (fine, coarse), strict=True)]
            return torch.cat(rows, 2)

    return Network(Detector(), (3, 64, 48), ("channel", "height", "width"))


def of_attention_pool() -> Network:
    """open_clip's RN50: the mean as a token before all positions, whose attention over them is the embedding."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.places = nn.MultiheadAttention(16, 2), nn.Parameter(torch.randn(1 + 12 * 8, 1, 16) / 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).permute(2, 0, 1)
            tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + self.places
            pooled: Tensor = self.attention(tokens[:1], tokens, tokens, need_weights=False)[0][0]
            return F.normalize(pooled, dim=-1)

    body = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), Pooled()]
    return Network(nn.Sequential(*body), (3, 48, 32), ("channel", "height", "width"))


def of_queries() -> Network:
    """transformers' DETR: learned queries that read the image by attention."""

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block = nn.Conv2d(3, 16, 3, 4, 1), Block(16)
            self.queries = nn.Parameter(torch.randn(5, 16))
            self.reading = nn.MultiheadAttention(16, 2, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.block(self.conv(x).relu().flatten(2).transpose(1, 2))
            queries = self.queries.expand(len(x), -1, -1)
            return self.mlp(queries + self.reading(queries, tokens, tokens, need_weights=False)[0])

    return Network(Queries(), (3, 48, 32), ("channel", "height", "width"))


KINDS = {
    each.__name__.removeprefix("of_").replace("_", " "): each
    for each in (
        *(of_electrodes, of_causal_convolutions, of_spectrogram, of_waveform, of_reduced_keys, of_channels_last),
        *(of_volume_windows, of_several_scales, of_attention_pool, of_queries),
    )
}


@pytest.mark.parametrize("kind", KINDS)
def test_taps_lie_where_they_look(kind: str) -> None:
    """And nothing is left out; what reads the whole image at once, such as learned queries, has a single position."""
    torch.manual_seed(0)
    network = KINDS[kind]()
    network.model.eval()
    images = torch.randn(1, *network.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation = explain(network.model, images, lambda output: output.square().sum())
    assert explanation.map.shape == (1, *(network.shape[axis - 1] for axis in network.space))
    found = list(looks(network, images))
    assert len({look.tap for look in found}) == len(explanation.layers)
    assert [look for look in found if not look.is_right or look.off > 0.15] == []


@pytest.mark.filterwarnings("ignore:The map of image 0 is blank")
@pytest.mark.parametrize("kind", ["electrodes", "causal convolutions", "channels last"])
def test_planted_evidence_is_in_the_map(kind: str) -> None:
    torch.manual_seed(0)
    network = KINDS[kind]()
    network.model.eval()
    assert by_evidence(network, 0) == "ok"


def test_maps_that_are_stretched_mirrored_or_turned_are_called_wrong() -> None:
    boxes = [[(3, 7), (18, 24)], [(3, 7), (6, 12)]]
    right = [torch.full((20, 30), 0.01) for _ in boxes]
    right[0][2:8, 16:25], right[1][2:7, 5:14] = 1, 1
    assert fault(right, boxes) == ""
    turns = wrong_turns(boxes[0], (20, 30))
    assert len(turns) == 7, "3 mirror images, and the transposed one with its own"
    for turn in turns.values():
        assert fault([turn(each) for each in right], boxes) != ""
    assert fault(right[::-1], boxes) != ""
    assert fault([right[0], 0 * right[1]], boxes) == "blank"
    assert fault([torch.ones(20, 30)] * 2, boxes) != ""
    # Along an axis that is summed over at once there is no place, and along the other one there is.
    whole = [[(0, 20), columns] for _, columns in boxes]
    assert fault([each.mean(0, keepdim=True).expand(20, 30) for each in right], whole) == ""
    assert fault([each.mean(1, keepdim=True).expand(20, 30) for each in right], whole) != ""


def test_a_place_that_is_mirrored_or_turned_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a tap is read the other way round, and along the other axis."""
    torch.manual_seed(0)
    network = of_attention_pool()
    images = torch.randn(1, *network.shape)
    original = places._line
    monkeypatch.setattr(places, "_line", lambda *at: 1 - original(*at))
    assert not any(look.is_right for look in looks(network, images))
    monkeypatch.undo()
    network = replace(network, model=nn.Sequential(Shaped(lambda x: x.mT), network.model))
    images = torch.randn(1, 3, 32, 48)
    seen = places._seen
    monkeypatch.setattr(places, "_seen", lambda *at: seen(*at).mT)
    assert not any(look.is_right for look in looks(replace(network, shape=(3, 32, 48)), images))
