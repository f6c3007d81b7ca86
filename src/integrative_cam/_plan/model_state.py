"""Contexts that keep the user's model, random numbers and compiled code as they were."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_lock = threading.RLock()
_in_evaluation: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_eager_users = 0
_eager_stack = ExitStack()


@dataclass
class Disturbance:
    """What a run does to the state around it, as far as it is known.

    `drew`: whether the network drew random numbers; None is found out at the end, which makes a device wait.
    """

    buffers: Buffers
    drew: bool | None = None


@contextmanager
def undisturbed(modules: Sequence[nn.Module], device: torch.device) -> Iterator[Disturbance]:
    """Run with autograd on and leave everything as it was: all the contexts below."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        eager(modules),
        evaluation(modules),
        preserved_buffers(modules) as buffers,
    ):
        state = Disturbance(buffers)
        with preserved_randomness(device, state):
            yield state


@contextmanager
def evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run in evaluation mode, then give every module its own training flag back.

    A module in training mode is counted, so that of several threads explaining one model the last to
    leave restores it. A model already in evaluation mode is not touched at all.
    """
    held: list[nn.Module] = []
    try:
        with _lock:
            for module in modules:
                if module.training or (_in_evaluation and module in _in_evaluation):
                    _in_evaluation[module] = _in_evaluation.get(module, 0) + 1
                    held.append(module)
                    module.training = False
        yield
    finally:
        with _lock:
            for module in held:
                _in_evaluation[module] -= 1
                if not _in_evaluation[module]:
                    del _in_evaluation[module]
                    module.training = True


@contextmanager
def preserved_randomness(device: torch.device, state: Disturbance | None = None) -> Iterator[None]:
    """Put the random number generators back where a network drew from them; `state.drew` says whether it did.

    Restored only when they moved. The generators are the process's own: what other threads draw from them meanwhile is
    drawn again.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    before = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        drew = None if state is None else state.drew
        if drew is None:
            moved = [
                not torch.equal(old, generator.get_state()) for old, generator in zip(before, generators, strict=True)
            ]
            if state is not None:
                state.drew = any(moved)
        else:
            moved = [drew] * len(generators)
        for old, generator, has_moved in zip(before, generators, moved, strict=True):
            if has_moved:
                generator.set_state(old)


class Buffers:
    """The buffers of some modules, and other tensors that they keep: attributes, and entries of lists and dicts there.

    All values are copied beforehand: what writes to a buffer, as batch norm and fused observers do, need not say so.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        known = set(map(id, modules))
        self._containers: list[tuple[Any, Any]] = []
        tensors: list[Tensor] = []
        for module in modules:  # grows by modules that are kept in plain lists
            attributes = vars(module)
            held: list[Any] = [attributes, module._buffers] if module._buffers else [attributes]
            own = [attributes[name] for name in attributes.keys() - _OF_EVERY_MODULE]
            containers = [each for each in own if isinstance(each, dict | list | tuple) and each]
            held += [each for each in containers if not isinstance(each, tuple)]
            self._containers += [(each, each.copy()) for each in held]
            entries = [*module._buffers.values(), *own]
            for each in containers:
                entries += each.values() if isinstance(each, dict) else each
            for entry in entries:
                if isinstance(entry, Tensor):
                    tensors.append(entry)
                elif isinstance(entry, nn.Module):
                    modules += [each for each in entry.modules() if id(each) not in known]
                    known.update(map(id, entry.modules()))
        self._tensors = [each for each in tensors if _can_be_copied(each)]
        with torch.no_grad():
            self._values = [each.detach().clone() for each in self._tensors]
        self._storages: set[int] | None = None

    def before_write(self, tensor: Tensor) -> bool:
        """Whether a tensor that is about to be written to is a buffer's memory."""
        if self._storages is None:
            self._storages = set(map(storage_of, self._tensors))
        return storage_of(tensor) in self._storages

    def restore(self) -> None:
        """Give all of them their tensors and these their values back."""
        for container, before in self._containers:
            if len(container) != len(before) or not all(map(operator.is_, _entries(container), _entries(before))):
                _put_back(container, before)
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                if tensor.shape != value.shape:
                    tensor.data = value
            # Values are not compared, which would read them; and `data` counts no write, so that a graph of the caller
            # that holds a buffer stays valid.
            if self._tensors:
                torch._foreach_copy_([each.data for each in self._tensors], self._values)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _entries(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _can_be_copied(tensor: Tensor) -> bool:
    """Not parameters, which are not written to, and what has no values of its own or a graph behind it."""
    is_plain = tensor.layout == torch.strided and tensor.device.type != "meta"
    return is_plain and tensor.grad_fn is None and not isinstance(tensor, nn.Parameter)


def _put_back(container: Any, before: Any) -> None:
    """Give a container the tensors back that it had, and what they took the place of."""
    if isinstance(container, list):
        changed = [pair for pair in zip_longest(before, container) if pair[0] is not pair[1]]
        if any(isinstance(entry, Tensor) for pair in changed for entry in pair):
            container[:] = before
        return
    for name in [*before, *(container.keys() - before.keys())]:
        old, new = before.get(name), container.get(name)
        if old is not new and (isinstance(old, Tensor) or isinstance(new, Tensor)):
            if name in before:
                container[name] = old
            else:
                del container[name]


@contextmanager
def preserved_buffers(modules: Iterable[nn.Module]) -> Iterator[Buffers]:
    """Give buffers that the network overwrites or assigns their values back."""
    buffers = Buffers(modules)
    try:
        yield buffers
    finally:
        buffers.restore()


def storage_of(tensor: Tensor) -> int:
    """The same number for all tensors that share memory."""
    return tensor.untyped_storage().data_ptr()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that `torch.compile`, DataParallel or DistributedDataParallel wraps, or the model itself."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def eager(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Run those of a model's modules that are compiled eagerly, since a compiled graph hides its feature maps."""
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None for module in modules
    )
    return _eager_stance() if compiled else nullcontext()


@contextmanager
def _eager_stance() -> Iterator[None]:
    # The stance is global to the process: the first thread in sets it, the last one out restores it.
    global _eager_users
    with _lock:
        _eager_users += 1
        if _eager_users == 1:
            _eager_stack.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            _eager_users -= 1
            if not _eager_users:
                _eager_stack.close()
