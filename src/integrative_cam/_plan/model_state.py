"""Contexts that keep the user's model, random numbers and compiled code as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
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
    """The buffers of some modules, and the values of those that are written to."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._assigned = [(module, dict(module._buffers)) for module in modules if module._buffers]
        self._by_storage: dict[int, Tensor] | None = None
        self._before: list[tuple[Tensor, Tensor]] = []

    def before_write(self, tensor: Tensor) -> bool:
        """To be called just before a tensor is written to in place; whether it is a buffer's memory."""
        if self._by_storage is None:
            buffers = [buffer for _, named in self._assigned for buffer in named.values() if buffer is not None]
            self._by_storage = {storage_of(buffer): buffer for buffer in buffers}
        buffer = self._by_storage.get(storage_of(tensor))
        if buffer is None:
            return False
        if not any(buffer is saved for saved, _ in self._before):
            self._before.append((buffer, buffer.detach().clone()))
        return True

    def restore(self) -> None:
        """Give buffers that were written to or assigned their values back."""
        with torch.no_grad():
            for buffer, value in self._before:
                buffer.copy_(value)
        for module, buffers in self._assigned:
            for name, original in buffers.items():
                if module._buffers.get(name) is not original:
                    module._buffers[name] = original


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
