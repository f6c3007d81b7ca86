"""What becomes of a graph from a file before it is explained: pieces, operators, final probabilities, newer opsets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM
from integrative_cam.errors import ModelError
from integrative_cam.models import Network, _calls, load

FILES = ("onnx", "pt2", "decomposed")
"""ONNX; a program of torch.export; and one in the operators of Core ATen, which has fewer and smaller ones."""


def write(kind: str, model: nn.Module, images: Tensor, folder: Path) -> str:
    """The name for `load` of the model in a file of this kind."""
    if kind == "onnx":
        path = folder / "net.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=17)
        return str(path)
    program = torch.export.export(model, (images,), strict=False)
    path = folder / "net.pt2"
    torch.export.save(program.run_decompositions() if kind == "decomposed" else program, path)
    return f"{path}:trusted"


def same_map(network: Network, model: nn.Module, images: Tensor) -> list[str]:
    """Assert that the file's network has the scores, taps, biases and map of the module; the names of its taps."""
    with torch.no_grad():
        torch.testing.assert_close(network.model(images), model(images), atol=1e-5, rtol=1e-4)
    found, wanted = IntegrativeCAM(network.model)(images), IntegrativeCAM(model)(images)
    assert len(found.layers) == len(wanted.layers)
    assert float(wanted.map.std()) > 0.01
    assert float(torch.corrcoef(torch.stack((found.map.flatten(), wanted.map.flatten())))[0, 1]) > 0.999
    torch.testing.assert_close(found.completeness.bias, wanted.completeness.bias, atol=2e-4, rtol=1e-3)
    return [layer.name for layer in found.layers]


