"""Networks and inputs whose explanations by release 0.1.0 are kept in `tests/data/maps_0_1_0.safetensors`.

`core/test_stored_maps.py` compares today's explanations with them. The file was written with 0.1.0 itself:

    git worktree add ../v0.1.0 v0.1.0
    PYTHONPATH=../v0.1.0/src:../v0.1.0/tests python -P tests/stored_maps.py --write tests/data/maps_0_1_0.safetensors

Networks have random weights and, but for a few, work in float64: there rounding is far below what is compared. Maps are
kept as whole numbers from 0 to `LEVELS`, all other numbers in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import networks
import timm
import torch
import torchvision
from networks import Options
from safetensors.torch import safe_open, save_file
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from integrative_cam import Explanation, IntegrativeCAM, Recipe, targets

FILE = Path(__file__).parent / "data" / "maps_0_1_0.safetensors"
LEVELS = 2**15 - 1
CLASSES = 10
VERSIONS = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}

Inputs = Any  # one tensor, a tuple of tensors or a dict of tensors
Made = tuple[nn.Module, Inputs]


@dataclass(frozen=True)
class Case:
    """A network with inputs, and how they are explained.

    Attributes:
        make: the network, in evaluation mode, and its inputs (batch, channel, *space).
        target: as in a call; a list has one target per image.
        way: ingredients of the recipe, or the name of a method.
        several: ask for this many top classes, or for these targets, of every image in one call.
        tolerance: of maps, which lie in [0, 1], and of other numbers relative to the largest.
    """

    name: str
    make: Callable[[], Made]
    target: Any = None
    way: dict[str, Any] | str | None = None
    several: int | list[Any] | None = None
    tolerance: float = 1e-4

    def explainer(self, model: nn.Module) -> Callable[[Inputs, Any], list[Explanation]]:
        """Explains inputs for a target; every call goes to the same `IntegrativeCAM`, or to the same method."""
        if isinstance(self.way, str):
            # 0.1.0 calls these functions otherwise, and has a function of the module's name.
            methods: Any = import_module("integrative_cam.methods")
            method = (getattr(methods, "get_method", None) or methods.method)(self.way)
            return lambda inputs, target: [method(model, inputs, target)]
        cam = IntegrativeCAM(model, **{**DEFAULT, **(self.way or {})})
        if self.several is not None:
            explain_targets = getattr(cam, "explain_targets", None) or cam.each
            return lambda inputs, _: explain_targets(inputs, self.several)
        return lambda inputs, target: [cam(inputs, target)]


DEFAULT: dict[str, Any] = (
    {"score": "logit", "regions": None, "centred": False, "negative_share": 0.5, "gamma": 0.85}
    if "regions" in Recipe.__dataclass_fields__
    else {}
)
"""What makes a recipe that of 0.1.0 where it says nothing; 0.1.0 knows some of these names not."""


# ---- Networks


def prepared(model: nn.Module, inputs: Tensor, seed: int = 0) -> nn.Module:
    """Random biases and scales, and batch norms with the statistics of `inputs`: no branch starts with scale zero."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    with torch.no_grad():
        for values in model.parameters():
            constant = values.numel() > 1 and bool((values == values.flatten()[0]).all())
            noise = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
            if values.ndim == 1 and constant and values[0] != 0:
                values.copy_(1 + noise.clamp(-2, 2) / 4)  # also scales of residual branches, such as 1e-6
            elif values.ndim == 1 or constant:
                values += noise / 10
        model.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        model(inputs)
    return model.eval()


def pictures(batch: int, *shape: int, seed: int = 0) -> Tensor:
    """Blobs with grain that grow along the last axis, float64, (batch, *shape) with shape = (channel, *space)."""
    generator = torch.Generator().manual_seed(seed)
    channels, *space = shape
    coarse = torch.randn(batch, channels, *(4 for _ in space), generator=generator, dtype=torch.float64)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(space)]
    blobs = nn.functional.interpolate(coarse, size=space, mode=mode, align_corners=False)
    grain = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return (blobs + grain / 3) * torch.linspace(0, 2, space[-1], dtype=torch.float64) ** 2


