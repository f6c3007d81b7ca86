"""Networks that fuse several inputs: how much of the score came through each (method.md, Streams)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .evidence import expand_like
from .traced import Trace
from .weighting import LayerScores, shares

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Streams:
    """What each of several inputs had to do with the score; in the order in which the model was given them.

    Attributes:
        names: the inputs' keywords, or what the model's forward calls them.
        maps: per input (batch, *space) of its own size, in [0, 1], each divided by its own maximum; None for one whose
            axes no tap keeps, as a vector.
        share: how much of the evidence for the target entered through each input, in [0, 1]; rows sum to 1. Where none
            has any, those have equal shares through which anything of the score came.
        evidence: the part of the score that entered through each input alone, before anything was fused; signed.
        shared: the part that the biases behind the fusion carry, which is no input's; signed. The score is the sum
            of `evidence`, `shared` and a remainder, which clipping, gates and smooth activations leave.
        reached: whether each tap depends on each input; one that depends on several lies behind the fusion.
        weights: each tap's weight in each input's map; rows sum to 1, or are 0 where there is no map.
    """

    names: tuple[str, ...]
    maps: tuple[Float[Tensor, "batch *space"] | None, ...]
    share: Float[Tensor, "batch stream"]
    evidence: Float[Tensor, "batch stream"]
    shared: Float[Tensor, "batch"]
    reached: Bool[Tensor, "tap stream"]
    weights: Float[Tensor, "batch stream tap"]

    @property
    def scaled_maps(self) -> tuple[Float[Tensor, "batch *space"] | None, ...]:
        """The maps on one scale: each times its share over the largest one, so that they can be compared."""
        relative = self.share / self.share.amax(1, keepdim=True)
        return tuple(
            None if each is None else each * expand_like(relative[:, at], each) for at, each in enumerate(self.maps)
        )


def streams_of(
    trace: Trace[Any, Any],
    direction: Float[Tensor, "batch"],
    mapped: Sequence[tuple[Float[Tensor, "batch *space"], Float[Tensor, "batch tap"]]],
) -> Streams:
    """The streams of a trace, with the map and the taps' weights of each input that has a map.

    `direction` is -1 where the read-out falls with the score, so that evidence against it is evidence for the target.
    """
    found, shared = stream_evidence(trace)
    waiting = iter(mapped)
    none = (None, torch.zeros_like(mapped[0][1]))
    maps, weights = zip(*(next(waiting) if each.space else none for each in trace.inputs), strict=True)
    return Streams(
        names=tuple(each.name for each in trace.inputs),
        maps=maps,
        share=stream_share(found * expand_like(direction, found), _influence(trace, found)),
        evidence=found,
        shared=shared,
        reached=torch.tensor([[share > 0 for share in each.path_shares] for each in trace.inputs]).T,
        weights=torch.stack(weights, 1),
    )


def scores_of(scores: LayerScores, taps: Sequence[int], path_shares: Sequence[Fraction]) -> LayerScores:
    """The scores of some of the taps, as if there were no others, with these shares of paths."""
    own = list(taps)
    paths = scores.paths.new_tensor([float(path_shares[tap]) for tap in own])
    return LayerScores(shares(scores.gradient[:, own]), shares(scores.activation[:, own]), scores.joint[:, own], paths)


def stream_evidence(trace: Trace[Any, Any]) -> tuple[Float[Tensor, "batch stream"], Float[Tensor, "batch"]]:
    """The score's parts that entered through each input alone, and the part of the biases behind the fusion."""
    found = torch.stack([_evidence(trace, at) for at in range(len(trace.inputs))], 1)
    owners = [sum(site in each.sites for each in trace.inputs) for site in range(len(trace.sites))]
    return found, _bias(trace, {site for site, count in enumerate(owners) if count > 1})


def stream_share(
    evidence: Float[Tensor, "batch stream"], influence: Bool[Tensor, "batch stream"]
) -> Float[Tensor, "batch stream"]:
    """Evidence for the target in shares of 1; where no stream has any, equal ones of those with influence."""
    positive = evidence.relu()
    return shares(torch.where(positive.sum(1, keepdim=True) > 0, positive, influence.to(evidence)))


def _influence(trace: Trace[Any, Any], found: Float[Tensor, "batch stream"]) -> Bool[Tensor, "batch stream"]:
    """Whether anything of each sample's score, for or against it, came through each input."""
    return (found != 0) | torch.stack([(each.product != 0).reshape(len(found), -1).any(1) for each in trace.inputs], 1)


def _evidence(trace: Trace[Any, Any], at: int) -> Float[Tensor, "batch"]:
    """<g, A> at the last tap that all of the input's paths pass and no other input's, or <dS/dx, x> where there is
    none; and the biases that enter behind it, before the fusion.
    """
    given = trace.inputs[at]
    others = [each for index, each in enumerate(trace.inputs) if index != at]
    alone = set(given.sites).difference(*(each.sites for each in others))
    cuts = [
        tap
        for tap, share in enumerate(given.path_shares)
        if share == 1 and not any(each.path_shares[tap] for each in others)
    ]
    if not cuts:
        return given.part + _bias(trace, alone)
    tap = trace.taps[cuts[-1]]
    behind = trace.behind[cuts[-1]].tolist()
    part: Tensor = tap.part
    return part + _bias(trace, {site for site in alone if behind[site]})


def _bias(trace: Trace[Any, Any], sites: set[int]) -> Float[Tensor, "batch"]:
    parts = [trace.sites[site].part for site in sorted(sites)]
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(trace.score)
