"""Networks in files of a bare graph: ONNX and torch.export; each compared with the torch module it was written from."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM
from integrative_cam.errors import ModelError
from integrative_cam.models import Network, Preprocessing, load
from integrative_cam.models._exported import as_functions

SIZE = (20, 28)
"""Height and width; not square, so that a mixed-up axis shows."""


def small(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ).eval()


def write_onnx(
    path: Path,
    model: nn.Sequential,
    *,
    last: str | None = None,
    channels_last: bool = False,
    shape: list[Any] | None = None,
    element: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
    first: str = "Relu",
) -> Path:
    """The network of `small`, written operation by operation."""
    parameters = {name.replace(".", "_"): value.detach().numpy() for name, value in model.named_parameters()}
    channels = parameters["0_weight"].shape[1]
    height, width = SIZE
    side = [height, width, channels] if channels_last else [channels, height, width]
    begin = "image"
    nodes = []
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]))
        begin = "first"
    nodes += [
        helper.make_node("Conv", [begin, "0_weight", "0_bias"], ["a"], pads=[1] * 4),
        helper.make_node(first, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "2_weight", "2_bias"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "6_weight", "6_bias"], ["logits"], transB=1),
    ]
    output = "logits"
    if last:
        output = "shares"
        nodes.append(helper.make_node(last, ["logits"], ["shares"], **({} if last == "Sigmoid" else {"axis": 1})))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", element, shape or ["batch", *side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in parameters.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
    return path


def write_exported(path: Path, model: nn.Module, shape: tuple[int, ...], dynamic: Any = None) -> str:
    # Not strict, which is the default since torch 2.7; strict programs of torch 2.6 keep no paths of modules.
    program = torch.export.export(model, (torch.rand(shape),), dynamic_shapes=dynamic, strict=False)
    torch.export.save(program, path)
    return f"{path}:trusted"


def assert_same(network: Network, model: nn.Module, images: Tensor, *, names: bool = False) -> None:
    """Logits, map, layers (their names too) and completeness of the file's network are those of the module."""
    with torch.no_grad():
        torch.testing.assert_close(network.model(images), model(images))
    found, expected = IntegrativeCAM(network.model)(images), IntegrativeCAM(model)(images)
    assert len(found.layers) == len(expected.layers)
    if names:
        # Of a torch layer, the function's name stands behind its path.
        pairs = zip(found.layers, expected.layers, strict=True)
        assert all(ours.name.startswith(theirs.name.partition("#")[0]) for ours, theirs in pairs)
    assert float(expected.map.std()) > 0.05
    torch.testing.assert_close(found.map, expected.map, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.completeness.bias, expected.completeness.bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("last", [None, "Softmax", "LogSoftmax", "Sigmoid"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_onnx_is_explained_as_its_torch_original(channels_last: bool, last: str | None, tmp_path: Path) -> None:
    model = small()
    network = load(str(write_onnx(tmp_path / "small.onnx", model, last=last, channels_last=channels_last)))
    assert not network.model.training
    assert network.preprocessing == Preprocessing(SIZE, SIZE, "bilinear", (0.0,) * 3, (1.0,) * 3)
    assert_same(network, model, torch.rand(1, 3, *SIZE))
    said = [note for note in network.notes if "is removed" in note]
    assert said == ([f"small.onnx ends in {last}, which is removed: the logits before it are explained."] * bool(last))


def test_pixels_are_taken_as_they_are_and_that_is_said(tmp_path: Path) -> None:
    network = load(str(write_onnx(tmp_path / "small.onnx", small())))
    (note,) = network.notes
    assert "small.onnx does not say how its input is normalised" in note
    view = network.preprocessing(Image.new("RGB", (50, 30), (255, 51, 0)))
    assert view.tensor.shape == (1, 3, *SIZE)
    torch.testing.assert_close(view.tensor[0, :, 3, 3], torch.tensor([1.0, 0.2, 0.0]))
    assert view.picture.size == (50, 30)  # squashed, not cropped


def test_greyscale_onnx_gets_one_channel(tmp_path: Path) -> None:
    network = load(str(write_onnx(tmp_path / "grey.onnx", small(1), channels_last=True)))
    assert network.preprocessing.mean == (0.0,)
    assert_same(network, small(1), torch.rand(1, 1, *SIZE))


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_file_beside_it_says_the_rest(kind: str, tmp_path: Path) -> None:
    placed = {"resize": 32, "crop": SIZE, "interpolation": "bicubic"}
    given = placed | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 1], "labels": ["a", "b", "c", "é"]}
    # As some editors save it: UTF-8 with a mark at its beginning.
    (tmp_path / "net.json").write_text(json.dumps(given, ensure_ascii=False), "utf-8-sig")
    if kind == "onnx":
        name = str(write_onnx(tmp_path / "net.onnx", small(), metadata={"labels": '["w", "x", "y", "z"]'}))
    else:
        name = write_exported(tmp_path / "net.pt2", small(), (1, 3, *SIZE))
    network = load(name)
    assert network.preprocessing == Preprocessing(32, SIZE, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.1, 1.0))
    assert network.labels == ("a", "b", "c", "é")
    assert network.notes == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "net.json: cannot be read"),
        ("[1]", "must hold an object, but holds list"),
        ('{"means": [1]}', "unknown key 'means'; there are resize, crop"),
        ('{"mean": [0.5]}', r"mean must be 3 numbers in units of \[0, 1\], but got \[0.5\]"),
        ('{"std": [0.5, 0, 1]}', "std must be 3 positive numbers"),
        ('{"mean": "abc"}', "mean must be 3 numbers"),
        ('{"crop": [28, 20]}', r"crop is \[28, 20\], but net.onnx takes \[20, 28\]"),
        ('{"crop": 20}', r"sizes must be \[height, width\] in pixels, but got 20"),
        ('{"resize": 0}', "sizes must be"),
        ('{"interpolation": "area"}', "interpolation must be one of nearest, bilinear"),
    ],
)
def test_wrong_sidecars(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load(str(write_onnx(tmp_path / "net.onnx", small())))


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({"names": '{"1": "dog", "0": "cat"}'}, ("cat", "dog")),
        ({"Classes": '["cat", "dog"]'}, ("cat", "dog")),
        ({"names": "{0: 'cat'}", "author": "x"}, ()),
        ({"labels": "[1, 2]"}, ()),
        ({"names": '{"1": "dog", "5": "cat"}'}, ()),
    ],
)
def test_class_names_in_onnx_metadata(metadata: dict[str, str], labels: tuple[str, ...], tmp_path: Path) -> None:
    assert load(str(write_onnx(tmp_path / "net.onnx", small(), metadata=metadata))).labels == labels


