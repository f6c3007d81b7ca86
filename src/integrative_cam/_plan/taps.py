"""Which feature maps are fused: a policy, names, globs, module paths, resolutions or a callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from .._choices import TAPS
from ..errors import TapError

_RESOLUTION = re.compile(r"[0-9]{1,9}(x[0-9]{1,9})*")


class TapLike(Protocol):
    """What a choice of taps may look at."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, *space)."""
        ...


@dataclass(frozen=True)
class TapInfo:
    """A tap as it is planned, without its tensors.

    Attributes:
        name: module path, `:function` where it is no layer of torch.nn, `#call` from the second call on.
        kind: "activation", "conv", "linear", "norm", "pool" or "merge".
        shape: (channel, *space).
        stride: pixels of the input per position along each axis of its space; of a network of several inputs, of the
            first one that the tap belongs to.
        path_share: of all paths from the inputs to the score, the share that passes here, in [0, 1]; 1 is a cut.
        biases: bias sites behind it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stride: tuple[float, ...] = ()
    path_share: float = 1.0
    biases: int = 0


Taps = str | Sequence[str] | Callable[[TapLike], bool]
"""A policy name, a name, a glob, a module path or a resolution such as "14x14"; several of them; or a callable."""
T = TypeVar("T", bound=TapLike)


def may_want(taps: Taps) -> Callable[[str, str], bool]:
    """A cheap test of (name, kind), asked during the forward pass, that lets through all that `select` may take."""
    if callable(taps):
        return lambda *_: True
    patterns = _patterns(taps)
    if all(pattern in TAPS for pattern in patterns):
        return lambda _, kind: kind == "activation"
    of_activations = any(pattern in TAPS or _RESOLUTION.fullmatch(pattern) for pattern in patterns)
    return lambda name, kind: (
        (of_activations and kind == "activation")
        or any(_matches(pattern, name) or _inside(pattern, name) for pattern in patterns)
    )


def select(candidates: Sequence[T], taps: Taps, seen: Sequence[str] = ()) -> list[T]:
    """The candidates that `taps` names, in execution order; `seen` are all names, for a helpful error.

    A pattern takes the activations it matches; where it matches none, any other operation it matches; as a
    module path, that module's last operation, which is its output.

    Raises:
        TapError: nothing matches.
    """
    if callable(taps):
        chosen = [index for index, candidate in enumerate(candidates) if taps(candidate)]
        if not chosen:
            raise TapError("taps: the callable accepted none of the feature maps of this network.")
    else:
        chosen = sorted({index for pattern in _patterns(taps) for index in _select_one(candidates, pattern, seen)})
    return [candidates[index] for index in chosen]


def select_for(
    candidates: Sequence[T], reached: Sequence[Sequence[bool]], taps: Taps, seen: Sequence[str]
) -> list[list[int]]:
    """For each input, the indices of the candidates that its map is made of: those of its own that `taps` names.

    Its own are those that lie on it, and through which it reaches the score: `reached[candidate][input]`.

    Raises:
        TapError: nothing matches for any input.
    """
    own = [[index for index, by in enumerate(reached) if by[at]] for at in range(len(reached[0]) if reached else 1)]
    chosen: list[set[int]] = [set() for _ in own]
    for pattern in [taps] if isinstance(taps, str) or callable(taps) else taps:
        errors = []
        for selected, indices in zip(chosen, own, strict=True):
            index_of = {id(candidates[index]): index for index in indices}
            try:
                named = select([candidates[index] for index in indices], pattern, seen)
            except TapError as error:
                errors.append(error)
            else:
                selected.update(index_of[id(candidate)] for candidate in named)
        if len(errors) == len(own):
            raise errors[0]
    return [sorted(indices) for indices in chosen]


def _select_one(candidates: Sequence[T], pattern: str, seen: Sequence[str]) -> list[int]:
    activations = [index for index, each in enumerate(candidates) if each.kind == "activation"]
    if pattern == "activations":
        chosen = activations
    elif pattern == "stages":
        chosen = list({candidates[index].shape[1:]: index for index in activations}.values())
    elif pattern == "last":
        chosen = activations[-1:]
    else:
        matching = [index for index, each in enumerate(candidates) if _matches(pattern, each.name)]
        chosen = [index for index in matching if candidates[index].kind == "activation"] or matching
        chosen = chosen or [index for index, each in enumerate(candidates) if _inside(pattern, each.name)][-1:]
        if not chosen and _RESOLUTION.fullmatch(pattern):
            size = tuple(map(int, pattern.split("x")))
            chosen = [index for index in activations if candidates[index].shape[1:] == size]
    if not chosen:
        raise TapError(_nothing(pattern, candidates, seen))
    return chosen


def _patterns(taps: str | Sequence[str]) -> list[str]:
    patterns = [taps] if isinstance(taps, str) else list(taps) if isinstance(taps, Sequence) else []
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise TapError(
            f"taps must be one of {', '.join(TAPS)}, a name, a glob, a module path, a resolution such as "
            f"'14x14', a list of these or a callable, but got {taps!r}."
        )
    return patterns


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern)


def _inside(path: str, name: str) -> bool:
    return name.startswith((f"{path}.", f"{path}:", f"{path}#"))


def _nothing(pattern: str, candidates: Sequence[TapLike], seen: Sequence[str]) -> str:
    if pattern in TAPS:
        return (
            "No feature map with space: the network calls no nonlinearity (relu, gelu, ...) whose output is "
            "(batch, channel, *space) with more than one position and depends on the input. "
            "Name other tensors with taps=, such as taps='*conv*'."
        )
    if _RESOLUTION.fullmatch(pattern):
        sizes = dict.fromkeys("x".join(map(str, each.shape[1:])) for each in candidates)
        return f"taps={pattern!r}: no activation has this resolution; there are {', '.join(sizes) or 'none'}."
    if any(_matches(pattern, name) or _inside(pattern, name) for name in seen):
        return (
            f"taps={pattern!r} matches only tensors without the images' axes, or on which the score does not depend. "
            "List what there is with cam.taps(images)."
        )
    close = get_close_matches(pattern, seen, n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return f"taps={pattern!r} matches no feature map of this network.{hint} List them with cam.taps(images)."
