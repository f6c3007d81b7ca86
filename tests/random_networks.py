"""Calls drawn at random: networks with every kind of layer, recipes, targets; and what must hold for each."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrative_cam import CamError, Explanation, explain, targets
from integrative_cam.recipe import Recipe

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LINEAR_PIECES: tuple[Callable[[], Any], ...] = (
    nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: F.relu, lambda: torch.relu, lambda: torch.relu_,
    lambda: lambda x: x.clamp_min(0), lambda: nn.LeakyReLU(0.1), nn.PReLU, lambda: lambda x: F.leaky_relu_(x, 0.2),
)  # fmt: skip
CURVED: tuple[Callable[[], Any], ...] = (
    nn.GELU, nn.SiLU, lambda: nn.SiLU(inplace=True), nn.Hardswish, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU,
    nn.Mish, lambda: F.silu, lambda: torch.tanh_, lambda: lambda x: x * torch.sigmoid(x), lambda: F.selu,
)  # fmt: skip
CLASSES = 5
HALF = (torch.float16, torch.bfloat16)
"""torch has no mean pooling of volumes for these on the CPU."""
CLOSE = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: None, torch.float16: None}
"""How far the map of a sample alone may be from its map in the batch; rounding to 8 or 11 bits moves maxima."""


class Plain(nn.Module):
    """A function as a module, so that it can stand in a list."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """Convolution, norm, activation; with a skip, a gate, branches, pooling or a second use of the activation."""

    def __init__(self, draw: random.Random, dims: int, inputs: int, outputs: int, exact: bool) -> None:
        super().__init__()
        groups = draw.choice([1, 1, 2]) if inputs % 2 == 0 else 1
        dilation = draw.choice([1, 1, 2])
        options = {"groups": groups, "bias": draw.random() < 0.7, "dilation": dilation}
        self.transposed = draw.random() < 0.1
        kind = TRANSPOSED if self.transposed else CONV
        padding = {} if self.transposed else {"padding_mode": draw.choice(["zeros", "zeros", "replicate"])}
        self.conv = kind[dims](inputs, outputs, 3, padding=dilation, stride=1, **options, **padding)
        norms = [nn.Identity(), BATCH_NORM[dims](outputs), BATCH_NORM[dims](outputs, affine=False)]
        if not exact:
            norms += [nn.GroupNorm(2, outputs), INSTANCE_NORM[dims](outputs, affine=True)]
        self.norm = draw.choice(norms)
        self.act = _activation(draw, exact)
        self.again = draw.random() < 0.2
        self.skip = draw.choice(["none", "none", "add", "add_", "cat"])
        self.side = CONV[dims](inputs, outputs, 1) if self.skip != "none" else nn.Identity()
        self.mix = CONV[dims](2 * outputs, outputs, 1) if self.skip == "cat" else nn.Identity()
        self.gate = nn.Linear(outputs, outputs) if not exact and draw.random() < 0.2 else None
        self.dropout = nn.Dropout(0.3) if draw.random() < 0.2 else nn.Identity()
        self.pool = draw.choice(["none", "none", "max", "mean", "stride"])
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        if self.skip == "add":
            out = out + self.side(x)
        elif self.skip == "add_":
            out += self.side(x)
        elif self.skip == "cat":
            out = self.mix(torch.cat([out, self.side(x)], 1))
        out = self.dropout(self.act(out))
        if self.again:
            out = self.act(out - 0.1)
        if self.gate is not None:
            shares = torch.sigmoid(self.gate(out.flatten(2).mean(2)))
            out = out * shares.reshape(*shares.shape, *[1] * self.dims)
        if min(out.shape[2:]) >= 4:
            if self.pool == "max":
                out = MAX_POOL[self.dims](out, 2)
            elif self.pool == "mean" and not (self.dims == 3 and out.dtype in HALF):
                out = MEAN_POOL[self.dims](out, 2)
            elif self.pool == "stride":
                out = out[..., ::2]
        return out


def _activation(draw: random.Random, exact: bool) -> nn.Module:
    made = draw.choice(LINEAR_PIECES if exact or draw.random() < 0.5 else CURVED)()
    return made if isinstance(made, nn.Module) else Plain(made)


class Network(nn.Module):
    """One or two inputs, blocks, a head; logits alone, or within a tuple or a dict."""

    def __init__(self, draw: random.Random, dims: int, channels: tuple[int, ...], exact: bool) -> None:
        super().__init__()
        width = draw.choice([4, 6])
        self.stems = nn.ModuleList(Block(draw, dims, each, width, exact) for each in channels)
        self.blocks = nn.ModuleList(Block(draw, dims, width, width, exact) for _ in range(draw.randint(0, 3)))
        self.head = nn.Linear(width, CLASSES, bias=draw.random() < 0.8)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU()) if draw.random() < 0.3 else nn.Identity()
        self.wrapped = draw.choice(["plain", "plain", "tuple", "dict"])
        self.overwrites = draw.random() < 0.2

    def forward(self, *images: Tensor) -> Any:
        if self.overwrites:
            images = tuple(each.mul_(2) for each in images)
        x = torch.stack([stem(each).flatten(2).mean(2) for stem, each in zip(self.stems, images, strict=True)]).sum(0)
        if len(images) == 1:
            y = self.stems[0](images[0])
            for block in self.blocks:
                y = block(y)
            x = y.flatten(2).mean(2)
        logits = self.head(self.hidden(x))
        return {"plain": logits, "tuple": (logits, logits.mean()), "dict": {"logits": logits, "features": x}}[
            self.wrapped
        ]


@dataclass(frozen=True)
class Call:
    """One call of `explain`. `exact`: the score's parts must add up without remainder."""

    model: nn.Module
    images: Any
    target: Any
    recipe: Recipe
    context: Callable[[], AbstractContextManager[Any]]
    dtype: torch.dtype
    exact: bool

    @property
    def batch(self) -> int:
        first = self.images if isinstance(self.images, Tensor) else self.images[0]
        return len(first)