def small(kind: str | Callable[[Options], nn.Module], batch: int = 2, space: Any = None, **options: Any) -> Made:
    """A network of `networks`, float64."""
    option = Options(**options)
    return networks.build(kind, option), networks.images(option, space, batch)


def fusing(fusion: str, dims: int = 2) -> Made:
    """Two inputs, the second one twice as large where the fusion allows for it."""
    option = Options(dims=dims, seed=3, norm="affine")
    space = networks.SPACES[dims]
    larger = space if fusion in ("early", "sum") else tuple(2 * size for size in space)
    inputs = (pictures(3, networks.CHANNELS, *space, seed=1), pictures(3, networks.CHANNELS, *larger, seed=2))
    return networks.build(partial(networks.Fusing, fusion=fusion), option), inputs


def mixed() -> Made:
    """A picture, a signal and a vector, by keyword."""
    model = networks.build(networks.Mixed, Options(seed=4))
    picture, signal = pictures(2, networks.CHANNELS, 8, 6), pictures(2, networks.CHANNELS, 16, seed=1)
    vector = torch.tensor([[1.0, -0.5, 2.0], [0.3, 1.5, -1.0]], dtype=torch.float64)
    return model, {"picture": picture, "signal": signal, "vector": vector}


def zoo(make: Callable[[], nn.Module], *size: int, batch: int = 1, dtype: torch.dtype = torch.float64) -> Made:
    """A network of a library with random weights."""
    inputs = pictures(batch, *(size or (3, 48, 48)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    return prepared(model, pictures(4, *inputs.shape[1:], seed=7)).to(dtype), inputs.to(dtype)


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of torchvision."""
    return partial(torchvision.models.get_model, name, weights=None, num_classes=CLASSES, **options)


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of timm."""
    return partial(timm.create_model, name, num_classes=CLASSES, **options)


def shallow_vgg() -> nn.Module:
    """The layers of VGG11 with a sixteenth of its channels, and its classifier."""
    features = make_layers([4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"])
    classifier = [nn.Linear(32, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, CLASSES)]
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classifier)


def shallow_alexnet() -> nn.Module:
    """The layers of AlexNet with one linear layer behind."""
    features = torchvision.models.alexnet(weights=None).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES))


def shallow_convnext() -> nn.Module:
    """ConvNeXt of two stages."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=CLASSES)


def shallow_swin(version: int) -> nn.Module:
    """Swin Transformer of two stages, V1 or V2."""
    from torchvision.models import swin_transformer as swin

    blocks = {1: {}, 2: {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}}
    return swin.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **blocks[version])


def shallow_vit() -> nn.Module:
    """Vision Transformer of three layers on patches of 8 pixels."""
    return torchvision.models.VisionTransformer(48, 8, 3, 2, 24, 48, num_classes=CLASSES)


def video() -> nn.Module:
    """The residual network of torchvision for videos, a block to each stage."""
    from torchvision.models.video import resnet

    return resnet.VideoResNet(
        resnet.BasicBlock, [resnet.Conv3DSimple] * 4, [1, 1, 1, 1], resnet.BasicStem, num_classes=CLASSES
    )


class UNet(nn.Module):
    """Down and up again: a logit per class and pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.GELU())
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.out = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.out(torch.cat([x, self.up(self.deep(x)).relu()], 1))


def laid_out(made: Made) -> Made:
    """Channels last, in the weights and the inputs."""
    model, inputs = made
    return model.to(memory_format=torch.channels_last), inputs.contiguous(memory_format=torch.channels_last)


def frozen(made: Made) -> Made:
    """No parameter wants a gradient."""
    return made[0].requires_grad_(False), made[1]


def difference(output: Tensor) -> Tensor:
    """A target as a user writes it."""
    return output[1] - 0.5 * output[2] ** 2


