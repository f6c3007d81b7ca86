"""Contexts that keep the user's model, random numbers and compiled code as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_lock = threading.RLock()
_in_evaluation: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_eager_users = 0
_eager_stack = ExitStack()


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[Callable[[Tensor], None]]:
    """Run with autograd on and leave everything as it was: all the contexts below.

    Yields the function of `preserved_buffers`.
    """
    modules = list(model.modules())
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        eager(modules),
        evaluation(modules),
        preserved_randomness(device),
        preserved_buffers(modules) as before_write,
    ):
        yield before_write


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
                if module.training or module in _in_evaluation:
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
def preserved_randomness(device: torch.device) -> Iterator[None]:
    """Put the random number generators back where a network drew from them.

    Restored only when they moved. The generators are the process's own: what other threads draw from them
    meanwhile is drawn again.
    """
    cuda = device.type == "cuda"
    cpu_before = torch.get_rng_state()
    cuda_before = torch.cuda.get_rng_state(device) if cuda else None
    try:
        yield
    finally:
        if not torch.equal(cpu_before, torch.get_rng_state()):
            torch.set_rng_state(cpu_before)
        if cuda_before is not None and not torch.equal(cuda_before, torch.cuda.get_rng_state(device)):
            torch.cuda.set_rng_state(cuda_before, device)


@contextmanager
def preserved_buffers(modules: Iterable[nn.Module]) -> Iterator[Callable[[Tensor], None]]:
    """Give buffers that the network overwrites or assigns their values back.

    Yields a function to call just before a tensor is written to in place.
    """
    assigned = [(module, dict(module._buffers)) for module in modules if module._buffers]
    owned = {storage_of(each): each for _, buffers in assigned for each in buffers.values() if each is not None}
    before: list[tuple[Tensor, Tensor]] = []

    def before_write(tensor: Tensor) -> None:
        buffer = owned.pop(storage_of(tensor), None)
        if buffer is not None:
            before.append((buffer, buffer.detach().clone()))

    try:
        yield before_write
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        for module, buffers in assigned:
            for name, original in buffers.items():
                if module._buffers.get(name) is not original:
                    module._buffers[name] = original


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
