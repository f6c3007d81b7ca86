"""One composition explained and judged."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace

import torch

from integrative_cam import CamError, explain

from .judge import fault
from .networks import Composition, compose
from .reference import reference_maps

VERDICTS = ("right", "warned", "refused", "silently wrong", "false error", "crash", "unjudged")
WRONG = ("silently wrong", "false error", "crash")
"""A false error says that there is no nonlinearity; each network here has one."""
FALSE_ERROR = "calls no nonlinearity"
FALSE_WARNING = "no layer holds evidence"
"""Of no network here; a blank map with nothing but this warning is silently wrong."""
ALONE = 0.02
"""How far the map of a sample may be from its map alone."""


@dataclass(frozen=True)
class Trial:
    """What the library made of a composition.

    Attributes:
        verdict: one of `VERDICTS`; a map that is right is "right" with or without a warning. "unjudged": the slow
            reference map is called wrong as well, so that the judge may be at fault.
        reason: what is wrong with the map, or the error.
        said: the library's warnings.
        vanished: activations that are not among the layers, without a warning.
    """

    seed: int
    recipe: str
    kinds: tuple[str, ...]
    verdict: str
    reason: str
    said: tuple[str, ...]
    seconds: float
    vanished: int


def tried(seed: int, moves: int | None = None) -> Trial:
    """Compose the network of a seed, explain it and judge its maps."""
    composition = compose(seed, moves)
    start, layers = time.perf_counter(), composition.activations
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if seed % 3 == 0:  # the plan is made on other images
                generator = torch.Generator().manual_seed(seed)
                maps(composition, tuple(torch.rand(each.shape, generator=generator) for each in composition.inputs))
            reason, layers = fault_of(composition)
            verdict = "right" if not reason else ""
        except CamError as error:
            reason = f"{type(error).__name__}: {error}"
            verdict = "false error" if FALSE_ERROR in reason else "refused"
        except Exception as error:
            reason, verdict = f"{type(error).__name__}: {error}", "crash"
    ours = [each for each in caught if each.filename == __file__ or "integrative_cam" in each.filename]
    said = tuple(dict.fromkeys(str(each.message) for each in ours))
    if not verdict:
        verdict = "warned" if any(FALSE_WARNING not in each for each in said) else "silently wrong"
    seconds = time.perf_counter() - start
    vanished = max(0, composition.activations - layers) if not said else 0
    return Trial(seed, composition.recipe, composition.kinds, verdict, reason, said, seconds, vanished)


def rejudged(trial: Trial, moves: int | None = None) -> Trial:
    """A trial that is silently wrong, as "unjudged" where the judge calls the slow reference map wrong as well."""
    if trial.verdict != "silently wrong" or "instead of" in trial.reason:
        return trial
    composition = compose(trial.seed, moves)
    if not composition.has_places:
        return trial
    found = reference_maps(composition)
    is_fair = not any(fault(values, truth) for values, truth in zip(found, composition.truths, strict=True))
    return trial if is_fair else replace(trial, verdict="unjudged")


def fault_of(composition: Composition) -> tuple[str, int]:
    """What is wrong with the maps of a composition, or nothing; and the number of layers they are made of."""
    found, layers = maps(composition, composition.inputs)
    for at, (values, truth) in enumerate(zip(found, composition.truths, strict=True)):
        reason = fault(values, truth)
        if reason:
            return reason if len(found) == 1 else f"input {at}: {reason}", layers
    batch = len(composition.inputs[0])
    if batch > 1:
        sample = composition.seed % batch
        alone, _ = maps(composition, tuple(each[sample : sample + 1] for each in composition.inputs))
        for values, single in zip(found, alone, strict=True):
            if single.shape[1:] != values.shape[1:]:
                return f"sample {sample} alone has a map of shape {tuple(single.shape)}", layers
            off = float((values[sample] - single[0]).abs().max())
            if off > ALONE:
                return f"sample {sample} alone has another map, off by {off:.2f}", layers
    return "", layers


def maps(composition: Composition, inputs: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], int]:
    """The map of each input, and the number of layers."""
    # Averages over regions are as wide as what is told apart here.
    given = inputs if len(inputs) > 1 else inputs[0]
    found = explain(composition.model, given, composition.target, regions=None)
    each = [found.map] if found.streams is None else [torch.zeros(0) if m is None else m for m in found.streams.maps]
    return each * (len(inputs) // len(each)), len(found.layers)
