"""A method as data: which taps, which evidence, which bias, which weighting, which fusion."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import wraps
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from ._choices import AGGREGATIONS, BIASES, FUSIONS, READOUTS, SCORES, WEIGHTINGS
from ._deprecation import is_called_by_user, warn_deprecated
from .errors import RecipeError

if TYPE_CHECKING:
    from ._maps.completeness import Bias
    from ._maps.evidence import Aggregation
    from ._maps.fusion import Fusion
    from ._maps.readout import Readout
    from ._maps.weighting import Weighting
    from ._plan.taps import Taps

Score = Literal["contrast", "logit"]

RENAMED: Mapping[str, str] = {
    "negative": "negative_share",
    "temper": "weight_exponent",
    "branch": "path_exponent",
    "fine": "stride_exponent",
}
"""Ingredients under their name in 0.1.0, and under the present one."""
DEPRECATED: Mapping[str, str] = {
    "aggregation": "take the recipe of a method that has it, such as get_method('gradcam++').recipe",
    "centred": "leave it, or take Recipe.plain()",
    "bias_share": 'leave it, or take bias="none"',
    "path_exponent": "leave it, or take Recipe.plain()",
    "stride_exponent": "leave it, or take Recipe.plain()",
    "stage_share": "leave it, or take Recipe.plain()",
    "signed": "cut layers' maps afterwards, explanation.fuse(change=torch.relu)",
    "fusion": "take the recipe of a method that has it, such as get_method('layercam-fused').recipe",
}
"""Ingredients of which no other value helped any network (docs/ablation.md), and what to do instead.