difference.has_unit = True  # type: ignore[attr-defined]  # a score as it is, as 0.1.0 took every one


def centre(output: Tensor) -> Tensor:
    """The sum of a class's logits in the middle of the picture."""
    return output[3, 8:24, 8:24].sum()


centre.has_unit = True  # type: ignore[attr-defined]


# ---- Cases


def _cases() -> Iterator[Case]:
    affine = {"norm": "affine", "seed": 5}
    for dims in (1, 2, 3):
        yield Case(f"plain {dims}-D", partial(small, "plain", dims=dims, seed=1))
        yield Case(f"vgg {dims}-D", partial(small, "vgg", dims=dims, seed=2, inplace=True), 1, {"bias": "complete"})
        yield Case(f"resnet {dims}-D", partial(small, "resnet", 3, dims=dims, stride=2, **affine), [1, 2, 3])
        yield Case(f"inception {dims}-D", partial(small, "inception", 1, dims=dims, **affine), 0)
    yield Case("plain, odd", partial(small, "plain", space=(9, 6), stride=2, groups=2, norm="plain"), 3)
    yield Case("plain, dilated", partial(small, "plain", dilation=2, bias=False), 0, {"bias": "residual"})
    yield Case("decoder", partial(small, networks.Decoder, 2, (9, 7), seed=16), None)
    yield Case("decoder, in place", partial(small, networks.Decoder, 3, (8, 6), seed=16, inplace=True), 1)
    yield Case("tokens", partial(small, networks.Tokens, 2, (9,), dims=1, seed=16, inplace=True), 0)
    for fusion in networks.FUSIONS:
        yield Case(f"two inputs, {fusion}", partial(fusing, fusion), 1)
    yield Case("two volumes, middle", partial(fusing, "middle", dims=3), 0, {"bias": "residual"})
    yield Case("three inputs", mixed, 1)
    yield Case("two targets a call", partial(small, "resnet", 3, **affine), several=[3, difference])

    resnet = partial(zoo, vision("resnet18"), 3, 40, 40)
    ways: list[dict[str, Any] | str] = [
        {"bias": "complete"}, {"bias": "residual", "signed": False}, {"bias": "none", "weighting": "product"},
        {"readout": "softmax"}, {"readout": "softplus", "bias_share": 0.8}, {"readout": "identity", "gamma": 2.0},
        {"readout": "log_softmax", "weighting": "average"}, {"readout": "sigmoid", "bias": "complete"},
        {"taps": "stages", "fusion": "max"}, {"taps": ["layer2.*", "10x10"], "aggregation": "channel"},
        {"weighting": "uniform", "fusion": "geometric", "bias": "none"}, {"stage_share": 0.0, "weighting": "geometric"},
        "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "layercam-fused", "refinecam", "winsorcam",
        "fullgrad", "gradcam-elementwise",
    ]  # fmt: skip
    for way in ways:
        yield Case(f"resnet18 {_described(way)}", resnet, 4, way)
    yield Case("resnet18", partial(resnet, batch=3))
    yield Case("resnet18, a callable", resnet, difference)
    yield Case("resnet18, a contrast", partial(resnet, batch=3), targets.contrast(1, 2))
    yield Case("resnet18, probability", resnet, targets.probability(5))
    yield Case("resnet18, a target an image", partial(resnet, batch=3), [4, difference, targets.contrast(1, 2)])
    yield Case("resnet18, three classes", partial(resnet, batch=3), several=3)
    yield Case("resnet18, channels last", lambda: laid_out(resnet(batch=3)), 4)
    yield Case("resnet18, frozen", lambda: frozen(resnet()), 4)
    # Narrow types round elsewhere on other processors.
    yield Case("resnet18, float32", partial(resnet, batch=3, dtype=torch.float32), 4, tolerance=2e-3)
    yield Case("plain, bfloat16", partial(_narrow, "plain", torch.bfloat16), 1, tolerance=0.1)
    yield Case("resnet, float16", partial(_narrow, "resnet", torch.float16), 1, tolerance=0.02)

    for name, size in (
        ("mobilenet_v2", 64), ("mobilenet_v3_small", 64), ("squeezenet1_1", 48), ("densenet121", 48),
        ("shufflenet_v2_x0_5", 64), ("efficientnet_b0", 64), ("mnasnet0_5", 64), ("regnet_y_400mf", 48),
    ):  # fmt: skip
        yield Case(name, partial(zoo, vision(name), 3, size, size), 4)
    yield Case("googlenet", partial(zoo, vision("googlenet", aux_logits=False, init_weights=True), 3, 64, 48), 4)
    yield Case("vgg11", partial(zoo, shallow_vgg, 3, 64, 48, batch=3))
    yield Case("alexnet", partial(zoo, shallow_alexnet, 3, 72, 64), 4, {"bias": "complete"})
    yield Case("convnext", partial(zoo, shallow_convnext, batch=3), 4)
    yield Case("swin", partial(zoo, partial(shallow_swin, 1), 3, 64, 48), 4)
    yield Case("swin v2", partial(zoo, partial(shallow_swin, 2)), 4)
    yield Case("vit", partial(zoo, shallow_vit, batch=3), [4, 5, 6])
    yield Case("video", partial(zoo, video, 3, 4, 24, 20), 4)
    yield Case("unet", partial(zoo, UNet, 3, 32, 32, batch=3), centre)
    yield Case("unet, region", partial(zoo, UNet, 3, 32, 32), targets.segmentation(3), {"bias": "residual"})
    for name in ("byobnet", "convnext", "convnext2", "efficientnet", "efficientnet_gn", "mambaout", "nfnet", "resnet"):
        yield Case(f"test_{name}", partial(zoo, of_timm(f"test_{name}"), 3, 64, 64), 4)
    for name in ("coatnet", "maxvit", "vit", "vit3", "vit_relpos"):
        model = of_timm(f"test_{name}", img_size=64)
        yield Case(f"test_{name}", partial(zoo, model, 3, 64, 64), 4)


