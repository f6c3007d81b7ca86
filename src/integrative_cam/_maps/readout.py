"""Smooth read-outs f of the score S, and the one number through which they act: rho = f'''(S) / f''(S).

Grad-CAM++ (arXiv:1710.11063) explains exp(S); its alpha holds for any smooth f (method.md, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import RecipeError

if TYPE_CHECKING:
    from jaxtyping import Float

Readout = Callable[[Tensor], Tensor]
Derivatives = tuple[Tensor, Tensor, Tensor]

RHO_LIMIT = 1e6
"""|rho| is cut here: softmax and sigmoid have a pole at p = 1/2."""


def _exp(score: Tensor) -> Derivatives:
    # One positive factor exp(S) in all three cancels; leaving it out cannot overflow.
    one = torch.ones_like(score)
    return one, one, one


def _identity(score: Tensor) -> Derivatives:
    return torch.ones_like(score), torch.zeros_like(score), torch.zeros_like(score)


def _sigmoid(margin: Tensor) -> Derivatives:
    # Divided by p (1 - p), which underflows for confident networks and cancels in rho.
    p = margin.sigmoid()
    return torch.ones_like(p), 1 - 2 * p, 1 - 6 * p + 6 * p * p


def _softplus(score: Tensor) -> Derivatives:
    # f'' = p (1 - p) and f''' = p (1 - p) (1 - 2 p), with the same factor left out.
    p = score.sigmoid()
    return torch.ones_like(p), torch.ones_like(p), 1 - 2 * p


def _log_sigmoid(margin: Tensor) -> Derivatives:
    # f'' = -p (1 - p): both signs turn, rho stays.
    slope, second, third = _softplus(margin)
    return slope, -second, -third


READOUTS: Mapping[str, Callable[[Tensor], Derivatives]] = {
    "exp": _exp,
    "identity": _identity,
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "softmax": _sigmoid,
    "log_softmax": _log_sigmoid,
}
"""(f', f'', f''') at the score, up to one positive factor; at the margin for those in `USES_MARGIN`."""

NEVER_NEGATIVE = frozenset({"exp", "identity"})
"""Read-outs whose rho is at least 0 at any score."""

USES_MARGIN = frozenset({"softmax", "log_softmax"})
"""Read-outs of S - logsumexp(other logits): with the others held fixed, softmax is a sigmoid of it."""


def rho_of(
    readout: str | Readout, score: Float[Tensor, "batch"], margin: Float[Tensor, "batch"] | None
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Rho = f'''(S) / f''(S), within +-RHO_LIMIT, and the sign of f'(S); both float64 on the CPU or `score`'s device.

    `margin` is S - logsumexp(other logits), needed by "softmax" and "log_softmax". f with f'' = f''' = 0
    has rho = 0: plain gradient times activation.

    Raises:
        RecipeError: unknown name; no margin; a callable that is not elementwise, smooth and finite.
    """
    if callable(readout):
        slope, second, third = differentiate(readout, score)
    else:
        if readout in USES_MARGIN:
            if margin is None:
                raise RecipeError(
                    f"readout={readout!r} needs a class index as target, but the target is a callable. "
                    "Use readout='sigmoid' or 'exp', or give class indices."
                )
            score = margin
        slope, second, third = READOUTS[readout](to_float64(score))
    # Nothing is divided by zero, so that no gradient is NaN.
    pole = second == 0
    rho = torch.where(pole, third.sign() * RHO_LIMIT, third / torch.where(pole, 1, second))
    return rho.clamp(-RHO_LIMIT, RHO_LIMIT), slope.sign()


def differentiate(readout: Readout, score: Float[Tensor, "batch"]) -> Derivatives:
    """f', f'' and f''' of an elementwise callable at `score`, by automatic differentiation in float64.

    Raises:
        RecipeError: not elementwise, not finite, not differentiable, or f'' = 0 with f''' != 0.
    """
    name = getattr(readout, "__name__", repr(readout))
    keep = torch.is_grad_enabled() and score.requires_grad
    with torch.enable_grad():
        point = to_float64(score).clone() if keep else to_float64(score).detach().clone().requires_grad_()
        value = readout(point)
        if not isinstance(value, Tensor) or value.shape != point.shape:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RecipeError(
                f"readout {name} must map a tensor of scores to a tensor of the same shape "
                f"{tuple(point.shape)}, elementwise; it gave {came}."
            )
        if not value.requires_grad:
            raise RecipeError(f"readout {name} must be differentiable, but its value carries no gradient.")
        alone = torch.cat([readout(each) for each in point.detach()[:, None]])
        if not torch.allclose(alone, value.detach(), rtol=1e-9, atol=1e-12, equal_nan=True):
            raise RecipeError(
                f"readout {name} must be elementwise: a sample's value changes with the other scores. "
                "Use readout='softmax' for a probability over classes."
            )
        derivatives = [value]
        for _ in range(3):
            if value.requires_grad:
                (value,) = torch.autograd.grad(value.sum(), point, create_graph=True, materialize_grads=True)
            else:
                value = torch.zeros_like(point)
            derivatives.append(value)
    found = torch.stack(derivatives)
    found = found if keep else found.detach()
    _, slope, second, third = found
    if not found.isfinite().all():
        raise RecipeError(
            f"readout {name} has no finite derivatives up to the third, or no finite value, at scores {score.tolist()}."
        )
    if ((second == 0) & (third != 0)).any():
        raise RecipeError(
            f"readout {name} has f'' = 0 but f''' != 0 at scores {score.tolist()}: rho = f'''/f'' is undefined."
        )
    return slope, second, third


def to_float64(score: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return score if score.device.type == "mps" else score.double()
