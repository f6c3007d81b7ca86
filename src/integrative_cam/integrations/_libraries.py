"""Methods of pytorch-grad-cam and torchcam as shipped, each call on a copy of the network, called like our own."""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._call import trace
from .._choices import TAPS
from .._maps.fusion import resize
from .._maps.traced import Tap
from .._plan.model_state import eager, preserved_randomness, unwrapped
from ..cam import explanation_from_map
from ..errors import (
    CamError,
    InputError,
    MissingExtraError,
    OutputError,
    RecipeError,
    TapError,
    TargetError,
    first_line,
)
from ..explanation import Explanation
from ..methods import Method, get_method
from ..methods._controls import TIMES_NOISE, times_noise
from ..recipe import one_of
from ..targets import Target

if TYPE_CHECKING:
    from jaxtyping import Float

Run = Callable[[str, nn.Module, Sequence[str], Tensor, Sequence[int]], Tensor]
"""(class of the library, network, paths of its layers, images, class index per image) -> maps."""

LAYERLESS = "FullGrad"
"""Uses the biases of all layers, so it has no choice of taps."""

_one_at_a_time = threading.RLock()


def named(name: str) -> Method:
    """One of our methods by its name, or another library's, such as `grad-cam:HiResCAM@stages`; see `peer`.

    A name that ends in "-times-noise" is a control: the map of the method before it, times noise.

    Raises:
        RecipeError: there is none.
        MissingExtraError: the library is not installed.
    """
    multiplied = name.removesuffix(TIMES_NOISE)
    method = peer(multiplied) if ":" in multiplied else get_method(multiplied)
    return method if multiplied == name else times_noise(method)


def peers() -> list[str]:
    """The names that `peer` takes, of the libraries that are installed."""
    return [
        f"{library}:{method}@{taps}" if taps else f"{library}:{method}"
        for library, (_, module, classes) in _LIBRARIES.items()
        if find_spec(module) is not None
        for method in classes
        for taps in _TAKES.get(f"{library}:{method}", tuple(TAPS))
    ]


def peer(name: str) -> Method:
    """A method as its library ships it, with its default settings: `LIBRARY:CLASS@TAPS`, or `grad-cam:FullGrad`.

    LIBRARY is grad-cam or torchcam. TAPS chooses layers as `Recipe.taps` does; the library gets the modules whose
    outputs these taps are. Several layers are fused by the library: pytorch-grad-cam takes the mean of min-max scaled
    maps, torchcam's `fuse_cams` a maximum or a product, resized linearly to the images' size as in its metrics.
    The class is always given, since the libraries' own defaults differ; random numbers start from one seed. The map is
    cut at zero and divided by its maximum, as ours.

    A call raises, besides `trace`'s errors:
        TapError: a tap is not the output of a module that is called once.
        TargetError: the target is a callable.
        OutputError: the map holds NaN or infinite values, or does not have the images' size.
        CamError: the library failed; the message names it.

    Raises:
        RecipeError: no such library or class.
        MissingExtraError: the library is not installed.
    """
    library, _, rest = name.partition(":")
    chosen, _, taps = rest.partition("@")
    one_of("peer", library, _LIBRARIES)
    run, module, classes = _LIBRARIES[library]
    one_of(f"{library} method", chosen, dict.fromkeys(classes))
    if (chosen == LAYERLESS) == bool(taps):
        wanted = f"{library}:{chosen}" if taps else f"{library}:{chosen}@TAPS with TAPS one of {', '.join(TAPS)}"
        raise RecipeError(f"method {name} must be {wanted}.")
    if find_spec(module) is None:
        raise MissingExtraError.of(f"method {name}", "peers", ModuleNotFoundError(name=module))
    return Method(
        name,
        f"{chosen} as {library} ships it" + (f"; layers: {TAPS.get(taps, taps)}" if taps else ""),
        f"{library} {metadata.version(library)}",
        partial(_explain, name, partial(run, chosen), taps),
    )


def _explain(
    name: str, run: Callable[..., Tensor], taps: str, model: nn.Module, images: Tensor, target: Target
) -> Explanation:
    traced = trace(model, images, target, taps or "last")
    if traced.index is None:
        raise TargetError(f"{name} explains classes: target must be None, a class index or one per image.")
    with _isolated(images.device):
        network = _copied(unwrapped(model), name)
        try:
            with eager(network.modules()):
                layers = layers_of(network, images, traced.taps) if taps else []
                maps = run(network, layers, images.detach().clone(), traced.index.tolist())
        except TapError as error:
            raise TapError(f"{name}: {error}") from None
        except Exception as error:
            raise CamError(f"{name} failed: {type(error).__name__}: {first_line(error)}") from error
        finally:
            _without_hooks(network)
    wanted = (len(images), *traced.input_space)
    if tuple(maps.shape) != wanted or not maps.isfinite().all():
        came = "NaN or infinite values" if tuple(maps.shape) == wanted else f"a map of shape {tuple(maps.shape)}"
        raise OutputError(f"{name} gave {came}, where finite values of shape {wanted} are wanted.")
    return explanation_from_map(traced, maps.to(traced.score))


