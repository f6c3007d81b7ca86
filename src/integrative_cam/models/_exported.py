"""Programs of torch.export, turned back into calls of torch functions, which the capture of taps recognises."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from .._plan.bias_sites import RULES
from .._plan.capture import KINDS
from ..errors import ModelError, first_line
from ._graph_file import graph_network, image_axes
from ._image import is_file
from ._network import Network

TRUSTED = ":trusted"

# The function of torch.nn.functional for a norm of aten, and the places of its arguments among those of aten.
_NORMS: Mapping[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "batch_norm": (F.batch_norm, (0, 3, 4, 1, 2, 5, 6, 7)),
    "instance_norm": (F.instance_norm, (0, 3, 4, 1, 2, 5, 6, 7)),
    "group_norm": (F.group_norm, (0, 1, 2, 3, 4)),
    "layer_norm": (F.layer_norm, (0, 1, 2, 3, 4)),
}


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
    return graph_network(path, as_functions(program), axes)


class Scope(nn.Module):
    """Takes the place of a module of the program, so that functions called in it are named after it."""

    def forward(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of torch."""
        return _function(function)(*arguments, **options)


def as_functions(program: torch.export.ExportedProgram) -> nn.Module:
    """The program as a module that calls torch's functions instead of operators of the dispatcher.

    Operators have their own names and orders of arguments; no activation and no bias would be recognised by them.

    Raises:
        ModelError: exported in training mode.
    """
    module = program.module()
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.rpartition("::")[2]
        if _trains(name, node):
            raise ModelError("The program was exported in training mode; export model.eval().")
        if name in _NORMS:
            node.args = tuple(node.args[place] for place in _NORMS[name][1] if place < len(node.args))
        elif name.strip("_") not in KINDS and name.strip("_") not in RULES:
            continue
        _call(module, node, name)
    module.recompile()
    # Exported modules refuse eval(): the mode is part of the program.
    for part in module.modules():
        part.training = False
    return module


def _call(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Let `node` call the function of that name, within the module that called it before the export."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    if not path:
        node.target = _function(name)
        return
    place = dict(module.named_modules()).get(path)
    if place is None:
        module.add_submodule(path, Scope())
    else:
        place.__class__ = Scope  # an empty shell around its parameters
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (name, *node.args), node.kwargs)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _function(name: str) -> Callable[..., Any]:
    """The function of torch with an operator's name and arguments; for a norm, that of _NORMS."""
    if name in _NORMS:
        return _NORMS[name][0]
    homes = (torch._C._nn, torch, torch.Tensor)
    return cast(Callable[..., Any], next(getattr(home, name) for home in homes if hasattr(home, name)))


def _trains(name: str, node: fx.Node) -> bool:
    places = {"batch_norm": 5, "dropout": 2}
    return name in places and node.args[places[name]] is True


def _input_shape(program: torch.export.ExportedProgram, name: str) -> list[int | None]:
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), torch.Tensor):
        raise ModelError(f"model {name!r}: has {len(inputs)} inputs, but a photograph is one.")
    # A side that is no int is a symbol, for an axis of any length.
    return [side if isinstance(side, int) else None for side in inputs[0].meta["val"].shape]
