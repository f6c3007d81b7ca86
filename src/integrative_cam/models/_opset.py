"""ONNX graphs of newer opsets written in opset 17, the last whose operations onnx2torch knows.

Most operations were only declared anew since then, to take more types of numbers. The others get the form they had.
"""

from __future__ import annotations

from typing import Any

OPSET = 17
_FUNCTIONS = ("Gelu", "Mish", "Swish")
"""Activations that are no operation of opset 17. They are written in pieces, which are put together again later."""


def lower_opset(proto: Any) -> Any:
    """The graph in opset 17; the same graph if its opset is not newer.

    Raises:
        onnx.checker.ValidationError: an operation has no such form in opset 17.
    """
    from onnx import TensorProto, checker, helper, inliner

    versions = {each.domain: each.version for each in proto.opset_import}
    if versions.get("", OPSET) <= OPSET:
        return proto
    names = {node.output[0]: node.name for node in proto.graph.node}
    functions = [("", name) for name in _FUNCTIONS]
    proto = inliner.inline_selected_functions(proto, functions, inline_schema_functions=True)
    constants = _constants(proto)
    for node in proto.graph.node:
        node.name = node.name or names.get(node.output[0], "")
        if node.op_type == "CastLike":  # of constants in the pieces
            node.op_type = "Cast"
            del node.input[1:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
            axes = constants.get(node.input[1])
            if axes is not None:
                del node.input[1:]
                node.attribute.append(helper.make_attribute("axes", axes.tolist()))
        elif node.op_type == "Reshape" and (constants.get(node.input[1], 0) != 0).all():
            _drop(node, "allowzero")  # which says what a zero means
        elif node.op_type == "Split" and len(node.input) == 1:
            _drop(node, "num_outputs")  # as many as there are
        _drop_defaults(node, versions[""])
    for each in proto.opset_import:
        if each.domain == "":
            each.version = OPSET
    checker.check_model(proto)
    return proto


def _constants(proto: Any) -> dict[str, Any]:
    from onnx import numpy_helper

    tensors = {each.name: each for each in proto.graph.initializer if each.data_type == 7}  # int64
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def _drop_defaults(node: Any, version: int) -> None:
    """Leave out attributes that opset 17 does not have, where they change nothing."""
    from onnx import defs, helper

    if node.domain or not defs.has(node.op_type, max_inclusive_version=OPSET):
        return
    known = defs.get_schema(node.op_type, max_inclusive_version=OPSET).attributes
    newer = defs.get_schema(node.op_type, max_inclusive_version=version).attributes
    for attribute in list(node.attribute):
        if attribute.name not in known and attribute.name in newer:
            default = newer[attribute.name].default_value
            if default.type and helper.get_attribute_value(default) == helper.get_attribute_value(attribute):
                node.attribute.remove(attribute)


def _drop(node: Any, name: str) -> None:
    for attribute in [each for each in node.attribute if each.name == name]:
        node.attribute.remove(attribute)
