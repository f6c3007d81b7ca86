"""What a network returns for a batch: which tensors hold a row for each image, and which one the logits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ..errors import OutputError, TargetError

LOGITS = ("logits", "logits_per_image", "out")
"""Keys and attributes under which models return their logits; the first one there is taken."""

SUM_TOLERANCE = 1e-3
"""Probabilities of classes sum to 1 within it, in half precision too."""

_VIEWS = ("View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "Alias", "Clone", "ToCopy")
_LAYERS = ("Addmm", "Mm", "Bmm", "Linear", "Convolution", "Mean", "Add", "NativeBatchNorm", "CudnnBatchNorm")
_FILLS = ("CopySlices", "IndexPut", "Where", "MaskedFill", "Cat", "Stack", "Scatter", "ConstantPad")
_BY_ENTRY = (
    "Mul",
    "Div",
    "Add",
    "Sub",
    "Rsub",
    "Neg",
    "Clamp",
    "Index",
    "Select",
    "Slice",
    "Permute",
    "Transpose",
    "T",
)
_LOGITS = "_logits"
"""Attribute of a sample's tensor: the logits that entered the softmax or sigmoid which made it."""
_OF_IMAGE = "_of_image"
"""Attribute of a sample's tensor: it is a row of a tensor with one row for each image."""