They remain what named methods are made of.
"""


@dataclass(frozen=True)
class Recipe:
    """The ingredients of a fused map; the defaults are Integrative CAM.

    In Python, `taps` can also be a callable on a tap, `readout` an elementwise callable on scores, and `weighting` a
    callable on `LayerScores`. Fields that are not listed here are set by named methods only; given by hand they warn,
    and go with the next release.

    >>> Recipe(bias="none", negative_share=1)

    Args:
        taps: feature maps to fuse: "activations", the output of every nonlinearity with a spatial extent; "stages", the
            last of them at each resolution; "last", the last of them; or a name, glob, module path or resolution
            ("14x14"), or several of these.
        score: what is explained of a class: "contrast", its logit minus 0.8 of the mean of the other classes' logits,
            weighted by softmax(logits / 2): why this class and no other; or "logit". Callables give their own score.
        readout: smooth function of the score: "exp", which saturates evidence as Grad-CAM++ does, "identity",
            "softplus", "sigmoid", "softmax" or "log_softmax".
        regions: the gradient is averaged over a grid of so many regions along each axis, at least 1 (along a signal,
            over their square), and the evidence made of it over twice as many: what a gradient says of a single
            position of a fine layer is mostly noise. None leaves both as they are.
        negative_share: share of the evidence against the target that is subtracted, 0 to 1. With `regions`, a layer
            of more positions along an axis subtracts less of it: sqrt(regions / positions) of this share.
        bias: "layers": each bias map joins the fusion as a layer of its own, with a share of the weight; "complete":
            each tap's map gains the bias maps of everything behind it; "residual": each tap's map gains S - <g, A>,
            spread evenly; "none": no bias in the map.
        weighting: layer weights: "joint", "product", "average", "geometric", "uniform" or "last".
        weight_exponent: power, > 0, of the layer weights; below 1 it flattens them.
        gamma: power, > 0, of the finished map; below 1 it lifts weak evidence and leaves the order of pixels alone.
    """

    taps: Taps = "activations"
    score: Score = "contrast"
    readout: str | Readout = "exp"
    # "position" keeps evidence where it arose; "channel" gives each channel one weight (Grad-CAM++); "active" does too,
    # from where the channel is active (XGrad-CAM).
    aggregation: Aggregation = "position"
    regions: int | None = 14
    # Each channel's mean over space, times sqrt(regions / positions) where that is below 1, is taken off: a constant
    # background says nothing of a place.
    centred: bool = True
    negative_share: float = 0.9
    bias: Bias = "layers"
    # Share of the weight that all bias layers have together, with bias="layers".
    bias_share: float = 0.2
    weighting: str | Weighting = "joint"
    weight_exponent: float = 0.25
    # The weight of a layer is multiplied by the share of the network's paths that pass it, to this power: a layer
    # inside of a branch holds only a part of the evidence.
    path_exponent: float = 4.0
    # It is multiplied by half of the layer's stride (pixels of the image per position), where that is below 1, to this
    # power: maps as fine as the image follow edges.
    stride_exponent: float = 2.0
    # Share of the weight that the last layer at each resolution has in addition.
    stage_share: float = 0.5
    # Fuse signed maps and cut at zero once, after the fusion; else cut each layer's map before.
    signed: bool = True
    # "sum", the weighted sum; "max", the largest weighted value at each position; "geometric", the weighted geometric
    # mean; "product", the geometric mean to the power of the number of layers.
    fusion: Fusion = "sum"
    gamma: float = 1.0

    @classmethod
    def plain(cls, **ingredients: Any) -> Recipe:
        """A recipe of logits and gradients as they are, whose layer weights are those of its weighting.

        Only scaling the weights to sum 1 is left: a layer's paths, stride and resolution do not count.

        >>> Recipe.plain(weighting="average", bias="none")
        """
        return cls(**{**PLAIN, **present_names(ingredients)})

    def for_task(self, task: str) -> Recipe:
        """The recipe for networks of a task (`models.Network.task`): labels and values do not exclude each other, so
        that classes of a classification alone are contrasted.
        """
        return self if task == "classification" or self.score == "logit" else replace(self, score="logit")

    if not TYPE_CHECKING:  # which knows the present names only

        def __getattr__(self, name: str) -> Any:
            if name not in RENAMED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warn_deprecated(f"Recipe.{name} is now called {RENAMED[name]}; the old name goes with the next release.")
            return getattr(self, RENAMED[name])

    def validate(self) -> None:
        """Raise RecipeError where an ingredient is unknown or out of range."""
        if not callable(self.readout):
            one_of("readout", self.readout, READOUTS, "or an elementwise callable")
        if not callable(self.weighting):
            one_of("weighting", self.weighting, WEIGHTINGS, "or a callable on LayerScores")
        one_of("score", self.score, SCORES)
        if self.regions is not None and (not isinstance(self.regions, int) or self.regions < 1):
            raise RecipeError(f"regions must be an integer of at least 1, or None, but got {self.regions!r}.")
        one_of("aggregation", self.aggregation, AGGREGATIONS)
        one_of("bias", self.bias, BIASES)
        one_of("fusion", self.fusion, FUSIONS)
        for field in fields(self):
            if isinstance(field.default, float) and not isinstance(getattr(self, field.name), Real):
                raise RecipeError(f"{field.name} must be a number, but got {getattr(self, field.name)!r}.")
        _within("negative_share", self.negative_share, 0 <= self.negative_share <= 1, "between 0 and 1")
        _within("bias_share", self.bias_share, 0 <= self.bias_share < 1, "at least 0 and below 1")
        _within("weight_exponent", self.weight_exponent, 0 < self.weight_exponent < float("inf"), "above 0")
        _within("path_exponent", self.path_exponent, 0 <= self.path_exponent < float("inf"), "at least 0")
        _within("stride_exponent", self.stride_exponent, 0 <= self.stride_exponent < float("inf"), "at least 0")
        _within("stage_share", self.stage_share, 0 <= self.stage_share <= 1, "between 0 and 1")
        _within("gamma", self.gamma, 0 < self.gamma < float("inf"), "above 0")

    def described(self) -> dict[str, Any]:
        """The ingredients as plain values; a callable by its name."""
        return {
            field: getattr(value, "__name__", repr(value)) if callable(value) else value
            for field, value in asdict(self).items()
        }


def present_names(ingredients: Mapping[str, Any], warn: Collection[str] = (*RENAMED, *DEPRECATED)) -> dict[str, Any]:
    """The ingredients, those under a name of 0.1.0 under their present one.

    Where both are there, as `dataclasses.replace(recipe, temper=1)` gives them, the old name holds the change.

    Args:
        ingredients: fields of `Recipe` by name; unknown ones are left as they are.
        warn: issue a DeprecationWarning for these names.
    """
    for name in [name for name in ingredients if name in warn]:
        new = RENAMED.get(name, name)
        texts = [f"is now called {new}"] if name in RENAMED else []
        if new in DEPRECATED:
            texts.append(f"goes with the next release: {DEPRECATED[new]}")
        warn_deprecated(f"the ingredient {name} {' and '.join(texts)}; the old form works for one release.")
    old = {RENAMED[name]: value for name, value in ingredients.items() if name in RENAMED}
    return {name: value for name, value in ingredients.items() if name not in RENAMED} | old


def _accept_old_names(create: Callable[..., None]) -> Callable[..., None]:
    @wraps(create)
    def init(self: Recipe, *ingredients: Any, **named: Any) -> None:
        # Methods of this package, and dataclasses.replace, give fields that a user should not.
        warn = (*RENAMED, *DEPRECATED) if is_called_by_user() else RENAMED
        create(self, *ingredients, **present_names(named, warn))

    return init


Recipe.__init__ = _accept_old_names(Recipe.__init__)  # type: ignore[method-assign]

OF_0_1_0: Mapping[str, Any] = {"score": "logit", "regions": None, "centred": False}
"""What a recipe of 0.1.0 has where it does not say it."""
PLAIN: Mapping[str, Any] = {
    **OF_0_1_0,
    "weight_exponent": 1.0,
    "path_exponent": 0.0,
    "stride_exponent": 0.0,
    "stage_share": 0.0,
    "gamma": 1.0,
}
"""Ingredients that leave the score, the gradient, the weighting's weights and the finished map as they are."""


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
