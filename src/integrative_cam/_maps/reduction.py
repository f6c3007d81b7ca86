"""What a tap and a bias site come down to: a small map, and sums. Made as soon as the gradient is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..recipe import Recipe
from ..targets import class_scores
from .evidence import ROUNDING, Aggregation, evidence, evidence_and_sums, expand_like, saturated_shift
from .readout import NEVER_NEGATIVE, USES_MARGIN, rho_of, to_float64
from .regional import calmed, coherence
from .traced import BiasSite, Sums, Tap, Trace, with_rest

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class TapMap:
    """A tap's evidence at its own resolution, without its feature map and gradient; the rest as in `Tap`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path_share: Fraction
    sums: Sums
    part: Float[Tensor, "batch"]
    map: Float[Tensor, "batch *space"]
    clamped: Int[Tensor, "batch"]

    @property
    def is_cut(self) -> bool:
        """Every path passes here."""
        return self.path_share == 1


@dataclass(frozen=True)
class SiteMap:
    """A bias site's evidence at its own resolution, (batch,) where it has no space, and its mass, the sum of
    |shift * gradient|; both None where the recipe leaves the biases out.
    """

    name: str
    part: Float[Tensor, "batch"]
    map: Float[Tensor, "batch *space"] | None
    mass: Float[Tensor, "batch"] | None


Reduced = Trace[TapMap, SiteMap]


def reducers(
    recipe: Recipe, rho: Float[Tensor, "batch"], direction: Float[Tensor, "batch"]
) -> tuple[Callable[[Tap], TapMap], Callable[[BiasSite], SiteMap]]:
    """What `recipe` makes of each tap and bias site, outside of autocast; rho and direction from `curvature`."""
    # Every read-out with a name rises with the score.
    falls = callable(recipe.readout) and bool((direction != 1).any())

    def directed(values: Tensor) -> Tensor:
        # Where the read-out falls with S, evidence for and against change sides; done twice, nothing has changed.
        return values * expand_like(direction, values) if falls else values

    def tap_map(tap: Tap) -> TapMap:
        trust = coherence(tap.shape[1:], recipe.regions)
        centring = trust if recipe.centred else 0.0
        given = tap.activation, directed(tap.gradient), rho, recipe.negative_share * trust, recipe.aggregation
        can_fall = not (tap.is_positive and recipe.readout in NEVER_NEGATIVE)
        if tap.has_sums and recipe.regions is None and not centring:
            found, clamped = evidence(*given, can_fall)
            sums = tap.sums
        else:
            found, clamped, sums = evidence_and_sums(*given, tap.is_positive, can_fall, recipe.regions, centring)
            sums = replace(sums, product=directed(sums.product))
        part = with_rest(sums.product, tap.rest)
        # A channel's evidence saturates at 1 / rho, where its background is left in: terms of that size cancel, however
        # large the score is.
        most = tap.shape[0] / (rho.abs().to(sums.magnitude) * (1 - centring))
        found = calmed(found, recipe.regions)
        found = above_rounding(found, torch.minimum(sums.magnitude, most), recipe.aggregation)
        return TapMap(tap.name, tap.kind, tap.shape, tap.path_share, sums, part, found, clamped)

    def site_map(site: BiasSite) -> SiteMap:
        if recipe.bias not in ("complete", "layers"):
            return SiteMap(site.name, site.part, None, None)
        share = recipe.negative_share * coherence(site.gradient.shape[2:], recipe.regions)
        found, mass, part = saturated_shift(directed(site.gradient), site.shift, rho, share, recipe.regions)
        return SiteMap(site.name, with_rest(directed(part), site.rest), calmed(found, recipe.regions), mass)

    return tap_map, site_map


def above_rounding(
    found: Float[Tensor, "batch *space"], magnitude: Float[Tensor, "batch"], aggregation: Aggregation
) -> Float[Tensor, "batch *space"]:
    """The maps, but zeros where all terms cancel and rounding is left: no fusion shall scale that up.

    `magnitude` is the sum of all |gradient * activation|. At one position there are its own share of them, on average;
    a channel's weight holds those of all positions.
    """
    terms = magnitude / found[0].numel() if aggregation == "position" else magnitude
    least = ROUNDING * torch.finfo(found.dtype).eps * terms
    return found * expand_like(found.flatten(1).abs().amax(1) > least, found)


def curvature(
    recipe: Recipe,
    score: Float[Tensor, "batch"],
    output: Tensor,
    index: Int[Tensor, "batch"] | None,
    unit: Float[Tensor, "batch"] | None,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Rho of the recipe's read-out for direction * S, and the direction: -1 where the read-out falls with S.

    With a unit u, the read-out is of S / u: d^n f(S / u) / dS^n has a factor u^-n, so that rho is divided by u.
    """
    of_margin = recipe.readout in USES_MARGIN
    in_units = score if unit is None else score / unit
    rho, direction = rho_of(recipe.readout, in_units, margin(score, output, index) if of_margin else None)
    rho = rho * direction if unit is None else rho * direction / to_float64(unit)
    return rho.to(score), direction


def margin(
    score: Float[Tensor, "batch"], output: Tensor, index: Int[Tensor, "batch"] | None
) -> Float[Tensor, "batch"] | None:
    """S - logsumexp(all other logits); None where the target is no class. A single logit stands against 0."""
    if index is None:
        return None
    logits = to_float64(class_scores(output, "margin"))
    if logits.shape[1] == 1:
        return score
    others = logits.scatter(1, index[:, None], float("-inf")).logsumexp(1)
    return logits.gather(1, index[:, None])[:, 0] - others