def _described(way: dict[str, Any] | str) -> str:
    return way if isinstance(way, str) else ", ".join(f"{name}={value}" for name, value in way.items())


def _narrow(kind: str, dtype: torch.dtype) -> Made:
    model, inputs = small(kind, 2, (16, 16), seed=5)
    return model.to(dtype), inputs.to(dtype)


CASES = tuple(_cases())


# ---- Numbers of an explanation


def numbers_of(explanation: Explanation) -> dict[str, Tensor]:
    """What is kept of an explanation, on the CPU: (batch, ...) but for `is_cut`, which is (tap,)."""
    split = explanation.completeness
    found = {
        "map": explanation.map,
        "score": explanation.score,
        "weights": explanation.weights,
        "layer_bias": torch.stack([each.bias.flatten(1).sum(1) for each in explanation.layers], 1)
        if explanation.layers
        else explanation.weights,
        "input": split.input,
        "bias": split.bias,
        "activation": split.activation,
        "tap_bias": split.tap_bias,
        "is_cut": split.is_cut,
    }
    if explanation.bias_layers:
        found["bias_weights"] = torch.stack([each.weight for each in explanation.bias_layers], 1)
    if explanation.streams is not None:
        streams = explanation.streams
        found |= {"share": streams.share, "evidence": streams.evidence, "stream_weights": streams.weights}
        found |= {f"map_{index}": each for index, each in enumerate(streams.maps) if each is not None}
    return {name: values.detach().cpu() for name, values in found.items()}


def output_of(explanation: Explanation) -> Tensor:
    """The first numbers of what the network returned, (batch, number)."""
    return explanation.output.detach().flatten(1)[:, :100].float().contiguous()


def names_of(explanation: Explanation) -> dict[str, list[str]]:
    """The names of layers and biases, in order, and of the targets."""
    return {
        "layers": [f"{layer.name}: {layer.kind}" for layer in explanation.layers],
        "bias_layers": [layer.name for layer in explanation.bias_layers],
        "targets": list(explanation.target_names),
    }


