"""Networks in ONNX files, and the JSON files beside them."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np
from onnx import TensorProto, helper, numpy_helper

with harness.instrumented("onnx2torch"):
    from PIL import Image

    from integrative_cam.models._onnx import from_onnx

FILE = harness.WORK / "net.onnx"
SIDECAR = FILE.with_suffix(".json")
RIGHT = {
    "resize": 12, "crop": [8, 8], "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 1],
    "squash": True, "labels": ["a", "b"], "task": "classification",
}  # fmt: skip
PHOTOGRAPH = Image.new("RGB", (9, 7), "red")


def graph(sides: tuple[Any, Any] = (8, 8), names: str = '["a", "b"]') -> bytes:
    """Convolution, ReLU, mean, softmax."""
    weight = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    proto.metadata_props.add(key="names", value=names)
    return bytes(proto.SerializeToString())


GRAPHS = [graph(), graph(("h", "w")), graph((10**9, 10**9)), graph((8, 8), "[" * 50_000), graph((8, 8), "9" * 5000)]


def attempt(data: bytes) -> None:
    """Alter the graph or the file beside it; a network that comes out prepares a photograph."""
    choices = harness.chosen(data)
    content = choices.PickValueInList(GRAPHS)
    SIDECAR.unlink(missing_ok=True)
    if choices.ConsumeBool():
        content = harness.spoiled(content, choices)
    else:
        SIDECAR.write_bytes(harness.altered(RIGHT, choices))
    if choices.ConsumeIntInRange(0, 20) == 0:
        SIDECAR.write_bytes(choices.ConsumeBytes(40))
    FILE.write_bytes(content)
    network = from_onnx(FILE)
    view = network.preprocessing(PHOTOGRAPH)
    assert view.tensor.isfinite().all(), "values that are no numbers"
    network.label(0)


if __name__ == "__main__":
    harness.fuzz(attempt, harness.noise(60, 40))