def randomised(model: nn.Module) -> nn.Module:
    """The model with parameters and statistics that are all different: equal ones are shared in ONNX files."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model.eval()


def images_of(size: int = 16) -> Tensor:
    return 4 * torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)) - 2


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "celu": lambda: nn.CELU(0.5),
    "hardshrink": lambda: nn.Hardshrink(0.3),
    "softshrink": lambda: nn.Softshrink(0.3),
    "threshold": lambda: nn.Threshold(0.1, 0.2),
    "relu": nn.ReLU,
}
NORMS: list[Callable[[], nn.Module]] = [
    lambda: nn.BatchNorm2d(6),
    lambda: nn.GroupNorm(2, 6),
    lambda: nn.InstanceNorm2d(6, affine=True),
    lambda: nn.LayerNorm([6, 16, 16]),
]


def small(activation: nn.Module, norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    # Without a bias, a convolution and its batch norm add one constant, as when an exporter folds them into one.
    body = nn.Conv2d(3, 6, 3, padding=1, bias=False), norm, activation, nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), activation
    return randomised(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(("at", "name"), list(enumerate(ACTIVATIONS)))
def test_activations_and_norms_are_whole(at: int, name: str, kind: str, tmp_path: Path) -> None:
    if kind == "onnx" and name in ("softshrink", "threshold"):
        pytest.skip("the exporter or onnx2torch does not know it")
    model = small(ACTIVATIONS[name](), NORMS[at % len(NORMS)]())
    names = same_map(load(write(kind, model, images_of(), tmp_path)), model, images_of())
    assert len(names) == 2
    if kind == "decomposed":
        function = name.partition(" ")[0]
        assert all(each.partition("#")[0].endswith(f":{function}") for each in names), names


@pytest.mark.parametrize("kind", FILES)
def test_activations_of_channels_are_whole(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 6, 3), nn.PReLU(6, init=0.2), nn.Conv2d(6, 8, 3), nn.GLU(1), nn.Conv2d(4, 8, 3), nn.GLU(-1)
    model = randomised(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    names = same_map(load(write(kind, model, images_of(), tmp_path)), model, images_of())
    assert [name.partition(":")[2] for name in names][1:] == ["glu", "glu"]
    assert "prelu" in names[0].lower()


def test_every_norm_keeps_its_bias_in_a_decomposed_program(tmp_path: Path) -> None:
    model = nn.Sequential(*(part for norm in NORMS for part in (nn.Conv2d(6, 6, 1), norm(), nn.SiLU())))
    model = randomised(nn.Sequential(nn.Conv2d(3, 6, 1), *model, nn.AvgPool2d(16), nn.Flatten(), nn.Linear(6, 2)))
    same_map(load(write("decomposed", model, images_of(), tmp_path)), model, images_of())


def write_pieces(path: Path, pieces: Callable[[Callable[..., str]], str], weight: Tensor, bias: Tensor) -> str:
    """An ONNX file of a convolution, the operations that `pieces` writes, and a mean over the image.

    `pieces` gets a function that adds an operation to its inputs, which are names or numbers: "x" is the convolution.
    """
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["x"])]
    constants = [numpy_helper.from_array(value.numpy(), name) for name, value in (("weight", weight), ("bias", bias))]

    def add(operation: str, *inputs: str | float, **attributes: Any) -> str:
        names = []
        for value in inputs:
            name = f"v{len(nodes)}_{len(names)}" if isinstance(value, float) else str(value)
            if isinstance(value, float):
                tensor = numpy_helper.from_array(np.array(value, np.float32), name)
                if len(constants) % 2:
                    constants.append(tensor)
                else:
                    constants.append(numpy_helper.from_array(np.array(0, np.float32), f"unused{name}"))
                    nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            names.append(name)
        nodes.append(helper.make_node(operation, names, [f"y{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    end = pieces(add)
    nodes.append(helper.make_node("ReduceMean", [end], ["mean"], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "pieces",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, len(bias)])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


SQRT2 = 2**0.5
Add = Callable[..., str]
PIECES: dict[str, Callable[[Add], str]] = {
    "silu: gate first": lambda add: add("Mul", add("Sigmoid", "x"), "x"),
    "silu: quotient": lambda add: add("Div", "x", add("Add", add("Exp", add("Neg", "x")), 1.0)),
    "silu: reciprocal": lambda add: add(
        "Mul", "x", add("Reciprocal", add("Add", 1.0, add("Exp", add("Mul", "x", -1.0))))
    ),
    "gelu: as torch writes it": lambda add: add(
        "Mul", add("Mul", "x", add("Add", add("Erf", add("Div", "x", SQRT2)), 1.0)), 0.5
    ),
    "gelu: a half first": lambda add: add(
        "Mul", add("Add", 1.0, add("Erf", add("Mul", 1 / SQRT2, "x"))), add("Mul", 0.5, "x")
    ),
    "gelu: half the share": lambda add: add(
        "Mul", add("Add", add("Mul", add("Erf", add("Mul", "x", 1 / SQRT2)), 0.5), 0.5), "x"
    ),
    "gelu: computed constant": lambda add: add(
        "Mul", add("Mul", "x", 0.5), add("Add", add("Erf", add("Div", "x", add("Sqrt", 2.0))), 1.0)
    ),
    "mish: whole softplus": lambda add: add("Mul", "x", add("Tanh", add("Softplus", "x"))),
    "mish: softplus in pieces": lambda add: add(
        "Mul", add("Tanh", add("Log", add("Add", add("Exp", "x"), 1.0))), "x"
    ),
    "hardswish: clip last": lambda add: add(
        "Mul", add("Clip", add("Add", "x", 3.0), 0.0, 6.0), add("Div", "x", 6.0)
    ),
    "hardswish: whole gate": lambda add: add("Mul", add("HardSigmoid", "x", alpha=1 / 6, beta=0.5), "x"),
    "relu: maximum": lambda add: add("Max", "x", 0.0),
    "leaky_relu: maximum": lambda add: add("Max", add("Mul", "x", 0.2), "x"),
}  # fmt: skip


@pytest.mark.parametrize("form", PIECES)
def test_pieces_are_put_together_however_they_are_written(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 1)
    name = form.partition(":")[0]
    slope = {"negative_slope": 0.2} if name == "leaky_relu" else {}
    file = write_pieces(tmp_path / "net.onnx", PIECES[form], conv.weight.detach(), conv.bias.detach())

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, images: Tensor) -> Tensor:
            return getattr(F, name)(self.conv(images), **slope).mean((2, 3))

    (tap,) = same_map(load(file), Whole(), images_of(12))
    assert tap.endswith(f":{name}")


@pytest.mark.parametrize(
    ("pieces", "taps"),
    [
        (lambda add: add("Mul", "x", add("Sigmoid", add("Mul", "x", 1.7))), ["mul"]),
        (lambda add: add("Mul", "x", add("Sigmoid", add("ReduceMax", "x", axes=[1]))), ["reducemax", "sigmoid"]),
        (lambda add: add("Mul", add("Add", "x", 1.0), add("Sigmoid", "x")), ["mul"]),
        (lambda add: add("Relu", add("Relu", "x")), ["relu", "relu"]),
        (lambda add: add("Mul", "x", add("Mul", add("Sigmoid", "x"), add("Sigmoid", "x"))), ["mul"]),
    ],
)
def test_other_products_stay_in_pieces(pieces: Callable[[Add], str], taps: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 1)
    file = write_pieces(tmp_path / "net.onnx", pieces, conv.weight.detach(), conv.bias.detach())
    found = IntegrativeCAM(load(file).model)(images_of(12))
    assert [layer.name.lower().split("_")[0].split(":")[0] for layer in found.layers] == taps


@pytest.mark.parametrize("kind", ["pt2", "decomposed"])
def test_an_activation_written_by_hand_is_its_product_in_a_program(kind: str, tmp_path: Path) -> None:
    class Gate(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values * torch.sigmoid(values)

    model = small(Gate(), nn.BatchNorm2d(6))
    names = same_map(load(write(kind, model, images_of(), tmp_path)), model, images_of())
    assert [name.partition(":")[2].partition("#")[0] for name in names] == ["mul", "mul"]


class Tokens(nn.Module):
    """Activations of tokens, channels last, before and after a step that moves them; "merge" has weights for it."""

    def __init__(self, step: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.mix = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 8, bias=False)
        self.merge, self.head = nn.Linear(32, 8, bias=False), nn.Linear(8, 4)
        self.step = step or (lambda tokens: self.merge(corners(tokens)))

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.gelu(self.mix(self.norm(self.embed(images).permute(0, 2, 3, 1))))
        return self.head(F.gelu(self.step(tokens)).mean((1, 2)))


def corners(tokens: Tensor) -> Tensor:
    """2 x 2 neighbours in one token, as between the stages of a Swin transformer."""
    return torch.cat([tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)


def windows(tokens: Tensor) -> Tensor:
    """Attention within windows that are shifted by two tokens."""
    batch, height, width, channels = tokens.shape
    rolled = tokens.roll((-2, -2), (1, 2)).reshape(batch, height // 4, 4, width // 4, 4, channels)
    inside = rolled.transpose(2, 3).reshape(-1, 16, channels)
    inside = (inside @ inside.transpose(1, 2)).softmax(-1) @ inside
    back = inside.reshape(batch, height // 4, width // 4, 4, 4, channels).transpose(2, 3)
    return back.reshape(tokens.shape).roll((2, 2), (1, 2)) + tokens


STEPS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "slice": lambda tokens: tokens[:, 1:7, 2:],
    "every second": lambda tokens: tokens[:, 0::2, 1::2],
    "merge": None,
    "windows": windows,
    "select": lambda tokens: torch.stack([tokens[:, row] for row in range(8)], 1),
    "index": lambda tokens: tokens[:, torch.arange(7, -1, -1)],
    "split": lambda tokens: torch.cat(tokens.split(4, 2)[::-1], 2),
    "pad": lambda tokens: F.pad(tokens, (0, 0, 1, 0, 0, 1)),
    "class token": lambda tokens: torch.cat((torch.ones(1, 1, 8), tokens.flatten(1, 2)), 1)[:, 1:].unflatten(1, (8, 8)),
    "resize": lambda tokens: F.interpolate(tokens.permute(0, 3, 1, 2), scale_factor=2.0).permute(0, 2, 3, 1),
}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("step", STEPS)
def test_tokens_keep_their_places(step: str, kind: str, tmp_path: Path) -> None:
    model = randomised(Tokens(STEPS[step]))
    assert len(same_map(load(write(kind, model, images_of(), tmp_path)), model, images_of())) == 2


def test_a_function_that_computes_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write("pt2", Tokens(lambda tokens: tokens[:, 2:]).eval(), images_of(), tmp_path)
    monkeypatch.setitem(_calls._OWN, "slice", lambda tokens, *_: tokens.flip(1)[:, 2:])
    with pytest.raises(ModelError, match=r"could not be replaced by functions of torch: its output would be .* off"):
        load(name)


class Ends(nn.Module):
    """A classifier with something behind its logits."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.end = small(nn.ReLU(), nn.BatchNorm2d(6)), end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.body(images))


ENDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "softmax": (lambda logits: logits.softmax(1), "softmax"),
    "log": (lambda logits: logits.softmax(1).log(), "softmax log"),
    "log of more": (lambda logits: (logits.softmax(1) + 1e-8).log(), "softmax add log"),
    "clamp": (lambda logits: logits.softmax(1).clamp(1e-7, 1), "softmax clamp"),
    "per cent": (lambda logits: 100 * logits.softmax(1), "softmax mul"),
    "double": (lambda logits: logits.softmax(1).double(), "softmax"),
    "reshape": (lambda logits: logits.log_softmax(1).reshape(-1, 2, 2), "logsoftmax"),
    "sigmoid": (lambda logits: logits.sigmoid(), "sigmoid"),
}


@pytest.mark.parametrize("kind", FILES[:2])
@pytest.mark.parametrize("end", ENDS)
def test_files_that_end_in_probabilities_return_logits(end: str, kind: str, tmp_path: Path) -> None:
    function, removed = ENDS[end]
    model = Ends(function).eval()
    network = load(write(kind, model, images_of(), tmp_path))
    output = network.model(images_of())
    torch.testing.assert_close(output.reshape(1, 4).float(), model.body(images_of()), atol=1e-5, rtol=1e-4)
    assert output.shape == model(images_of()).shape
    assert output.dtype == model(images_of()).dtype
    (note,) = (note for note in network.notes if "removed" in note)
    said = note.lower().replace("clip", "clamp").partition(" ends in ")[2]
    assert said.partition(", which")[0] == removed.replace(" ", " and ")
    assert network.task == ("multi-label" if end == "sigmoid" else "classification")


