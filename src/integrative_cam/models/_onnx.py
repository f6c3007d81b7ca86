"""ONNX files through onnx2torch, which builds torch layers from the graph: no code is run, nothing is unpickled."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from torch import fx, nn

from ..errors import MissingExtraError, ModelError, first_line
from ._calls import LINEAR_MAP, OP, replace_by_call
from ._graph_file import graph_network, image_axes
from ._image import is_file
from ._logits import describe_end, end_in_logits
from ._network import Network
from ._opset import lower_opset
from ._pieces import gather_pieces

CURE = "From torch, write it with torch.onnx.export(model, (image,), file, dynamo=False, opset_version=17)."
"""What to do about an operation that cannot be converted."""
NAMES = ("labels", "names", "classes", "class_names")
"""Keys under which exporters put class names into a file's metadata."""


def from_onnx(path: Path) -> Network:
    """The network in an ONNX file, with the preprocessing and class names of the JSON file beside it.

    The size and the place of the channels are those of the graph's input. A softmax or sigmoid at the end is removed,
    and a note says so.

    Raises:
        MissingExtraError: onnx2torch is not installed.
        ModelError: no such file, not ONNX, an operation that onnx2torch does not know, or no image as input.
    """
    try:
        import onnx
        import onnx2torch
    except ImportError as error:
        raise MissingExtraError.of(f"model '{path}'", "onnx", error) from error
    if not is_file(path):
        raise ModelError(f"model '{path}': no such file.")
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's classes of errors differ between versions
        raise ModelError(f"model '{path}': not an ONNX file that can be read ({first_line(error)}).") from error
    axes = image_axes(_input_shape(proto, path), path)
    try:
        proto = lower_opset(proto)
        operations = {node.output[0]: node.op_type for node in proto.graph.node}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = cast(fx.GraphModule, onnx2torch.convert(proto, attach_onnx_mapping=True)).eval()
        _as_layers(model, operations)
        gather_pieces(model)
        removed = end_in_logits(model)
    except Exception as error:  # a converter fails in many ways
        raise ModelError(f"model '{path}': onnx2torch cannot convert it ({first_line(error)}). {CURE}") from error
    texts = dict.fromkeys(str(warning.message) for warning in caught)
    notes = [f"{path.name}: onnx2torch warns: {text}" for text in texts]
    ending, task = describe_end(path.name, removed)
    return graph_network(path, model, axes, _names(proto), (*notes, *ending), task)


def _as_layers(model: fx.GraphModule, operations: Mapping[str, str]) -> None:
    """Name the operation of each node by that of its first output, and repair what onnx2torch makes of layers."""
    for node in list(model.graph.nodes):
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        node.meta[OP] = operations[cast(Any, module).onnx_mapping.outputs[0]]
        if isinstance(module, nn.LayerNorm):
            # onnx2torch takes it from the inferred shape of the input, which may be unknown.
            module.normalized_shape = tuple(module.weight.shape)
        elif node.meta[OP] == "MatMul" and node.args[1].op == "get_attr":
            weight = attrgetter(node.args[1].target)(model)
            if weight.ndim == 2:
                replace_by_call(model, node, node.target, LINEAR_MAP, *node.args)


def _input_shape(proto: Any, path: Path) -> list[int | None]:
    """The shape of the graph's only input; None for an axis of any length."""
    constants = {constant.name for constant in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ModelError(f"model '{path}': has {len(inputs)} inputs ({names}), but a photograph is one.")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != 1:
        raise ModelError(
            f"model '{path}': its input {inputs[0].name} is not float32 (ONNX element type {kind.elem_type}); "
            "export it with a float32 input."
        )
    return [side.dim_value or None for side in kind.shape.dim]


def _names(proto: Any) -> tuple[str, ...]:
    """Class names in the metadata: JSON, as a list or an object from index to name."""
    metadata = {entry.key.lower(): entry.value for entry in proto.metadata_props}
    for key in NAMES:
        try:
            names = json.loads(metadata.get(key, "null"))
        except (ValueError, RecursionError):
            continue
        if isinstance(names, dict):
            names = [names.get(str(index)) for index in range(len(names))]
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()