def _no_logits(_: Tensor) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Output:
    """What a network returned for `batch` images.

    A tensor is *by image*, and each image's sample holds a row of it, if

    - its first axis is as long as the batch,
    - it was computed from the images, where `leaves` are known; whole numbers and flags count as computed from them,
    - and row 0 does not depend on other images, or no other axis of that length does better.

    A list as long as the batch is by image, an entry for each, if it is the whole output and holds dicts, as detectors
    return them; any other list if no tensor in it has the batch axis and entry 0 was computed from image 0 alone.
    Everything else is given whole: anchors, features of texts, a loss.

    Attributes:
        value: any structure of tensors.
        leaves: the floating-point inputs, in whose graph the output lies; none if that is not known.
        logits: of a tensor of probabilities the logits they were made of, None where they are not known.
        made_probabilities: the network made some that no layer used, whether or not they are known in its output.
    """

    value: Any
    batch: int
    leaves: Sequence[Tensor] = ()
    logits: Callable[[Tensor], Tensor | None] = _no_logits
    made_probabilities: bool = False

    def sample(self, image: int) -> Any:
        """The output of one image: the same structure, without the batch axes."""
        return self._sample(self.value, image, top=True)

    def class_logits(self) -> Tensor:
        """The one tensor that holds the scores of classes, (batch, ...).

        Raises:
            OutputError: no tensor is by image.
            TargetError: several are, and none is called logits.
        """
        tensor = self.value if isinstance(self.value, Tensor) else _named(self.value)
        own = list(self._by_image(self.value, top=True)) if tensor is None else [("", tensor)]
        distinct = {_memory(found): (path, found) for path, each in own for found in [self._logits_or(each)]}
        if len(distinct) > 1:
            return _first_scores(list(distinct.values()), 2)
        is_known = any(self.logits(each) is not None for _, each in own)
        shapes = ", ".join(str(tuple(each.shape)) for _, each in _tensors(self.value)) or "no tensor"
        for _, found in distinct.values():
            if found.is_floating_point() and found.ndim and len(found) == self.batch:
                if not is_known:
                    self._warn_of_probabilities(found)
                return found
        if not any(each.is_floating_point() for _, each in _tensors(self.value)):
            raise OutputError(
                f"The model returned {type(self.value).__name__} without a floating-point tensor or `logits`. "
                "Wrap the model so that it returns a tensor, or a tuple or dict that holds one."
            )
        raise OutputError(
            f"The model's output has shape {shapes} for {self.batch} images: no tensor has a row for each image, from "
            "which a class could be picked. Give a callable on one image's output, such as lambda output: "
            "output['scores'][0], or wrap the model so that it returns one tensor."
        )

    def are_bare_probabilities(self, values: Tensor) -> bool:
        """Whether the scores of classes are probabilities whose logits are not known, which are explained as they are.

        Values are read only behind functions that may make probabilities.
        """
        is_score = values.ndim == 2 and not _is_of_layer(values)
        return is_score and are_probabilities(values, self.made_probabilities)

    def _warn_of_probabilities(self, values: Tensor) -> None:
        if self.are_bare_probabilities(values):
            warnings.warn(
                "The model's outputs are probabilities, and the logits they were made of could not be followed: they "
                "are explained as they are, and the map fades out where one is near 0 or 1. Let the model return its "
                "logits.",
                stacklevel=2,
            )

    def ranked(self, classes: Tensor) -> Tensor:
        """The scores by which top classes are chosen: -inf for a class that was not computed from the images.

        Such as a label that the network fills with a constant. Where that holds for all of an image, none is -inf.

        Args:
            classes: (batch, classes), from `class_logits`.

        Raises:
            TargetError: the rows have length 1, as those of embeddings, whose entries are no scores.
        """
        if classes.shape[1] == 1 or classes.grad_fn is None or _is_of_layer(classes):
            return classes.detach()
        with torch.no_grad():
            of_unit_length = bool(((classes.norm(dim=1) - 1).abs() < SUM_TOLERANCE).all())
        if of_unit_length and not are_probabilities(classes, of_labels=False):
            raise TargetError(
                f"The model's output, of shape {tuple(classes.shape)}, has rows of length 1: it is an embedding, which "
                "has no top class. Give a target, such as targets.similarity(model(other)[0])."
            )
        computed = _computed_classes(classes)
        if computed is None:
            return classes.detach()
        return torch.where(computed | ~computed.any(1, keepdim=True), classes.detach(), -torch.inf)

    def any_logits(self) -> Tensor | None:
        """The first floating-point tensor by image; None if there is none."""
        named = _named(self.value)
        if named is not None and named.ndim and len(named) == self.batch:
            return self._logits_or(named)
        own = (each for _, each in self._by_image(self.value, top=True))
        return next((self._logits_or(each) for each in own), None)

    @property
    def has_gradient(self) -> bool:
        """Whether any tensor in it can be differentiated."""
        return any(tensor.requires_grad for _, tensor in _tensors(self.value))

    def check_alone(self, score: Tensor, name: str) -> None:
        """Refuse a score of image 0 that depends on other images, where the target was given what is not by image.

        Raises:
            TargetError: it does.
        """
        if self.batch == 1 or not self.leaves or self._is_list_of_images(self.value, top=True):
            return
        whole = (each for _, each in _tensors(self.value) if each.is_floating_point() and not self._is_by_image(each))
        if any(map(self._is_computed, whole)) and self.depends_on_others(score, 0):
            raise TargetError(
                f"target {name} gives a score of one image that depends on other images of the batch: it reads a part "
                "of the output that has no row for each image, such as a loss. Explain one image at a time."
            )

    def depends_on_others(self, value: Tensor, image: int = 0) -> bool:
        """Whether a value computed for one image has a gradient at other images."""
        if not value.requires_grad:
            return False
        gradients = torch.autograd.grad(value.sum(), self.leaves, retain_graph=True, allow_unused=True)
        return any(bool(torch.cat([each[:image], each[image + 1 :]]).any()) for each in gradients if each is not None)

    def _logits_or(self, tensor: Tensor) -> Tensor:
        found = self.logits(tensor)
        return tensor if found is None else found

    def _sample(self, value: Any, image: int, top: bool = False) -> Any:
        if isinstance(value, Tensor):
            return self._row(value, image) if self._is_by_image(value) else value
        if self._is_list_of_images(value, top):
            return value[image]
        if _is_record(value):
            parts = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
            return replace(value, **{name: self._sample(each, image) for name, each in parts.items()})
        if isinstance(value, Mapping):
            return {key: self._sample(each, image) for key, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._sample(each, image) for each in value))
        if isinstance(value, tuple | list):
            return type(value)(self._sample(each, image) for each in value)
        if any(isinstance(each, Tensor) for each in getattr(value, "__dict__", {}).values()):
            sampled = copy.copy(value)
            vars(sampled).update({name: self._sample(each, image) for name, each in vars(value).items()})
            return sampled
        return value

    def _row(self, tensor: Tensor, image: int) -> Tensor:
        row = tensor[image]
        setattr(row, _OF_IMAGE, True)
        logits = self.logits(tensor)
        if logits is not None:
            setattr(row, _LOGITS, logits[image])
        return row

    def _by_image(self, value: Any, top: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The floating-point tensors by image, with the path to each."""
        if self._is_list_of_images(value, top):
            return
        for path, tensor in _tensors(value):
            if tensor.is_floating_point() and self._is_by_image(tensor):
                yield path, tensor

    def _is_list_of_images(self, value: Any, top: bool = False) -> bool:
        if not isinstance(value, list) or len(value) != self.batch:
            return False
        if top and all(isinstance(each, Mapping) for each in value):
            return True
        inside = [tensor for _, tensor in _tensors(value)]
        if not inside or any(map(self._has_batch_axis, inside)):
            return False
        first = [tensor for _, tensor in _tensors(value[0]) if self._is_computed(tensor)]
        return not self.leaves or (bool(first) and not any(map(self.depends_on_others, first)))

    def _has_batch_axis(self, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == self.batch

    def _is_by_image(self, tensor: Tensor) -> bool:
        if not self._has_batch_axis(tensor):
            return False
        known = self._decided.get(id(tensor))
        if known is None:
            known = self._decided[id(tensor)] = self._decide(tensor)
        return known

    @cached_property
    def _decided(self) -> dict[int, bool]:
        return {}

    def _decide(self, tensor: Tensor) -> bool:
        if not self.leaves or not tensor.is_floating_point():
            return True
        if not isinstance(self.value, Tensor) and not self._is_computed(tensor):
            if self.batch > 1:
                warnings.warn(
                    f"The model's output holds a tensor of shape {tuple(tensor.shape)} with as many rows as there are "
                    "images, but it was not computed from them: targets are given all of it, as of anchors or texts.",
                    stacklevel=2,
                )
            return False
        others = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] == self.batch > 1]
        if not others or not self.depends_on_others(tensor[0]):
            return True
        return all(self.depends_on_others(tensor.select(axis, 0)) for axis in others)

    def _is_computed(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from the images."""
        if tensor.grad_fn is None:
            return any(tensor is leaf for leaf in self.leaves)
        wanted = {get_gradient_edge(leaf).node for leaf in self.leaves}
        seen, waiting = {tensor.grad_fn}, [tensor.grad_fn]
        while waiting:
            node = waiting.pop()
            if node in wanted:
                return True
            following = [each for each, _ in node.next_functions if each is not None and each not in seen]
            seen.update(following)
            waiting += following
        return False


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    """The same for views of the same values."""
    return tensor.data_ptr(), tensor.shape


def are_probabilities(values: Tensor, of_labels: bool) -> bool:
    """Whether the values of each sample, (batch, classes, ...), lie in [0, 1] and, unless `of_labels`, sum to 1."""
    with torch.no_grad():
        within = bool(((values >= 0) & (values <= 1)).all())
        return within and (
            of_labels or (values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() < SUM_TOLERANCE).all()))
        )