@pytest.mark.parametrize("kind", FILES)
def test_each_of_several_outputs_ends_in_logits(kind: str, tmp_path: Path) -> None:
    model = Ends(lambda logits: (logits.softmax(1), 2 * logits, logits.softmax(1).argmax(1))).eval()
    network = load(write(kind, model, images_of(), tmp_path))
    logits = model.body(images_of())
    first, second, index = network.model(images_of())
    torch.testing.assert_close(first, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second, 2 * logits, atol=1e-5, rtol=1e-4)
    assert index == logits.argmax()


@pytest.mark.parametrize("kind", FILES[:2])
@pytest.mark.parametrize("end", [lambda p: 1 - p, lambda p: p[:, 1:3], lambda p: p * p.amax(1, keepdim=True)])
def test_ends_that_logits_cannot_pass_stay(kind: str, end: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model = Ends(lambda logits: end(logits.softmax(1))).eval()
    network = load(write(kind, model, images_of(), tmp_path))
    torch.testing.assert_close(network.model(images_of()), model(images_of()), atol=1e-5, rtol=1e-4)
    assert not any("removed" in note for note in network.notes)


def test_standardised_weights_are_no_training(tmp_path: Path) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            rows = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
            return F.conv2d(images, weight, self.bias)

    layers = Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 8, 3), nn.ReLU()
    model = randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    for kind in ("pt2", "decomposed"):
        same_map(load(write(kind, model, images_of(), tmp_path)), model, images_of())


def write_newer(path: Path, opset: int, last: str = "Gelu") -> tuple[str, nn.Module]:
    """What torch's exporter writes by default: means with their axes as an input, a reshape where zeros are zeros."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["x"]),
        helper.make_node(
            last, ["x"], ["y"], name="node_activation", **({"approximate": "tanh"} if last == "Gelu" else {})
        ),
        helper.make_node("ReduceMean", ["y", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "shape"], ["flat"], allowzero=1),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["logits"], transB=1),
    ]
    tensors = {"w": conv.weight, "b": conv.bias, "w2": linear.weight, "b2": linear.bias}
    arrays = {name: value.detach().numpy() for name, value in tensors.items()}
    arrays |= {"axes": np.array([2, 3]), "shape": np.array([1, 5])}
    graph = helper.make_graph(
        nodes,
        "newer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    activation = {"Gelu": nn.GELU("tanh"), "Mish": nn.Mish()}.get(last, nn.Identity())
    return str(path), nn.Sequential(conv, activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()


@pytest.mark.parametrize(("opset", "last"), [(20, "Gelu"), (18, "Mish"), (23, "Mish"), (23, "Gelu")])
def test_newer_opsets_are_lowered(opset: int, last: str, tmp_path: Path) -> None:
    file, model = write_newer(tmp_path / "net.onnx", opset, last)
    assert same_map(load(file), model, images_of()) == [f"node_activation:{last.lower()}"]


def test_an_operation_without_an_older_form_names_the_export_that_works(tmp_path: Path) -> None:
    file, _ = write_newer(tmp_path / "net.onnx", 22, "BitwiseNot")
    with pytest.raises(ModelError, match=r"BitwiseNot.* torch.onnx.export\(.*, dynamo=False, opset_version=17\)"):
        load(file)


@pytest.mark.filterwarnings("ignore")
def test_the_default_export_of_torch_loads(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = small(nn.GELU(), nn.BatchNorm2d(6))
    torch.onnx.export(model, (images_of(),), str(tmp_path / "net.onnx"), verbose=False)
    assert len(same_map(load(str(tmp_path / "net.onnx")), model, images_of())) == 2


def published(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    if name == "efficientnet_b0":
        return randomised(models.efficientnet_b0(weights=None))
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return randomised(models.SwinTransformer(**sizes))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(
    ("name", "kind", "taps"),
    [("efficientnet_b0", "onnx", 33), ("swin", "onnx", 4), ("swin", "pt2", 4), ("swin", "decomposed", 4)],
)
def test_published_architectures(name: str, kind: str, taps: int, tmp_path: Path) -> None:
    model = published(name)
    network = load(write(kind, model, images_of(64), tmp_path))
    assert len(same_map(network, model, images_of(64))) == taps