def is_map(name: str) -> bool:
    """Whether these numbers lie in [0, 1] and are kept as whole ones."""
    return name.split("_")[0] == "map"


# ---- The file


@dataclass(frozen=True)
class Stored:
    """One explanation of 0.1.0."""

    names: dict[str, list[str]]
    numbers: dict[str, Tensor]


def write(file: Path) -> None:
    """Explain every case once with the release that is imported."""
    tensors: dict[str, Tensor] = {}
    names: dict[str, list[dict[str, list[str]]]] = {}
    for case in CASES:
        model, inputs = case.make()
        found = case.explainer(model)(inputs, case.target)
        names[case.name] = [names_of(each) for each in found]
        tensors[f"{case.name}/output"] = output_of(found[0])
        for index, explanation in enumerate(found):
            for name, values in numbers_of(explanation).items():
                if is_map(name):
                    values = (values.double() * LEVELS).round().to(torch.int16)
                elif values.is_floating_point():
                    values = values.float()
                tensors[f"{case.name}/{index}/{name}"] = values.contiguous()
        spread = float(found[0].map.double().flatten(1).std(1).min())
        print(f"{case.name}: {len(found[0].layers)} layers, maps {tuple(found[0].map.shape)}, spread {spread:.2f}")
    save_file(tensors, file, {"names": json.dumps(names), "versions": json.dumps(VERSIONS)})


def read(file: Path = FILE) -> tuple[dict[str, list[Stored]], dict[str, Tensor], dict[str, str]]:
    """The stored explanations of each case, its network's output, and the versions of the libraries."""
    explanations: dict[str, list[Stored]] = {}
    outputs: dict[str, Tensor] = {}
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        for case, names in json.loads(about["names"]).items():
            explanations[case] = [Stored(each, {}) for each in names]
        for key in opened.keys():  # noqa: SIM118 - no dict
            case, *place = key.split("/")
            values = opened.get_tensor(key)
            if place == ["output"]:
                outputs[case] = values
            else:
                index, name = place
                explanations[case][int(index)].numbers[name] = values.double() / LEVELS if is_map(name) else values
    return explanations, outputs, json.loads(about["versions"])


def differences(found: Explanation, stored: Stored, tolerance: float, rows: slice = slice(None)) -> list[str]:
    """Where an explanation differs from a stored one, of whose images `rows` are meant; nothing where it does not."""
    said = [
        f"{name}: {ours} instead of {theirs[rows] if name == 'targets' else theirs}"
        for (name, ours), theirs in zip(names_of(found).items(), stored.names.values(), strict=True)
        if ours != (theirs[rows] if name == "targets" else theirs)
    ]
    numbers = numbers_of(found)
    if numbers.keys() != stored.numbers.keys():
        return [*said, f"there are {', '.join(numbers)} instead of {', '.join(stored.numbers)}"]
    for name, theirs in stored.numbers.items():
        wanted = (theirs if name == "is_cut" else theirs[rows]).double()
        ours = numbers[name].double()
        if ours.shape != wanted.shape:
            said.append(f"{name}: of shape {tuple(ours.shape)} instead of {tuple(wanted.shape)}")
            continue
        # Sums of many numbers are as exact as the largest of them.
        scale = 1.0 if is_map(name) else float(wanted.abs().max()) if wanted.numel() else 1.0
        error = float((ours - wanted).abs().max()) if wanted.numel() else 0.0
        if not error <= tolerance * scale:
            said.append(f"{name}: off by {error:.2g}, where the largest is {scale:.2g}")
    return said


def as_case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


def with_way(case: Case, **ingredients: Any) -> Case:
    """The case with other ingredients."""
    assert not isinstance(case.way, str)
    return replace(case, way={**(case.way or {}), **ingredients})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, required=True, metavar="FILE")
    write(parser.parse_args().write)