def tensor_of(output: Any) -> Tensor:
    """The tensor of a sample's output to explain: the output itself, the one called logits, or the only one.

    Raises:
        OutputError: there is none.
        TargetError: there are several.
    """
    if isinstance(output, Tensor) and output.is_floating_point():
        return output
    named = _named(output)
    if named is not None:
        return named
    every = [(path, each) for path, each in _tensors(output) if each.is_floating_point()]
    own = [(path, each) for path, each in every if hasattr(each, _OF_IMAGE)] or every
    distinct = {_memory(found): (path, each) for path, each in own for found in [getattr(each, _LOGITS, each)]}
    if not distinct:
        raise OutputError(
            f"The model returned {type(output).__name__} without a floating-point tensor or `logits`. "
            "Wrap the model so that it returns a tensor, or a tuple or dict that holds one."
        )
    if len(distinct) > 1:
        return _first_scores(list(distinct.values()), 1)
    ((_, tensor),) = distinct.values()
    return tensor


def logits_of(output: Any) -> Tensor:
    """The logits in a network's or a sample's output: see `tensor_of`; of probabilities, what they were made of, where
    that is known.

    Raises:
        OutputError: there is none.
        TargetError: there are several, none of them called logits.
    """
    tensor = tensor_of(output)
    logits: Tensor = getattr(tensor, _LOGITS, tensor)
    return logits