def test_a_network_of_any_size_needs_one(tmp_path: Path) -> None:
    name = str(write_onnx(tmp_path / "net.onnx", small(), shape=["batch", 3, "height", "width"]))
    with pytest.raises(ModelError, match=r'net: takes any size; .*net.json beside it: {"crop": \[224, 224\]}'):
        load(name)
    (tmp_path / "net.json").write_text('{"crop": [24, 16]}')
    assert load(name).preprocessing.crop == (24, 16)
    sides = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    name = write_exported(tmp_path / "other.pt2", small(), (1, 3, *SIZE), sides)
    with pytest.raises(ModelError, match="other: takes any size"):
        load(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": ["batch", 4, 20, 28]}, r"takes input of shape \(any, 4, 20, 28\), not \(batch, 1 or 3, height"),
        ({"shape": ["batch", 3]}, r"takes input of shape \(any, 3\)"),
        ({"element": TensorProto.UINT8}, "its input image is not float32 .ONNX element type 2."),
        ({"first": "Det"}, "onnx2torch cannot convert it .*Det"),
    ],
)
def test_onnx_files_that_cannot_be_explained(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load(str(write_onnx(tmp_path / "net.onnx", small(), **options)))


def test_bad_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none.onnx': no such file"):
        load(str(tmp_path / "none.onnx"))
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ModelError, match="not an ONNX file that can be read"):
        load(str(tmp_path / "text.onnx"))
    write_onnx(tmp_path / "net.onnx", small())
    with pytest.raises(ModelError, match=r"carries its own weights; leave out the weights other.pth"):
        load(str(tmp_path / "net.onnx"), "other.pth")


