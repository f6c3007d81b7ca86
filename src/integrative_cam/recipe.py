"""A method as data: which taps, which evidence, which bias, which weighting, which fusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from numbers import Real
from typing import Any, get_args

from ._maps.completeness import Bias
from ._maps.evidence import Aggregation
from ._maps.fusion import Fusion
from ._maps.readout import READOUTS, Readout
from ._maps.weighting import WEIGHTINGS, Weighting
from ._plan.taps import Taps
from .errors import RecipeError


@dataclass(frozen=True)
class Recipe:
    """The ingredients of a fused map; the defaults are Integrative CAM.

    Args:
        taps: feature maps to fuse: "activations", "stages", "last", a name, glob, module path or resolution
            ("14x14"), a list of these, or a callable on a tap.
        readout: smooth f of the score: "exp" (Grad-CAM++), "identity", "softmax", "sigmoid", "softplus",
            "log_softmax", or an elementwise callable.
        aggregation: "position" keeps evidence where it arose; "channel" weighs whole channels (Grad-CAM++);
            "active" too, by the mean slope where they are active (XGrad-CAM).
        negative: share of the evidence against the target that is subtracted, 0 to 1.
        bias: "layers", "complete", "residual" or "none".
        bias_share: share of the weight that all bias layers have together, 0 to 1; used by bias="layers".
        weighting: "joint", "product", "average", "geometric", "uniform", "last", or a callable on LayerScores.
        temper: power that the weights are raised to, > 0; 1/2 flattens them.
        branch: power, >= 0, of the share of the network's paths that pass a layer, by which its weight is multiplied:
            layers inside of branches hold a part of the evidence only.
        fine: power, >= 0, of half a layer's stride, pixels of the image per position, by which its weight is multiplied
            where the stride is below 2: what is as fine as the image answers to edges.
        stage_share: share of the weight that the last layer at each resolution has in addition, 0 to 1.
        signed: keep layers' maps signed and cut at zero once, after fusion; else cut each layer's.
        fusion: "sum", "max", "geometric" or "product".
        gamma: power, > 0, of the finished map; below 1 it lifts weak evidence and leaves the order of pixels alone.
    """

    taps: Taps = "activations"
    readout: str | Readout = "exp"
    aggregation: Aggregation = "position"
    negative: float = 0.5
    bias: Bias = "layers"
    bias_share: float = 0.2
    weighting: str | Weighting = "joint"
    temper: float = 0.25
    branch: float = 4.0
    fine: float = 2.0
    stage_share: float = 0.5
    signed: bool = True
    fusion: Fusion = "sum"
    gamma: float = 0.85

    def validate(self) -> None:
        """Raise RecipeError where an ingredient is unknown or out of range."""
        if not callable(self.readout):
            one_of("readout", self.readout, READOUTS, "or an elementwise callable")
        if not callable(self.weighting):
            one_of("weighting", self.weighting, WEIGHTINGS, "or a callable on LayerScores")
        one_of("aggregation", self.aggregation, get_args(Aggregation))
        one_of("bias", self.bias, get_args(Bias))
        one_of("fusion", self.fusion, get_args(Fusion))
        for each in fields(self):
            if isinstance(each.default, float) and not isinstance(getattr(self, each.name), Real):
                raise RecipeError(f"{each.name} must be a number, but got {getattr(self, each.name)!r}.")
        _within("negative", self.negative, 0 <= self.negative <= 1, "between 0 and 1")
        _within("bias_share", self.bias_share, 0 <= self.bias_share < 1, "at least 0 and below 1")
        _within("temper", self.temper, 0 < self.temper < float("inf"), "above 0")
        _within("branch", self.branch, 0 <= self.branch < float("inf"), "at least 0")
        _within("fine", self.fine, 0 <= self.fine < float("inf"), "at least 0")
        _within("stage_share", self.stage_share, 0 <= self.stage_share <= 1, "between 0 and 1")
        _within("gamma", self.gamma, 0 < self.gamma < float("inf"), "above 0")

    def described(self) -> dict[str, Any]:
        """The ingredients as plain values; a callable by its name."""
        return {
            field: getattr(value, "__name__", repr(value)) if callable(value) else value
            for field, value in asdict(self).items()
        }


PLAIN: Mapping[str, Any] = {"temper": 1.0, "branch": 0.0, "fine": 0.0, "stage_share": 0.0, "gamma": 1.0}
"""Ingredients that leave the weighting's weights and the finished map as they are."""


def one_of(argument: str, value: object, choices: Collection[str], alternative: str = "") -> None:
    """Raise RecipeError unless `value` is one of `choices`, with the nearest one as a hint."""
    if value not in list(choices):  # a value may have no hash
        spelled = {choice.lower(): choice for choice in choices}
        close = get_close_matches(str(value).lower(), spelled, n=1)
        hint = f" Did you mean {spelled[close[0]]!r}?" if close else ""
        raise RecipeError(
            f"{argument} must be one of {', '.join(choices)}{' ' + alternative if alternative else ''}, "
            f"but got {value!r}.{hint}"
        )


def _within(argument: str, value: float, fits: bool, wanted: str) -> None:
    if not fits:
        raise RecipeError(f"{argument} must be {wanted}, but got {value!r}.")