def selected(tensor: Tensor, axis: int, number: int) -> Tensor:
    """An entry along an axis, of the logits too where they are known."""
    found = tensor.select(axis, number)
    logits = getattr(tensor, _LOGITS, None)
    if logits is not None:
        setattr(found, _LOGITS, logits.select(axis, number))
    return found


def sample_of(output: Any, sample: int) -> Any:
    """One sample of a structured output: the same structure, without the tensors' batch axes.

    Tensors without axes, such as a loss, stay as they are.
    """
    sizes = [len(each) for _, each in _tensors(output) if each.ndim]
    return Output(output, sizes[0] if sizes else 0).sample(sample)


def _named(output: Any) -> Tensor | None:
    """The tensor under one of LOGITS."""
    for name in LOGITS:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor) and found.is_floating_point():
            return found
    return None


def _tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in a structure, with the path to each as it is written in Python."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{path}[{key!r}]")
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from _tensors(value, f"{path}[{index}]")
    elif _is_record(output):
        for field in fields(output):
            yield from _tensors(getattr(output, field.name), f"{path}.{field.name}")
    else:
        for name, value in getattr(output, "__dict__", {}).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}", value


def _first_scores(tensors: Sequence[tuple[str, Tensor]], ndim: int) -> Tensor:
    """The first of several tensors, where it alone has the axes of class scores, as (logits, feature map) has.

    Raises:
        TargetError: another tensor could hold the scores too, or the first one cannot.
    """
    first = tensors[0][1]
    if first.ndim != ndim or first.shape[-1] < 2 or any(tensor.ndim == ndim for _, tensor in tensors[1:]):
        raise TargetError(_several(tensors))
    return first


def _several(tensors: Sequence[tuple[str, Tensor]]) -> str:
    listed = ", ".join(f"output{path} {tuple(tensor.shape)}" for path, tensor in tensors)
    return (
        f"The model returns several tensors, and none is called logits: {listed}. Say which holds the scores of "
        "classes, such as targets.part(1, 281) for class 281 of output[1]; targets.part takes any target."
    )


def _is_of_layer(tensor: Tensor) -> bool:
    """Whether a linear layer, a convolution or a mean made a tensor, whose values have no range of their own."""
    node = tensor.grad_fn
    while node is not None and _name(node).startswith(_VIEWS) and node.next_functions:
        node = node.next_functions[0][0]
    return node is not None and _name(node).startswith(_LAYERS)


def _name(node: Node) -> str:
    return node.name().rpartition("::")[2]


def _computed_classes(classes: Tensor) -> Tensor | None:
    """Which classes depend on what the last layer or function of the network gave: (batch, classes); None for all.

    Behind it, columns may be filled with constants. The derivative of every class in one direction is that of its
    gradient with respect to the weights of the classes in it.
    """
    edges, seen, fills, waiting = [], set(), False, [(classes.grad_fn, classes.output_nr)]
    while waiting:
        node, number = waiting.pop()
        if node is None or (node, number) in seen:
            continue
        seen.add((node, number))
        name = _name(node)
        fills |= name.startswith(_FILLS)
        if name.startswith((*_VIEWS, *_FILLS, *_BY_ENTRY)):
            waiting += node.next_functions
        else:
            edges.append(GradientEdge(node, number))
    if not fills or not edges:
        return None
    with torch.enable_grad():
        weights = torch.ones_like(classes, requires_grad=True)
        gradients = torch.autograd.grad(classes, edges, weights, create_graph=True, allow_unused=True)
        directions = [
            (each * torch.arange(1, each.numel() + 1, device=each.device).cos().reshape(each.shape)).sum()
            for each in gradients
            if each is not None and each.requires_grad
        ]
        if not directions:
            return None
        (slopes,) = torch.autograd.grad(torch.stack(directions).sum(), weights)
    return slopes != 0


def _is_record(output: Any) -> bool:
    return is_dataclass(output) and not isinstance(output, type)
