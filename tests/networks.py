"""Tiny networks in 1, 2 and 3 dimensions: deterministic, in evaluation mode, with biases and statistics that count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from integrative_cam._maps.traced import BiasSite, Input, Tap, Trace

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}

SPACES = {1: (16,), 2: (8, 4), 3: (8, 4, 4)}
"""Every axis a power of two: feature maps halve exactly."""
ODD_SPACES = {1: (11,), 2: (9, 6), 3: (5, 4, 6)}
AS_THEY_ARE = {"regions": None, "centred": False}
"""Gradients and activations are neither averaged nor centred, as in formulas that speak of these themselves."""
CHANNELS = 2
CLASSES = 4


def examples(count: int) -> settings:
    """So many examples, the same in every run, not shrunk: a smaller seed is no simpler."""
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=count, deadline=None, derandomize=True, phases=phases)


@dataclass(frozen=True)
class Options:
    """How the convolutions look; `norm` is "affine", "plain" (no weight, no bias) or None."""

    dims: int = 2
    seed: int = 0
    norm: str | None = None
    bias: bool = True
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    inplace: bool = False
    classes: int = CLASSES


def options(dims: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Options]:
    """Any of them."""
    return st.builds(
        Options,
        dims=dims or st.sampled_from([1, 2, 3]),
        seed=st.integers(0, 10_000),
        norm=st.sampled_from(["affine", "plain", None]),
        bias=st.booleans(),
        stride=st.sampled_from([1, 2]),
        groups=st.sampled_from([1, 2]),
        dilation=st.sampled_from([1, 2]),
        inplace=st.booleans(),
    )


def unit(option: Options, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm where asked for, ReLU."""
    return nn.Sequential(*linear_unit(option, inputs, outputs, stride, kernel), nn.ReLU(inplace=option.inplace))


def linear_unit(option: Options, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution and batch norm where asked for."""
    dilation = option.dilation if kernel > 1 else 1
    conv = CONV[option.dims](
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=option.groups,
        bias=option.bias,
    )
    norm = [NORM[option.dims](outputs, affine=option.norm == "affine")] if option.norm else []
    return nn.Sequential(conv, *norm)


def head(option: Options, channels: int) -> nn.Sequential:
    """Global average pooling and one linear layer."""
    return nn.Sequential(GLOBAL_POOL[option.dims](1), nn.Flatten(), nn.Linear(channels, option.classes))


def plain(option: Options) -> nn.Module:
    """Three convolutions, each with a ReLU."""
    return nn.Sequential(
        unit(option, CHANNELS, 4), unit(option, 4, 6, option.stride), unit(option, 6, 4), head(option, 4)
    )


def vgg(option: Options) -> nn.Module:
    """Convolutions, max pooling, and two linear layers with a ReLU in between."""
    pool = MAX_POOL[option.dims]
    return nn.Sequential(
        unit(option, CHANNELS, 4),
        pool(2),
        unit(option, 4, 4, option.stride),
        unit(option, 4, 6),
        GLOBAL_POOL[option.dims](1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.ReLU(inplace=option.inplace),
        nn.Linear(5, option.classes),
    )


class Block(nn.Module):
    """ReLU(convolutions of x + x), with x through a strided convolution where the shape changes."""

    def __init__(self, option: Options, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = unit(option, inputs, outputs, stride)
        self.second = linear_unit(option, outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.skip = linear_unit(option, inputs, outputs, stride, kernel=1) if changes else nn.Sequential()
        self.relu = nn.ReLU(inplace=option.inplace)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        out += self.skip(x)
        return self.relu(out)


def resnet(option: Options) -> nn.Module:
    """A stem, a block with identity skip, a block with a convolution in its skip."""
    return nn.Sequential(
        unit(option, CHANNELS, 4), Block(option, 4, 4, 1), Block(option, 4, 6, option.stride), head(option, 6)
    )


class Branches(nn.Module):
    """Different views of x side by side: concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception(option: Options) -> nn.Module:
    """Branches 1x1, 1x1-3x3, average pool-1x1 and x itself, concatenated, after and before a plain unit."""
    average = AVERAGE_POOL[option.dims]
    return nn.Sequential(
        unit(option, CHANNELS, 4),
        Branches(
            unit(option, 4, 2, kernel=1),
            nn.Sequential(unit(option, 4, 2, kernel=1), unit(option, 2, 2)),
            nn.Sequential(average(3, stride=1, padding=1), unit(option, 4, 2, kernel=1)),
            nn.Identity(),
        ),
        unit(option, 10, 4, option.stride),
        average(2),
        head(option, 4),
    )


BUILDERS: dict[str, Callable[[Options], nn.Module]] = {
    "plain": plain,
    "vgg": vgg,
    "resnet": resnet,
    "inception": inception,
}


class Decoder(nn.Module):
    """Down and up again with a skip, and constants added in every way there is, some of them in place."""

    def __init__(self, option: Options) -> None:
        super().__init__()
        self.down = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.deep = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.mix = nn.Conv2d(8, 4, 1)
        self.linear = nn.Linear(4, option.classes)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.offset = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("mean", torch.randn(1, CHANNELS, 1, 1))
        self.inplace = option.inplace

    def forward(self, x: Tensor) -> Tensor:
        x = 0.3 - torch.sub(x, self.mean, alpha=2) / 0.7
        x = F.relu(self.norm(self.down(x)), inplace=self.inplace)
        y = 0.1 + F.relu(self.deep(x))
        y = F.leaky_relu(self.up(y), inplace=self.inplace)
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear")
        y = self.mix(torch.cat([x, y], 1))
        y += self.scale * self.offset
        y = F.max_pool2d(F.relu(y), 2).mean((2, 3))
        return torch.addmm(self.linear.bias, y, self.linear.weight.T)


class Tokens(nn.Module):
    """Convolution, then linear layers over positions, (batch, position, channel), with a residual sum."""

    def __init__(self, option: Options) -> None:
        super().__init__()
        self.embed = nn.Conv1d(CHANNELS, 6, 3, padding=1)
        self.wide = nn.Linear(6, 8)
        self.relu = nn.ReLU(inplace=option.inplace)
        self.back = nn.Linear(8, 6)
        self.linear = nn.Linear(6, option.classes)
        self.inplace = option.inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).transpose(1, 2).contiguous()
        y = self.back(self.relu(self.wide(x)))
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.linear(F.relu(y).mean(1))


