"""Sums of products (linear, matmul, einsum, tensordot) as einsum writes them: a letter for each axis."""

from __future__ import annotations

import string
from collections.abc import Sequence

from torch import Tensor

from .functions import FunctionCall


def terms_of(call: FunctionCall) -> tuple[list[tuple[Tensor, str]], str] | None:
    """The operands of a sum of products, with a letter for each axis, and the letters of the result; None where the
    call cannot be written like that.
    """
    name, letters = call.name, string.ascii_letters
    if name == "einsum":
        equation = call.args[0]
        operands = call.args[1:] if len(call.args) > 2 or isinstance(call.args[1], Tensor) else tuple(call.args[1])
        return _parsed(equation, operands) if isinstance(equation, str) else None
    if name == "linear":
        x, weight = call.argument(0, "input"), call.argument(1, "weight")
        rows = letters[: x.ndim - 1]
        if weight.ndim != 2:
            return None
        return [(x, rows + "Y"), (weight, "ZY")], rows + "Z"
    if name in ("baddbmm", "addmm", "addbmm"):
        a, b = call.argument(1, "batch1"), call.argument(2, "batch2")
    elif name == "rmatmul":
        b, a = call.args[:2]
    elif name == "tensordot":
        a, b = call.argument(0, "a"), call.argument(1, "b")
        dims = call.argument(2, "dims", 2)
        if isinstance(dims, int):
            dims = list(range(a.ndim - dims, a.ndim)), list(range(dims))
        if not isinstance(dims, tuple | list) or len(dims) != 2:
            return None
        left, right = (
            [axis % t.ndim for axis in (d if isinstance(d, tuple | list) else [d])]
            for t, d in zip((a, b), dims, strict=True)
        )
        of_a = list(letters[: a.ndim])
        of_b = list(letters[a.ndim : a.ndim + b.ndim])
        for i, j in zip(left, right, strict=True):
            of_b[j] = of_a[i]
        rest = [name for i, name in enumerate(of_a) if i not in left]
        rest += [name for j, name in enumerate(of_b) if j not in right]
        return [(a, "".join(of_a)), (b, "".join(of_b))], "".join(rest)
    else:
        a, b = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or min(a.ndim, b.ndim) < 2:
        return None
    depth = max(a.ndim, b.ndim) - 2
    rows = letters[:depth]
    if any(1 in pair and pair[0] != pair[1] for pair in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False)):
        return _broadcast_terms(a, b, rows)
    return [(a, rows[depth - a.ndim + 2 :] + "XY"), (b, rows[depth - b.ndim + 2 :] + "YZ")], rows + "XZ"


def _broadcast_terms(a: Tensor, b: Tensor, rows: str) -> tuple[list[tuple[Tensor, str]], str]:
    """As `terms_of` for a matrix product whose leading axes of size 1 are broadcast: these get letters of their own."""
    spare = iter(string.ascii_lowercase[::-1])
    named = []
    for tensor, end in ((a, "XY"), (b, "YZ")):
        own = rows[len(rows) - tensor.ndim + 2 :]
        named.append(
            "".join(next(spare) if size == 1 else name for name, size in zip(own, tensor.shape, strict=False)) + end
        )
    return [(a, named[0]), (b, named[1])], rows + "XZ"


def _parsed(equation: str, operands: Sequence[Tensor]) -> tuple[list[tuple[Tensor, str]], str] | None:
    equation = equation.replace(" ", "")
    terms, _, result = equation.partition("->")
    names = terms.split(",")
    if len(names) != len(operands) or "->" not in equation:
        return None
    depth = max(
        (t.ndim - len(n.replace("...", "")) for t, n in zip(operands, names, strict=True) if "..." in n), default=0
    )
    spare = "".join(letter for letter in string.ascii_uppercase if letter not in equation)[:depth]
    named = []
    for tensor, name in zip(operands, names, strict=True):
        own = tensor.ndim - len(name.replace("...", ""))
        name = name.replace("...", spare[depth - own :] if own else "")
        if len(name) != tensor.ndim or len(set(name)) != len(name):
            return None
        named.append((tensor, name))
    return named, result.replace("...", spare)