class Parts(nn.Module):
    """Every norm, activations as functions and in place, a constant added, tokens with channels last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8, 8))
        self.norms = nn.ModuleList([
            nn.BatchNorm2d(8, eps=0.3), nn.GroupNorm(2, 8, eps=0.1),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.InstanceNorm2d(8, eps=0.1, affine=True),
        ])  # fmt: skip
        self.layer_norm = nn.LayerNorm(8, eps=0.2)
        self.mix = nn.Linear(8, 8)
        self.offset = nn.Parameter(torch.randn(8, 1, 1))
        self.head = nn.Linear(8, 4)
        for norm in (*self.norms, self.layer_norm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
        for norm in (self.norms[0], self.norms[2]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        functions = (nn.functional.relu, torch.relu_, nn.functional.silu, nn.functional.hardswish)
        for conv, norm, function in zip(self.convs, self.norms, functions, strict=True):
            x = function(norm(conv(x)))
        x = nn.functional.leaky_relu(x + self.offset, 0.1)
        x = nn.functional.gelu(self.mix(self.layer_norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        x = nn.functional.dropout(nn.functional.relu6(x), training=self.training)
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


@pytest.mark.parametrize("build", [small, Parts])
def test_exported_is_explained_as_its_original(build: Any, tmp_path: Path) -> None:
    model = build().eval()
    network = load(write_exported(tmp_path / "net.pt2", model, (1, 3, *SIZE)))
    assert not any(module.training for module in network.model.modules())
    assert network.preprocessing.crop == SIZE
    assert_same(network, model, torch.rand(1, 3, *SIZE), names=True)


def test_exported_layers_are_found_by_module_path() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.relu = small()[:3], nn.ReLU()
            self.head = small()[4:]

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.relu(nn.functional.silu(self.body(self.relu(images)))))

    images = torch.rand(1, 3, *SIZE)
    program = torch.export.export(Nested().eval(), (images,))
    found = IntegrativeCAM(as_functions(program)).taps(images)
    assert [tap.name for tap in found] == ["relu:relu", "body.1:relu", ":silu", "relu:relu#2"]
    for taps, name in {"body.*": "body.1:relu", "body": "body.2:conv2d"}.items():
        assert [tap.name for tap in IntegrativeCAM(as_functions(program), taps=taps).taps(images)] == [name]


def test_exported_with_any_batch_and_channels_last(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = small()

        def forward(self, images: Tensor) -> Tensor:
            return self.first(images.permute(0, 3, 1, 2))

    batch = ({0: torch.export.Dim("batch")},)
    network = load(write_exported(tmp_path / "net.pt2", Last().eval(), (2, *SIZE, 3), batch))
    assert_same(network, small(), torch.rand(3, 3, *SIZE))


def test_exported_files_are_read_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_exported(tmp_path / "net.pt2", small(), (1, 3, *SIZE))
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("was read"))
    with pytest.raises(ModelError, match=r"can run code when it is read. .* name it .*net.pt2:trusted"):
        load(name.removesuffix(":trusted"))


def test_bad_exported_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(f"{tmp_path}/none.pt2:trusted")
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(ModelError, match=r"not a file that torch.export.save wrote"):
        load(f"{tmp_path}/text.pt2:trusted")
    with zipfile.ZipFile(tmp_path / "zip.pt2", "w") as archive:
        archive.writestr("anything", "else")
    with pytest.raises(ModelError, match=r"torch.export cannot load it"):
        load(f"{tmp_path}/zip.pt2:trusted")
    name = write_exported(tmp_path / "train.pt2", Parts().train(), (2, 3, *SIZE))
    with pytest.raises(ModelError, match="exported in training mode"):
        load(name)

    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    torch.export.save(torch.export.export(Two(), (torch.rand(1, 3, 4, 4),) * 2), tmp_path / "two.pt2")
    with pytest.raises(ModelError, match="has 2 inputs, but a photograph is one"):
        load(f"{tmp_path}/two.pt2:trusted")


def test_data_parallel_is_explained_as_what_it_wraps() -> None:
    images = torch.rand(2, 3, *SIZE)
    wrapped = nn.DataParallel(small().train())
    found, expected = IntegrativeCAM(wrapped)(images), IntegrativeCAM(small())(images)
    assert torch.equal(found.map, expected.map)
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    assert all(module.training for module in wrapped.modules())


def test_the_original_program_stays_as_it_was() -> None:
    program = torch.export.export(small(), (torch.rand(1, 3, *SIZE),))
    before = str(program)
    as_functions(program)
    assert str(program) == before


SHARED = Path(__file__).parents[3] / "shared" / "models"


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/models")
@pytest.mark.parametrize(
    ("file", "size", "taps"), [("FastestDet", 352, 49), ("deeplabv3_mnv2_voc", 513, 36), ("resnet56_cifar10", 32, 55)]
)
def test_published_onnx_files(file: str, size: int, taps: int) -> None:
    network = load(str(SHARED / f"{file}.onnx"))
    assert network.preprocessing.crop == (size, size)
    torch.manual_seed(0)
    found = IntegrativeCAM(network.model)(torch.rand(1, 3, size, size), lambda output: output.amax())
    assert len(found.layers) == taps
    assert np.asarray(found.map).std() > 0.01


def test_the_task_comes_from_the_file_beside_it_or_the_final_sigmoid(tmp_path: Path) -> None:
    name = str(write_onnx(tmp_path / "net.onnx", small()))
    assert load(name).task == "classification"
    (tmp_path / "net.json").write_text('{"task": "regression"}')
    assert load(name).task == "regression"
    (tmp_path / "net.json").unlink()
    ending = str(write_onnx(tmp_path / "net.onnx", small(), last="Sigmoid"))
    assert load(ending).task == "multi-label"
    (tmp_path / "net.json").write_text('{"task": "labels"}')
    with pytest.raises(ModelError, match=r"task must be one of classification, multi-label, .* but got 'labels'"):
        load(ending)