FUSIONS = ("early", "middle", "sum", "late")


class Fusing(nn.Module):
    """Two inputs, fused by concatenation at once, of feature maps or of pooled features; or by a sum of feature maps.

    Except for early fusion the second input may be of another size.
    """

    def __init__(self, option: Options, fusion: str) -> None:
        super().__init__()
        self.fusion, self.dims = fusion, option.dims
        early, channels = fusion == "early", {"early": 4, "middle": 8, "sum": 4, "late": 4}[fusion]
        self.first, self.second = (
            nn.Identity() if early else nn.Sequential(unit(option, CHANNELS, 4), unit(option, 4, 4, option.stride))
            for _ in range(2)
        )
        self.fused = nn.Identity() if fusion == "late" else nn.Sequential(unit(option, channels, 4), unit(option, 4, 4))
        self.hidden = nn.Sequential(nn.Linear(8 if fusion == "late" else 4, 6), nn.ReLU(inplace=option.inplace))
        self.linear = nn.Linear(6, option.classes)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = self.first(first), self.second(second)
        if self.fusion == "late":
            features = torch.cat([first.flatten(2).mean(2), second.flatten(2).mean(2)], 1)
        else:
            second = getattr(F, f"adaptive_avg_pool{self.dims}d")(second, first.shape[2:])
            together = first + second if self.fusion == "sum" else torch.cat([first, second], 1)
            features = self.fused(together).flatten(2).mean(2)
        return self.linear(self.hidden(features))


class Mixed(nn.Module):
    """A picture, a signal and a vector, fused late."""

    def __init__(self, option: Options) -> None:
        super().__init__()
        flat, line = replace(option, dims=2), replace(option, dims=1)
        self.see = nn.Sequential(unit(flat, CHANNELS, 4), unit(flat, 4, 4, option.stride))
        self.hear = nn.Sequential(unit(line, CHANNELS, 4), unit(line, 4, 4, option.stride))
        self.read = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=option.inplace))
        self.linear = nn.Linear(12, option.classes)

    def forward(self, picture: Tensor, signal: Tensor, vector: Tensor) -> Tensor:
        seen, heard = self.see(picture).mean((2, 3)), self.hear(signal).mean(2)
        return self.linear(torch.cat([seen, heard, self.read(vector)], 1))


def build(kind: str | Callable[[Options], nn.Module], option: Options) -> nn.Module:
    """A float64 network in evaluation mode, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(option.seed)
        model = (BUILDERS[kind] if isinstance(kind, str) else kind)(option).double().eval()
        for layer in model.modules():
            if isinstance(layer, (*CONV.values(), nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return perturbed(model, option.seed + 1)


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """Shift every bias and every running mean by noise of 0.1; draw scales and running variances from 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(seed)

    def shift(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype) * 0.1

    def spread(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype) + 0.5

    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias += shift(module.bias)
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.running_mean += shift(module.running_mean)
                module.running_var.copy_(spread(module.running_var))
                if module.weight is not None:
                    module.weight.copy_(spread(module.weight))
    return model


def images(option: Options, space: tuple[int, ...] | None = None, batch: int = 2) -> Tensor:
    """Normal noise of the option's dimensions, float64."""
    generator = torch.Generator().manual_seed(option.seed + 2)
    return noise(generator, batch, CHANNELS, *(space or SPACES[option.dims]))


Pair = tuple[Tensor, Tensor]


def trace_of(
    taps: Sequence[Pair], sites: Sequence[Pair] = (), behind: Tensor | None = None, score: Tensor | None = None
) -> Trace:
    """A trace with these (activation, gradient) at its taps and (shift, gradient) at its bias sites, no network."""
    first = taps[0][0]
    return Trace(
        taps=tuple(Tap(f"tap{index}", "activation", *pair, path_share=Fraction(1)) for index, pair in enumerate(taps)),
        sites=tuple(BiasSite(f"site{index}", gradient, shift) for index, (shift, gradient) in enumerate(sites)),
        behind=torch.ones(len(taps), len(sites), dtype=torch.bool) if behind is None else behind,
        score=first.new_zeros(len(first)) if score is None else score,
        output=first.new_zeros(len(first), CLASSES),
        index=torch.zeros(len(first), dtype=torch.long),
        names=("0",) * len(first),
        inputs=(
            Input(
                name="images",
                product=first.new_zeros(len(first), 1),
                space=tuple(first.shape[2:]),
                path_shares=(Fraction(1),) * len(taps),
                fused=tuple(range(len(taps))),
                sites=tuple(range(len(sites))),
            ),
        ),
    )


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal noise, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