def drawn(seed: int) -> Call:
    """The call of that number, the same in every run."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dims, batch, exact = draw.choice([1, 2, 2, 2, 3]), draw.choice([1, 2, 3, 5]), draw.random() < 0.5
    channels = tuple(draw.choice([1, 2, 3]) for _ in range(draw.choice([1, 1, 1, 2])))
    dtype = draw.choice([torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16])
    model = Network(draw, dims, channels, exact)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    model = model.to(dtype).train(draw.random() < 0.4)
    for parameter in model.parameters():
        parameter.requires_grad_(draw.random() < 0.8)
    space = tuple(draw.choice([6, 7, 9, 12]) for _ in range(dims))
    images = [torch.randn(batch, each, *space).to(dtype) for each in channels]
    if draw.random() < 0.1:
        images = [each.transpose(-1, -1).requires_grad_() for each in images]
    contexts: list[Callable[[], AbstractContextManager[Any]]] = [nullcontext, nullcontext, torch.no_grad]
    if not any(each.requires_grad for each in images):
        contexts.append(torch.inference_mode)
    return Call(
        model,
        images[0] if len(images) == 1 else tuple(images),
        _target(draw, batch, model),
        _recipe(draw),
        draw.choice(contexts),
        dtype,
        exact,
    )


def _target(draw: random.Random, batch: int, model: Network) -> Any:
    index = draw.randrange(CLASSES)
    choices = [None, index, [draw.randrange(CLASSES) for _ in range(batch)]]
    choices += [
        torch.tensor([draw.randrange(CLASSES) for _ in range(batch)]),
        targets.contrast(index, (index + 1) % CLASSES),
    ]
    choices += [
        targets.probability(index),
        targets.total([index, (index + 2) % CLASSES]),
        targets.contrast(index, "rest"),
    ]
    if model.wrapped == "plain":

        def pulled(output: Tensor) -> Tensor:
            return output[index] - 0.5 * output[0]

        pulled.has_unit = True  # type: ignore[attr-defined]
        choices += [pulled]
    return draw.choice(choices)


def _recipe(draw: random.Random) -> Recipe:
    return Recipe(
        stride_exponent=draw.choice([0.0, 4.0]),
        stage_share=draw.choice([0.0, 0.5, 1.0]),
        gamma=draw.choice([0.75, 1.0, 2.0]),
        taps=draw.choice(["activations", "activations", "stages", "last", "*"]),
        readout=draw.choice(["identity", "exp", "softmax", "sigmoid"]),
        aggregation=draw.choice(["position", "channel", "active"]),
        negative_share=draw.choice([0.0, 0.5, 1.0]),
        bias=draw.choice(["layers", "complete", "residual", "none"]),
        bias_share=draw.choice([0.0, 0.2, 0.9]),
        weighting=draw.choice(["joint", "product", "average", "geometric", "uniform", "last"]),
        weight_exponent=draw.choice([0.25, 1.0, 3.0]),
        path_exponent=draw.choice([0.0, 1.0, 4.0]),
        signed=draw.random() < 0.5,
        fusion=draw.choice(["sum", "max", "geometric", "product"]),
    )


def outcome(seed: int) -> tuple[str, list[str]]:
    """What came of a call, "map" or the name of its CamError, and what is wrong with it."""
    call = drawn(seed)
    before, state = _state(call.model), torch.get_rng_state()
    copies = [each.detach().clone() for each in _tensors(call.images)]
    wrong: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with call.context():
                found: Explanation | None = explain(call.model, call.images, call.target, call.recipe)
            what = "map"
        except CamError as error:
            found, what = None, f"{type(error).__name__}: {str(error)[:60]}"
        wrong += [f"changed: {each}" for each in _changes(before, _state(call.model))]
        if not torch.equal(state, torch.get_rng_state()):
            wrong.append("changed: random numbers")
        if not all(torch.equal(a, b) for a, b in zip(copies, _tensors(call.images), strict=True)):
            wrong.append("changed: images")
        if found is not None:
            wrong += _wrong(call, found)
    return what, wrong


def _wrong(call: Call, found: Explanation) -> list[str]:
    wrong = []
    space = _tensors(call.images)[0].shape[2:]
    maps = [found.map] if found.streams is None else [each for each in found.streams.maps if each is not None]
    if found.map.shape != (call.batch, *space):
        wrong.append(f"map: shape {tuple(found.map.shape)}")
    for each in maps:
        highest = each.flatten(1).amax(1)
        if not each.isfinite().all() or each.min() < 0 or each.max() > 1:
            wrong.append("map: not finite, or outside of [0, 1]")
        elif not ((highest - 1).abs().lt(1e-5) | highest.eq(0)).all():
            wrong.append(f"map: maximum {highest.tolist()}")
    sums = found.weights.double().sum(1)
    if not found.weights.isfinite().all() or found.weights.min() < 0 or not (sums - 1).abs().lt(1e-4).all():
        wrong.append(f"weights: sums {sums.tolist()}")
    parts = found.completeness
    scale = parts.input.abs() + parts.bias.abs() + parts.score.abs() + 1
    if call.exact and call.dtype is torch.float64 and _is_linear(call.target):
        if not parts.remainder.abs().lt(1e-9 * scale).all():
            wrong.append(f"completeness: remainder {parts.remainder.tolist()}")
        if parts.is_cut.any() and not parts.bypass[:, parts.is_cut].abs().lt(1e-9 * scale[:, None]).all():
            wrong.append("completeness: bypass at a cut")
    tolerance = CLOSE[call.dtype]
    if call.batch > 1 and tolerance is not None:
        wrong += _alone(call, found, tolerance)
    return wrong


def _is_linear(target: Any) -> bool:
    name = getattr(target, "__name__", "") if callable(target) else ""
    return "probability" not in name and "rest" not in name


def _alone(call: Call, found: Explanation, tolerance: float) -> list[str]:
    """The last sample without its neighbours."""
    at = call.batch - 1
    images = tuple(each[at : at + 1] for each in _tensors(call.images))
    target = call.target[at : at + 1] if isinstance(call.target, list | Tensor) else call.target
    with call.context():
        alone = explain(call.model, images[0] if len(images) == 1 else images, target, call.recipe)
    wrong = []
    off = float((alone.map[0] - found.map[at]).abs().max())
    if off > tolerance:
        wrong.append(f"batch: the map moves by {off:.2g}")
    off = float((alone.score[0] - found.score[at]).abs() / (1 + alone.score[0].abs()))
    if off > tolerance:
        wrong.append(f"batch: the score moves by {off:.2g}")
    return wrong


def _tensors(images: Any) -> tuple[Tensor, ...]:
    return (images,) if isinstance(images, Tensor) else tuple(images)


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a call could leave changed."""
    found: dict[str, Any] = {"grad mode": torch.is_grad_enabled(), "inference mode": torch.is_inference_mode_enabled()}
    for name, module in model.named_modules():
        found[f"{name} mode"] = module.training
        found[f"{name} hooks"] = sum(len(value) for key, value in vars(module).items() if key.endswith("_hooks"))
        found[f"{name} attributes"] = sorted(vars(module))
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        found[f"{name} values"] = value.detach().clone()
        found[f"{name} itself"] = (id(value), value.data_ptr(), value._version, value.requires_grad, value.grad is None)
        found[f"{name} hooks"] = len(value._backward_hooks or {})
    return found


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(left: Any, right: Any) -> bool:
        return torch.equal(left, right) if isinstance(left, Tensor) else left == right

    return [
        name
        for name in before | after
        if name not in before or name not in after or not same(before[name], after[name])
    ]


__all__ = ["Call", "drawn", "outcome", "replace"]
