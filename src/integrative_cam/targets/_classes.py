"""Targets of classification: probability, "why this and not that", several classes, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import TargetError
from ._scoring import SampleTarget, as_integer, as_target, class_value, class_values, has_unit, name_of, named

Rival = Literal["runner-up", "rest"]


def probability(index: int, exclusive: bool = True) -> SampleTarget:
    """The probability of a class, in [0, 1]: softmax of the logits.

    Args:
        index: the class.
        exclusive: False for labels that do not exclude each other: the sigmoid of the label's logit.

    Its gradient vanishes where the network is certain; `contrast(index, "rest")` asks the same without that.

    Raises:
        TargetError: index is no integer or, when called, out of range.
    """
    index = as_integer(index, "index")

    def target(output: Any) -> Tensor:
        logit = class_value(output, index, "index", f"probability({index})")
        return class_values(output, "").softmax(0)[index] if exclusive else logit.sigmoid()

    return named(target, f"probability of {index}", has_unit=True)


def log_odds(index: int) -> SampleTarget:
    """log(p / (1 - p)) of an output p that is a probability already.

    Behind a sigmoid this is the logit, behind a softmax the logit minus the logsumexp of the others. p is clamped to a
    rounding error away from 0 and 1, where the gradient is 0.

    Raises:
        TargetError: index is no integer or, when called, out of range, or the output is not between 0 and 1.
    """
    index = as_integer(index, "index")

    def target(output: Any) -> Tensor:
        probability = class_value(output, index, "index", f"log_odds({index})", as_returned=True)
        if not 0 <= probability <= 1:
            raise TargetError(
                f"log_odds({index}) needs outputs that are probabilities, 0 to 1, but got {float(probability):.4g}. "
                f"Of logits, take target={index} or contrast({index}, 'rest')."
            )
        return probability.logit(torch.finfo(probability.dtype).eps)

    return named(target, f"log-odds of {index}", has_unit=True)


def contrast(this: int | SampleTarget, that: int | SampleTarget | Rival = "runner-up") -> SampleTarget:
    """Why this and not that: the score of `this` minus the score of `that`.

    Args:
        this: a class, for its logit; or any target.
        that: the same; "runner-up", the highest of the other classes; or "rest", logsumexp of all the others, which
            makes the difference log(p / (1 - p)) of the class's softmax probability p. For these two `this` is a class.

    Raises:
        TargetError: neither a class nor a callable, the same class twice, or, when called, an index out of range or
            a single class.
    """
    first = as_target(this, "this")
    if not isinstance(that, str):
        second = as_target(that, "that")
        if this is that or (not callable(this) and not callable(that) and name_of(first) == name_of(second)):
            raise TargetError(f"this and that are both {name_of(first)}, whose difference is always 0; take two.")
        both = has_unit(first) and has_unit(second)
        return named(lambda output: first(output) - second(output), f"{_term(first)} - {_term(second)}", both)
    if that not in ("runner-up", "rest"):
        raise TargetError(f"that must be a class index, a callable, 'runner-up' or 'rest', but got {that!r}.")
    if callable(this):
        raise TargetError(
            f"that={that!r} needs `this` as a class index, but got {name_of(this)}; give that as a target."
        )
    index = as_integer(this, "this")

    def target(output: Any) -> Tensor:
        own = class_value(output, index, "this", f"contrast({index})")
        logits = class_values(output, "")
        others = torch.cat([logits[:index], logits[index + 1 :]])
        if not len(others):
            raise TargetError(f"contrast({index}, {that!r}) needs another class, but the model has 1 output.")
        return own - (others.amax() if that == "runner-up" else others.logsumexp(0))

    return named(target, f"{index} - {that}", has_unit=True)


def total(of: Sequence[int | SampleTarget]) -> SampleTarget:
    """The sum of several scores, such as the logits of all kinds of cat; each a class or any target.

    Raises:
        TargetError: none, a class twice, neither class nor callable, or, when called, an index out of range.
    """
    if isinstance(of, str) or not isinstance(of, Sequence) or not of:
        raise TargetError(f"of must hold one class or target at least, such as [281, 282], but got {of!r}.")
    parts = [as_target(target, "of") for target in of]
    classes = [as_integer(target, "of") for target in of if not callable(target)]
    twice = next((index for index in classes if classes.count(index) > 1), None)
    if twice is not None:
        raise TargetError(f"The sum holds class {twice} more than once: {classes}.")
    return named(
        lambda output: torch.stack([part(output).reshape(()) for part in parts]).sum(),
        " + ".join(map(_term, parts)),
        all(map(has_unit, parts)),
    )


def _term(target: SampleTarget) -> str:
    """The name, in brackets if it is a sum or difference."""
    name = name_of(target)
    return f"({name})" if " + " in name or " - " in name else name
