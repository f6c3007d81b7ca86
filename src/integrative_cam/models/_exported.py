"""Programs of torch.export, turned back into calls of torch functions, which the capture of taps recognises."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..errors import ModelError, first_line
from ._calls import OP, find_function, replace_by_call
from ._graph_file import graph_network, image_axes
from ._image import is_file
from ._logits import describe_end, end_in_logits
from ._network import Network
from ._pieces import gather_pieces

TRUSTED = ":trusted"


def from_exported(name: str) -> Network:
    """The network in FILE.pt2, named as "FILE.pt2:trusted", with the preprocessing of the JSON file beside it.

    torch.export.load unpickles constants and calls what the graph names, so a file can run any code. The name says
    that the user trusts the file.

    Raises:
        ModelError: not named as trusted, no such file, not an exported program, or no image as its one input.
    """
    path = Path(name.removesuffix(TRUSTED))
    if not is_file(path):
        raise ModelError(f"model {name!r}: no such file.")
    if not name.endswith(TRUSTED):
        raise ModelError(
            f"model {name!r}: a file of torch.export can run code when it is read. If you trust where it comes from, "
            f"name it {name}{TRUSTED}."
        )
    if not zipfile.is_zipfile(path):
        raise ModelError(f"model {name!r}: not a file that torch.export.save wrote.")
    try:
        program = torch.export.load(path)
    except Exception as error:  # files of other versions fail in many ways
        raise ModelError(f"model {name!r}: torch.export cannot load it ({first_line(error)}).") from error
    axes = image_axes(_input_shape(program, name), path)
    module = as_functions(program)
    notes, task = describe_end(path.name, end_in_logits(module))
    return graph_network(path, module, axes, (), notes, task)


def as_functions(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a module that calls torch's functions instead of operators of the dispatcher.

    Operators have their own names and orders of arguments; no activation, no bias and no move of tokens would be
    recognised by them. Activations that the program holds in pieces are put together.

    Raises:
        ModelError: exported in training mode, or the functions do not compute what the operators do.
    """
    module = program.module()
    operators = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    for node in operators:
        if _trains(node):
            raise ModelError("The program was exported in training mode; export model.eval().")
        node.meta[OP] = _schema(node).name.rpartition("::")[2]
    expected = _outputs(module, program)
    gather_pieces(module)
    for node in list(module.graph.nodes):
        name = node.meta.get(OP)
        if name is None or not node.all_input_nodes:
            continue
        if isinstance(node.target, torch._ops.OpOverload):
            overloaded = f"{name}.{node.target._overloadname}"
            name = overloaded if find_function(overloaded) else name
        if find_function(name) is not None:
            call = replace_by_call(module, node, _path(node), name, *node.args, **node.kwargs)
            call.meta[OP] = node.meta[OP]
    module.recompile()
    # Exported modules refuse eval(): the mode is part of the program.
    for part in module.modules():
        part.training = False
    for before, after in zip(expected, _outputs(module, program), strict=True):
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()), equal_nan=True):
            raise ModelError(
                "The program's operators could not be replaced by functions of torch: its output would be "
                f"{float((after - before).abs().max()):.2g} off. Explain the module itself, from FILE.py:FACTORY."
            )
    return module


def _outputs(module: fx.GraphModule, program: torch.export.ExportedProgram) -> list[Tensor]:
    """What the module returns for the inputs that the program was exported with, if the file has them.

    Nothing of a program that writes to its buffers: it may return something else the next time.
    """
    if program.example_inputs is None or program.graph_signature.buffers_to_mutate:
        return []
    args, options = pytree.tree_map_only(Tensor, Tensor.clone, program.example_inputs)
    with torch.no_grad():
        leaves, _ = pytree.tree_flatten(module(*args, **options))
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()]


def _schema(node: fx.Node) -> torch.FunctionSchema:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target._schema


def _path(node: fx.Node) -> str:
    """Of the module that called the operator before the export."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _trains(node: fx.Node) -> bool:
    """Whether the operator does another thing in training than in evaluation."""
    schema = _schema(node)
    named = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    # Without running statistics it normalises by those of its input in both, as standardised weights do.
    trained = named.get("running_mean") is not None and named.get("training") is True
    return trained or (schema.name == "aten::dropout" and named.get("train") is True)


def _input_shape(program: torch.export.ExportedProgram, name: str) -> list[int | None]:
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), torch.Tensor):
        raise ModelError(f"model {name!r}: has {len(inputs)} inputs, but a photograph is one.")
    # A side that is no int is a symbol, for an axis of any length.
    return [side if isinstance(side, int) else None for side in inputs[0].meta["val"].shape]