def layers_of(model: nn.Module, images: Float[Tensor, "batch channel *space"], taps: Sequence[Tap]) -> list[str]:
    """For each tap, the path of the innermost module whose only output it is; TapError where there is none."""
    around = [_paths(tap.name) for tap in taps]
    calls: Counter[str] = Counter()
    fitting: set[tuple[str, int]] = set()

    def watch(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        calls[path] += 1
        fitting.update((path, place) for place, tap in enumerate(taps) if path in around[place] and _same(output, tap))

    modules = dict(model.named_modules())
    with torch.no_grad(), preserved_randomness(images.device), ExitStack() as hooks:
        for path in dict.fromkeys(path for paths in around for path in paths):
            hooks.callback(modules[path].register_forward_hook(partial(watch, path)).remove)
        model(images.detach().clone())
    layers = []
    for place, tap in enumerate(taps):
        matches = [path for path in around[place] if calls[path] == 1 and (path, place) in fitting]
        if not matches:
            raise TapError(
                f"tap {tap.name} is not the output (batch, channel, *space) of a module that is called once, and the "
                "library takes nothing else. Choose other taps, or name a module, such as its last block."
            )
        layers.append(matches[0])
    return list(dict.fromkeys(layers))


def _paths(tap: str) -> list[str]:
    """a.b.c, a.b, a for the tap a.b.c:relu#2."""
    parts = tap.partition("#")[0].partition(":")[0].split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1) if parts[0]]


def _same(output: Any, tap: Tap) -> bool:
    if not isinstance(output, Tensor) or output.shape != tap.activation.shape:
        return False
    tolerance = 1e-3 * tap.activation.abs().amax().item()
    return torch.allclose(output, tap.activation, rtol=1e-3, atol=tolerance)


def _copied(model: nn.Module, name: str) -> nn.Module:
    """A copy in evaluation mode whose parameters require gradients, as pytorch-grad-cam needs it."""
    try:
        network = copy.deepcopy(model).eval()
    except Exception as error:
        raise InputError(
            f"{name} runs on a copy of the model, which copy.deepcopy could not make: {first_line(error)}"
        ) from error
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    return network


def _without_hooks(network: nn.Module) -> None:
    # Hooks may keep the network alive in a circle of references; without them its memory is free at once.
    for module in network.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """One peer at a time, with gradients and its own random numbers; the generators' states are restored afterwards."""
    import numpy as np

    with _one_at_a_time, torch.inference_mode(False), torch.enable_grad(), preserved_randomness(device):
        python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.default_generator.manual_seed(0)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(0)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002


def _grad_cam(name: str, model: nn.Module, layers: Sequence[str], images: Tensor, index: Sequence[int]) -> Tensor:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # The default ablation layer is one object for all calls and keeps their activations.
    own = {"ablation_layer": pytorch_grad_cam.AblationLayer()} if name == "AblationCAM" else {}
    cam = getattr(pytorch_grad_cam, name)(
        model=model, target_layers=[model.get_submodule(layer) for layer in layers], **own
    )
    with ExitStack() as bars:
        for module in (pytorch_grad_cam.ablation_cam, pytorch_grad_cam.score_cam):
            # They print a progress bar for each image.
            bars.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = SimpleNamespace(tqdm=lambda steps, **_: steps)
        if name == "FinerCAM":
            # It makes its targets itself, and takes one class at a time.
            maps = [
                torch.from_numpy(cam(input_tensor=image[None], targets=None, target_idx=target))
                for image, target in zip(images, index, strict=True)
            ]
            return torch.cat(maps)
        return torch.from_numpy(cam(input_tensor=images, targets=[ClassifierOutputTarget(target) for target in index]))


def _torchcam(name: str, model: nn.Module, layers: Sequence[str], images: Tensor, index: Sequence[int]) -> Tensor:
    from torchcam import methods

    with getattr(methods, name)(model, list(layers)) as cam:
        scores = model(images)
        fused: Tensor = cam.fuse_cams(cam(list(index), scores))
    return resize(fused, tuple(images.shape[2:]))


_TAKES: dict[str, tuple[str, ...]] = {
    f"grad-cam:{LAYERLESS}": ("",),
    "grad-cam:ShapleyCAM": ("last",),
    "torchcam:CAM": ("last",),
    "torchcam:RefineCAM": ("activations", "stages"),
}
"""Peers that take only one layer, or only several."""

_LIBRARIES: dict[str, tuple[Run, str, tuple[str, ...]]] = {
    "grad-cam": (
        _grad_cam,
        "pytorch_grad_cam",
        (
            *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise", "EigenCAM"),
            *("EigenGradCAM", "KPCA_CAM", "FEM", "ShapleyCAM", "FinerCAM", "RefineCAM", "SESS", "ScoreCAM"),
            *("AblationCAM", "RandomCAM", LAYERLESS),
        ),
    ),
    "torchcam": (
        _torchcam,
        "torchcam",
        (
            *("GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM", "RefineCAM", "FinerCAM", "CAM"),
            *("ScoreCAM", "SSCAM", "ISCAM"),
        ),
    ),
}
