"""The peers' Grad-CAM called as their READMEs call it, beside ours, and the networks on which it is tried."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytorch_grad_cam
import torch
import torch.nn.functional as F
import torchcam.methods
from captum.attr import LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, get_method
from integrative_cam._maps.fusion import by_range

OURS, GRAD_CAM, TORCHCAM, CAPTUM = LIBRARIES = ("integrative-cam", "grad-cam", "torchcam", "captum")
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
TARGET = (1, 2, 3)
LAYER = "3"
TOLERANCE = 2e-3
"""Of maps scaled from 0 to 1: a peer adds 1e-7 to raw maps that are below 1e-3."""

reasons: list[str] = []
"""Why the attempts since the last clearing came to nothing."""


def small(inplace: bool = False, dims: int = 2) -> nn.Sequential:
    """Features as large as the image, so that resizing does not come between; no map of IMAGES is blank."""
    torch.manual_seed(2)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(
        conv(3, 6, 3, padding=1), nn.ReLU(), conv(6, 6, 3, padding=1), nn.ReLU(inplace),
        nn.Flatten(), nn.Linear(6 * 8**dims, 4),
    ).eval()  # fmt: skip


class Called(nn.Module):
    """A layer, then what is done with it, then the head of `small`."""

    def __init__(self, body: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.then, self.head = body, then, nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 4))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.then(self.body(images)))


def functional() -> Called:
    """The last activation is a function between two convolutions of one module's forward."""
    torch.manual_seed(2)
    last = nn.Conv2d(6, 6, 3, padding=1)
    return Called(nn.Conv2d(3, 6, 3, padding=1), lambda found: last(F.relu(found))).eval()


class Twice(nn.Module):
    """One ReLU, called twice."""

    def __init__(self) -> None:
        super().__init__()
        layers = small()
        self.first, self.second, self.head, self.relu = layers[0], layers[2], layers[4:], nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.relu(self.second(self.relu(self.first(images)))))


class Returning(nn.Module):
    """A network whose logits come with something else."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers, self.wrap = small(), wrap

    def forward(self, images: Tensor) -> Any:
        """Logits, wrapped."""
        return self.wrap(self.layers(images))


class Failing(nn.Module):
    """A network with an IndexError behind its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small()

    def forward(self, images: Tensor) -> Tensor:
        """Never returns."""
        raise IndexError(f"on purpose {self.layers(images).shape}")


class Two(nn.Module):
    """Of two inputs the sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.relu, self.head = nn.ReLU(), small()[4:]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.relu(self.left(left) + self.right(right)))


class Overlapping(nn.Sequential):
    """Two threads pass the layer one after the other before either goes on."""

    def __init__(self) -> None:
        super().__init__(*small())
        self.start = threading.Barrier(2, timeout=20)
        self.passed = (threading.Event(), threading.Event())

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        turn = self.start.wait()
        if turn == 1:
            self.passed[0].wait(20)
        for layer in list(self)[:4]:
            images = layer(images)
        self.passed[turn].set()
        self.passed[1].wait(20)
        return self[5](self[4](images))


class Counting(nn.Sequential):
    """Counts its runs."""

    runs = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        self.runs += 1
        return super().forward(images)


def grad_cam(
    library: str,
    model: nn.Module,
    images: Any = IMAGES,
    target: Sequence[int] = TARGET,
    layer: str = LAYER,
    of: nn.Module | None = None,
) -> Tensor:
    """A library's Grad-CAM of a layer, one class per image; `of` is the module that knows the layer's path."""
    return _WAYS[library](model, images, list(target), layer, (of or model).get_submodule(layer))


def _ours(model: nn.Module, images: Any, target: list[int], layer: str, _: nn.Module) -> Tensor:
    return IntegrativeCAM(model, get_method("gradcam").recipe, taps=layer)(images, target).map


def _grad_cam(model: nn.Module, images: Any, target: list[int], _: str, layer: nn.Module) -> Tensor:
    with pytorch_grad_cam.GradCAM(model=model, target_layers=[layer]) as cam:
        return torch.from_numpy(cam(images, [ClassifierOutputTarget(index) for index in target]))


def _torchcam(model: nn.Module, images: Any, target: list[int], _: str, layer: nn.Module) -> Tensor:
    with torchcam.methods.GradCAM(model, layer) as extractor:
        output = model(*images) if isinstance(images, tuple) else model(images)
        return extractor(target, output)[0]


def _captum(model: nn.Module, images: Any, target: list[int], _: str, layer: nn.Module) -> Tensor:
    return LayerGradCam(model, layer).attribute(images, target=target, relu_attributions=True)[:, 0]


_WAYS: Mapping[str, Callable[..., Tensor]] = {
    OURS: _ours, GRAD_CAM: _grad_cam, TORCHCAM: _torchcam, CAPTUM: _captum,
}  # fmt: skip


def paper(
    before: Callable[[Any], Tensor],
    behind: Callable[[Tensor], Tensor],
    images: Any = IMAGES,
    score: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Grad-CAM (arXiv:1610.02391) of the tensor between two halves of a network, before the cut at zero."""
    activation = before(images).detach().requires_grad_()
    output = behind(activation)
    values = score(output) if score else output[range(len(TARGET)), TARGET]
    (gradient,) = torch.autograd.grad(values.sum(), activation)
    weights = gradient.flatten(2).mean(2).reshape(*gradient.shape[:2], *[1] * (gradient.ndim - 2))
    return (weights * activation).sum(1).detach()


def expected(model: nn.Sequential | None = None, images: Tensor = IMAGES, layer: int = 3) -> Tensor:
    """The map of `small` at that layer, scaled from 0 to 1."""
    model = model or small()
    found = by_range(paper(model[: layer + 1], model[layer + 1 :], images).relu())
    assert found.flatten(1).amax(1).min() > 0.99, "a map is blank, so that nothing could be told from it"
    return found


def right(run: Callable[[], Any], wanted: Tensor | None = None, tolerance: float = TOLERANCE) -> bool:
    """Whether a library runs, and gives the map that is wanted, scaled from 0 to 1."""
    wanted = expected() if wanted is None else wanted
    try:
        scaled = by_range(run().detach().float())
    except Exception as error:
        reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")
        return False
    if scaled.shape != wanted.shape:
        reasons.append(f"shape {tuple(scaled.shape)}")
        return False
    difference = float((scaled - wanted).abs().max())
    if not difference <= tolerance:
        reasons.append(f"map differs by {difference:.2g}")
    return difference <= tolerance


def works(run: Callable[[], object]) -> bool:
    """Whether it runs and gives something true."""
    try:
        found = bool(run())
    except Exception as error:
        reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")
        return False
    if not found:
        reasons.append("the answer is no")
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the peers' prints and warnings; not for threads, since all share one standard output."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def state_of(model: nn.Module) -> list[Any]:
    """What a call may not change: hooks, modes, gradients, what requires them, buffers, parameters."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [
        [(each.training, *(len(getattr(each, hook)) for hook in hooks)) for each in model.modules()],
        [(name, each.requires_grad, each.tolist()) for name, each in tensors.items()],
        [None if each.grad is None else each.grad.tolist() for each in tensors.values()],
    ]
