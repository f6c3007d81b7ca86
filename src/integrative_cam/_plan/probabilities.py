"""Networks that end in a softmax or sigmoid: the logits that entered it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..targets import logits_of
from ..targets._output import are_probabilities, tensor_of

_MAKERS = {
    **dict.fromkeys(("softmax", "special_softmax", "log_softmax", "special_log_softmax"), "softmax"),
    **dict.fromkeys(("sigmoid", "expit", "special_expit"), "sigmoid"),
}
"""Functions that make probabilities, or their logarithms, of logits."""
_MOVES = frozenset((
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "view_as"),
    *("contiguous", "clone", "alias", "getitem", "select", "narrow", "to", "type", "float", "double", "half"),
    "bfloat16",
))  # fmt: skip
"""Functions that move or copy the values of their first argument."""
_KEEPS = frozenset(("clamp", "clip", "clamp_min", "clamp_max", "dropout", "nan_to_num", "log", "requires_grad"))
"""Functions that leave probabilities the same for whoever reads them: the logits stay what they are."""
_USES = frozenset((
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "mul", "rmul", "imul", "multiply"),
    *(f"conv{n}d" for n in (1, 2, 3)),
))  # fmt: skip
"""Functions of layers: what they use is no final probability but a gate or the weights of an attention."""


@dataclass(eq=False)
class _Made:
    """A tensor of probabilities, or what was moved from it; `source` is shared by all from one call."""

    tensor: Tensor
    logits: Tensor
    kind: str
    source: object


class FinalProbabilities(TorchFunctionMode):
    """Watches a run for softmax and sigmoid whose output is used by no layer, and keeps what entered them.

    What a layer uses, such as an attention's weights or a gate, is forgotten at once, so that nothing is kept alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, _Made] = {}

    def logits(self, tensor: Tensor) -> Tensor | None:
        """The logits, in the shape of this tensor of probabilities; None where they are not known."""
        made = self._made.get(id(tensor))
        return None if made is None else made.logits

    def kind(self, tensor: Tensor) -> str | None:
        """What made these probabilities, or what made some of these logits: "softmax" or "sigmoid"; else None."""
        return next((made.kind for made in self._made.values() if tensor is made.tensor or tensor is made.logits), None)

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The logits of those tensors that are known to be probabilities, in order."""
        return [made.logits for made in (self._made.get(id(tensor)) for tensor in tensors) if made is not None]

    @property
    def remain(self) -> bool:
        """Whether probabilities were made that no layer used."""
        return bool(self._made)

    def logits_of_sample(self, output: Any) -> tuple[Tensor, str | None]:
        """Of one sample of the run's output the logits, and the function that made probabilities of them, if any did.

        Where the logits of probabilities could not be followed, they are worked out from these: their function gives
        the probabilities again, but for what is lost next to 0 and 1.

        Raises:
            OutputError, TargetError: see `targets.logits_of`.
        """
        values, logits = tensor_of(output), logits_of(output)
        if logits is not values:
            return logits, "sigmoid" if all(made.kind == "sigmoid" for made in self._made.values()) else "softmax"
        if values.ndim and values.numel() > 1 and are_probabilities(values[None], of_labels=False):
            return values.log(), "softmax"
        if values.ndim and self.remain and are_probabilities(values[None], of_labels=True):
            return values.logit(torch.finfo(values.dtype).eps), "sigmoid"
        return values, None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        name = called.strip("_").partition(".")[0]  # an operator of torch's dispatcher is softmax.int
        kind = _MAKERS.get(name)
        if kind is None and not self._made:
            return func(*args, **kwargs)
        if kind is None:
            return self._follow(func, called, name, args, kwargs)
        entered = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if _writes(called) and isinstance(entered, Tensor):
            with torch._C.DisableTorchFunction():
                entered = entered.clone()  # about to be overwritten
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and isinstance(entered, Tensor):
            self._keep(output, entered, kind, object())
        return output

    def _follow(
        self, func: Callable[..., Any], called: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        made = self._made.get(id(args[0])) if args else None
        keeps = name in _KEEPS and (name != "dropout" or not kwargs.get("training", len(args) < 3 or args[2]))
        if name in _USES or (_writes(called) and not keeps):
            used = {id(self._made[id(each)].source) for each in args if id(each) in self._made}
            self._made = {key: each for key, each in self._made.items() if id(each.source) not in used}
        output = func(*args, **kwargs)
        if made is not None and isinstance(output, Tensor) and output is not made.tensor:
            if keeps:
                self._keep(output, made.logits, made.kind, made.source)
            elif name in _MOVES:
                with torch._C.DisableTorchFunction():
                    logits = func(made.logits, *args[1:], **kwargs)
                self._keep(output, logits, made.kind, made.source)
        return output

    def _keep(self, tensor: Tensor, logits: Tensor, kind: str, source: object) -> None:
        self._made[id(tensor)] = _Made(tensor, logits, kind, source)


def _writes(called: str) -> bool:
    """Whether a function of this name writes to its first argument."""
    return called.startswith("__i") or called == "__setitem__" or (called.endswith("_") and not called.startswith("_"))
