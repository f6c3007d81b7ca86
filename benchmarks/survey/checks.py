"""Does a map come out right of networks that nobody chose a layer for? One network at a time, with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from integrative_cam._call import trace
from integrative_cam.cam import explain_trace
from integrative_cam.errors import CamError, first_line
from integrative_cam.explanation import Explanation
from integrative_cam.models import build
from integrative_cam.recipe import Recipe
from integrative_cam.targets import logits_of
from survey.families import count

if TYPE_CHECKING:
    from jaxtyping import Float

OK = "ok"
SPOT = (2 / 14) ** 2
"""Share of the input that the gradient of one region reaches at most: halfway over the next ones on both sides."""
_ROUNDS = 2


@dataclass(frozen=True)
class Surveyed:
    """One network's row. `ratio`: time of a call over forward and gradient to the image with nothing else.

    `resolutions`: of the taps, fine to coarse. `convolutional`: it convolves elsewhere than to cut patches.
    """

    name: str
    parameters: int
    size: tuple[int, ...]
    convolutional: bool
    taps: int
    resolutions: tuple[tuple[int, ...], ...]
    ratio: float
    verdict: str

    @property
    def ok(self) -> bool:
        """All checks passed."""
        return self.verdict == OK

    def row(self) -> dict[str, str]:
        """The row as text, column by column."""
        resolutions = ", ".join("x".join(map(str, each)) for each in self.resolutions)
        return {
            "network": self.name,
            "parameters": f"{self.parameters / 1e6:.1f} M",
            "input": "x".join(map(str, self.size)),
            "taps": str(self.taps),
            "resolutions": resolutions,
            "call": f"{self.ratio:.2f}" if self.ok else "-",
            "verdict": self.verdict,
        }


def failed(name: str, why: str) -> Surveyed:
    """The row of a network of which there is nothing but a failure to tell."""
    return Surveyed(name, 0, (), False, 0, (), float("nan"), why)


def survey(name: str, seed: int = 0) -> Surveyed:
    """Explain a network by name with random weights at its own input size, and check the map; see `checks`.

    Weights are the library's own random ones, after which every parameter that starts constant is drawn, since many a
    branch starts with scale zero; then batch norms take their statistics from a pass over two noise images.
    """
    torch.manual_seed(seed)
    try:
        network = build(name)
    except CamError as error:
        return failed(name, first_line(error))
    model, preprocessing = network.model, network.preprocessing
    size = (len(preprocessing.mean), *preprocessing.crop)
    first, second = noise(size, seed), noise(size, seed + 1)
    try:
        prepare(model, torch.cat([first, second]), seed)
        verdict, explanation = checks(model, first, second)
        ratio = _ratio(model, first)
    except Exception as error:  # whatever a network raises is its verdict
        return unexplained(name, model, size, f"{type(error).__name__}: {first_line(error)}")
    spaces = dict.fromkeys(tuple(layer.map.shape[1:]) for layer in explanation.layers)
    return Surveyed(
        name=name,
        parameters=count(model),
        size=size,
        convolutional=_convolutional(model),
        taps=len(explanation.layers),
        resolutions=tuple(sorted(spaces, key=lambda space: -torch.Size(space).numel())),
        ratio=ratio,
        verdict=verdict,
    )


def unexplained(name: str, model: nn.Module, size: tuple[int, ...], verdict: str) -> Surveyed:
    """The row of a network that was built and then failed."""
    return Surveyed(name, count(model), size, _convolutional(model), 0, (), float("nan"), verdict)


def noise(size: tuple[int, ...], seed: int, mode: str = "bilinear") -> Float[Tensor, "1 channel *space"]:
    """A picture of blobs and grain: normal noise at an eighth of the size, and a third as much at all of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, size[0], *(max(side // 8, 1) for side in size[1:]), generator=generator)
    blobs = nn.functional.interpolate(coarse, size=size[1:], mode=mode, align_corners=False)
    return blobs + torch.randn(1, *size, generator=generator) / 3


@torch.no_grad()
def prepare(model: nn.Module, images: Float[Tensor, "batch channel *space"], seed: int) -> None:
    """Draw what starts constant, give batch norms the statistics of `images`; evaluation mode afterwards.

    Constants other than zero are scaled by 0.5 to 1.5, those below 0.1 (the scales of residual branches) lifted to
    0.1 first; zeros become normal noise: of 0.1 as biases, of 1 / sqrt(inputs) as weights.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    scales = {
        id(module.weight) for module in model.modules() if "Norm" in type(module).__name__ and hasattr(module, "weight")
    }
    for values in model.parameters():
        low, high = values.aminmax() if values.numel() else (0, 1)
        if low != high:
            continue
        spread = torch.rand(values.shape, generator=generator) + 0.5
        if low != 0 or id(values) in scales:
            values.copy_(spread * (max(abs(float(low)), 0.1) if low != 0 else 1.0))
        else:
            inputs = values[0].numel() if values.ndim > 1 else 100
            values.copy_(torch.randn(values.shape, generator=generator) / inputs**0.5)
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        try:
            model(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    model.eval()


def checks(model: nn.Module, first: Tensor, second: Tensor) -> tuple[str, Explanation]:
    """The verdict and the explanation of the top class of `first`.

    The map is finite, its maximum 1, neither constant nor a single pixel; it is another one for another class and for
    another image; parameters, buffers, gradients, modes and hooks of the model are as before.
    """
    before = state_of(model)
    explanation = _explained(model, first, None)
    ours = explanation.map
    logits = explanation.output.reshape(len(first), -1)
    runner_up = int(logits.argsort(descending=True)[0, 1])
    for_other = _explained(model, first, runner_up).map
    of_other = _explained(model, second, explanation.target).map
    wrong = [
        fault
        for fault, found in (
            ("not finite", not ours.isfinite().all()),
            ("blank", ours.max() == 0),
            ("maximum is not 1", ours.max() != 0 and abs(float(ours.max()) - 1) > 1e-5),
            ("constant", ours.max() - ours.min() < 0.05),
            ("a single spot", (ours > 0.05).float().mean() < SPOT),
            ("deaf to the target", _alike(ours, for_other)),
            ("deaf to the image", _alike(ours, of_other)),
            ("not the input's size", ours.shape[1:] != first.shape[2:]),
            ("the model was changed", state_of(model) != before),
        )
        if found
    ]
    return "; ".join(wrong) or OK, explanation


def state_of(model: nn.Module) -> list[Any]:
    """All that a call must leave as it was, in a form that compares."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [
            (name, id(values), values._version, values.requires_grad, values.grad is None, _sum(values))
            for name, values in tensors
        ],
        [
            (name, id(module), module.training, *(len(getattr(module, hooks)) for hooks in _HOOKS))
            for name, module in model.named_modules()
        ],
        torch.get_rng_state().tolist(),
    ]


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _sum(values: Tensor) -> float:
    return float(values.detach().double().sum()) if not values.is_meta else 0.0


def _alike(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) < 1e-3


def _explained(model: nn.Module, images: Tensor, target: Any) -> Explanation:
    recipe = Recipe()
    return explain_trace(trace(model, images, target, recipe.taps, contrast=True), recipe)


def _ratio(model: nn.Module, images: Tensor) -> float:
    """The least of a few times of a call, over that of forward and gradient to the image."""
    ours, bare = [], []
    for _ in range(_ROUNDS):
        ours.append(_timed(lambda: _explained(model, images, None)))
        bare.append(_timed(lambda: _bare(model, images)))
    return min(ours) / min(bare)


def _bare(model: nn.Module, images: Tensor) -> None:
    images = images.clone().requires_grad_()
    output = logits_of(model(images))
    torch.autograd.grad(output.max(), [images])


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _convolutional(model: nn.Module) -> bool:
    """A convolution whose windows overlap, so that it is no mere cutting of patches."""
    return any(
        kernel > stride
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        for kernel, stride in zip(module.kernel_size, module.stride, strict=True)
    )
