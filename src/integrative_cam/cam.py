"""One walk: trace -> evidence per tap -> layer weights -> fused map -> Explanation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ._call import run, trace, verify, verify_scores
from ._deprecation import deprecated_names, warn_deprecated
from ._maps.blocks import at_least_float32
from ._maps.completeness import complete_bias, completeness, residual_bias
from ._maps.evidence import expand_like
from ._maps.fusion import by_magnitude, fuse
from ._maps.reduction import Reduced, SiteMap, TapMap, curvature, reducers
from ._maps.streams import scores_of, streams_of
from ._maps.traced import BiasSite, Input, Tap, Trace
from ._maps.weighting import LayerScores, adjust_for_resolution, coarseness, layer_scores, layer_weights, power, shares
from ._plan.inputs import Inputs
from ._plan.model_state import unwrapped
from ._plan.outputs import output_tensors
from ._plan.placement import Placement
from ._plan.plan import Plans, plans_of
from ._plan.taps import TapInfo
from .errors import OutputError, RecipeError, TargetError
from .explanation import BiasLayer, Explanation, Layer, with_views
from .recipe import PLAIN, Recipe, present_names
from .targets import Scored, Target, Targets, logits_of

if TYPE_CHECKING:
    from jaxtyping import Float


_WEIGHTED = Recipe(taps="last", readout="identity", negative_share=1.0, bias="none", weighting="last", **PLAIN)


class IntegrativeCAM:
    """Explain a network's scores by a class activation map fused over all of its layers.

    >>> cam = IntegrativeCAM(model)                          # the network stays exactly as it is
    >>> cam(images).map                                      # (batch, *space), values in [0, 1]

    Args:
        model: any `torch.nn.Module`; in training mode it is run in evaluation mode.
        recipe: the ingredients; default `Recipe()`.
        **ingredients: single fields of `Recipe` to change, such as bias="none".

    Raises:
        RecipeError: an ingredient is unknown or out of range.
    """

    def __init__(self, model: nn.Module, recipe: Recipe | None = None, **ingredients: Any) -> None:
        ingredients = present_names(ingredients)
        unknown = ingredients.keys() - Recipe.__dataclass_fields__.keys()
        if unknown:
            raise RecipeError(
                f"unknown ingredient {', '.join(sorted(unknown))}; there are {', '.join(Recipe.__dataclass_fields__)}. "
                "Other methods are called by name: get_method('gradcam')(model, images)."
            )
        if recipe is not None and not isinstance(recipe, Recipe):
            raise RecipeError(f"recipe must be a Recipe, such as get_method('gradcam').recipe, but got {recipe!r}.")
        self.model = model
        self.recipe = Recipe(**{**vars(recipe or Recipe()), **ingredients})
        self.recipe.validate()
        self._plans = Plans()

    def __call__(self, images: Inputs, target: Target = None, *, differentiable: bool = False) -> Explanation:
        """Explain `target` for each image: one forward and one gradient for the whole batch.

        Args:
            images: (batch, channel, *space) as the network takes them: normalised, on its device. For a network of
                several inputs a tuple or list of its positional arguments, or a dict of its keyword arguments,
                each a tensor (batch, ...); `Explanation.streams` tells them apart.
            target: None (each image's own top class), a class index, a callable on one sample's output that
                gives a scalar, or one of these per image.
            differentiable: keep the graph, so that the map can stand in a loss; see `trace`.

        Raises:
            CamError: see `trace` and `readout.rho_of`.
        """
        (explanation,) = self._explained(images, [target], differentiable)
        return explanation

    def explain_targets(self, images: Inputs, targets: Targets) -> list[Explanation]:
        """Explain several targets of each image: one forward for all, one gradient for each of them.

        Args:
            images: as in a call.
            targets: some targets, each as in a call; or a number: each image's so many classes of highest score,
                the highest first, and no more than there are.

        Raises:
            CamError: as in a call; TargetError where there is no target.
        """
        return self._explained(images, targets, differentiable=False)

    def _explained(self, images: Inputs, targets: Targets, differentiable: bool) -> list[Explanation]:
        traced = run(
            self.model,
            images,
            targets,
            self.recipe.taps,
            self._reducers,
            self._plans,
            differentiable=differentiable,
            contrast=self.recipe.score == "contrast",
        )
        return finish([_assemble(trace, self.recipe) for trace in traced.traces], images, traced.finite)

    def each(self, images: Inputs, targets: Targets) -> list[Explanation]:
        """The old name of `explain_targets`."""
        warn_deprecated("IntegrativeCAM.each is now explain_targets; the old name goes with the next release.")
        return self.explain_targets(images, targets)

    def _reducers(self, scored: Scored) -> tuple[Callable[[Tap], TapMap], Callable[[BiasSite], SiteMap]]:
        return reducers(
            self.recipe,
            *curvature(self.recipe, at_least_float32(scored.score), scored.logits, scored.index, scored.unit),
        )

    def taps(self, images: Inputs) -> list[TapInfo]:
        """What would be fused for such images, in execution order."""
        traced = trace(self.model, images, _sum_of_output, self.recipe.taps)
        of_tap = {
            tap: (stream.space, at)
            for stream in reversed(traced.inputs)
            for tap, at in zip(stream.fused, stream.placements, strict=True)
        }
        return [
            TapInfo(
                tap.name,
                tap.kind,
                tap.shape,
                _stride(of_tap[at][0], tap.shape[1:], of_tap[at][1]),
                float(tap.path_share),
                sum(traced.behind[at].tolist()),
            )
            for at, tap in enumerate(traced.taps)
        ]


def explain(
    model: nn.Module,
    images: Inputs,
    target: Target = None,
    recipe: Recipe | None = None,
    *,
    differentiable: bool = False,
    **ingredients: Any,
) -> Explanation:
    """`IntegrativeCAM(model, recipe, **ingredients)(images, target, differentiable=differentiable)` in one call."""
    cam = IntegrativeCAM(model, recipe, **ingredients)
    cam._plans = plans_of(unwrapped(model))  # calls in a loop plan once
    return cam(images, target, differentiable=differentiable)


def explain_trace(trace: Trace, recipe: Recipe) -> Explanation:
    """Make the map of `recipe` from a trace; other ingredients need no other run of the network.

    `recipe.taps` and `recipe.score` are not used: the trace holds the taps and the score it was made with. Of a
    differentiable trace the map and every other tensor with floats keep their graphs, unless autograd is off.
    """
    return assemble(reduce(trace, recipe), recipe)


def reduce(trace: Trace, recipe: Recipe) -> Reduced:
    """What `recipe` makes of the feature maps: small maps and sums.

    They serve every recipe with the same read-out, regions, centring, negative share and aggregation, and, where made
    for bias="layers", any bias.
    """
    with _of_maps(trace):
        of_tap, of_site = reducers(recipe, *curvature(recipe, trace.score, trace.output, trace.index, trace.unit))
        taps, sites = tuple(map(of_tap, trace.taps)), tuple(map(of_site, trace.sites))
        return cast(Reduced, replace(cast(Any, trace), taps=taps, sites=sites))


def assemble(trace: Reduced, recipe: Recipe) -> Explanation:
    """The second half of `explain_trace`: bias, weights and fusion."""
    (explanation,) = finish([_assemble(trace, recipe)])
    return explanation


def _assemble(trace: Reduced, recipe: Recipe) -> Explanation:
    """As `assemble`, without reading a value back from the device: nothing is checked, classes have no names yet."""
    with _of_maps(trace):
        return _integrate(trace, recipe)


def finish(
    explanations: Sequence[Explanation], images: Inputs | None = None, finite: Tensor | None = None
) -> list[Explanation]:
    """Name the target classes, refuse what is not finite and warn of blank maps, reading from the device once.

    `finite`: of the images, as in `Traced`.

    Raises:
        InputError, OutputError: inputs, scores or maps hold NaN or infinite values.
    """
    parts = [] if finite is None else [finite]
    for explanation in explanations:
        parts += [explanation.score, *(values.flatten(1).amax(1) for _, values in _maps_of(explanation))]
        parts += [] if explanation.target is None else [explanation.target]
    device = explanations[0].score.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    with torch.no_grad():
        read = iter(torch.cat([part.detach().to(device, exact) for part in parts]).tolist())
    if finite is not None and images is not None:
        verify([next(read) for _ in finite], images)
    finished = []
    for explanation in explanations:
        samples = range(len(explanation.score))
        verify_scores([next(read) for _ in samples])
        for of, _ in _maps_of(explanation):
            _check([next(read) for _ in samples], of, explanation)
        names = explanation.target_names
        if explanation.target is not None:
            names = tuple(str(int(next(read))) for _ in samples)
        explanation = replace(explanation, target_names=names)
        finished.append(explanation if images is None else with_views(explanation, images))
    return finished


def _maps_of(explanation: Explanation) -> list[tuple[str, Tensor]]:
    """The maps, and what tells them apart in an error."""
    streams = explanation.streams
    if streams is None:
        return [("", explanation.map)]
    named = zip(streams.names, streams.maps, strict=True)
    return [(f" of {name}", values) for name, values in named if values is not None]


@contextmanager
def _of_maps(trace: Trace[Any, Any]) -> Iterator[None]:
    """For arithmetic on maps: full precision, and a graph where the trace has one."""
    keep = trace.is_differentiable and torch.is_grad_enabled()
    with torch.set_grad_enabled(keep), torch.autocast(trace.score.device.type, enabled=False):
        yield


def _integrate(trace: Reduced, recipe: Recipe) -> Explanation:
    split = completeness(trace)
    scores = layer_scores(trace)
    _, direction = curvature(recipe, trace.score, trace.output, trace.index, trace.unit)
    sites = [site.map for site in trace.sites if site.map is not None]
    maps, biases = [], []
    for index, tap in enumerate(trace.taps):
        if recipe.bias == "complete":
            bias = complete_bias(trace, sites, index)
        elif recipe.bias == "residual":
            bias = expand_like(direction, tap.map) * residual_bias(trace, split, index)
        else:
            bias = torch.zeros_like(tap.map)
        maps.append(tap.map + bias)
        biases.append(bias)
    fused = [_fuse(trace, each, maps, scores, recipe) for each in trace.inputs if each.space]
    # Of several inputs, the first one with a map is the map.
    main = fused[0]
    placed = dict(zip(trace.main_input.fused, trace.main_input.placements, strict=False))
    return Explanation(
        map=main.map,
        layers=tuple(
            Layer(
                name=tap.name,
                kind=tap.kind,
                map=maps[index],
                bias=biases[index],
                weight=main.weights[:, index],
                gradient_score=scores.gradient[:, index],
                activation_score=scores.activation[:, index],
                joint_score=scores.joint[:, index],
                placement=placed.get(index),
            )
            for index, tap in enumerate(trace.taps)
        ),
        bias_layers=main.bias_layers,
        score=trace.score,
        output=trace.output,
        target=trace.index,
        target_names=trace.names,
        clamped=torch.stack([tap.clamped for tap in trace.taps]).sum(0),
        completeness=split,
        recipe=recipe if trace.index is None else replace(recipe, score="contrast" if trace.contrast else "logit"),
        streams=streams_of(trace, direction, [(each.map, each.weights) for each in fused])
        if len(trace.inputs) > 1
        else None,
    )


@dataclass(frozen=True)
class _Fused:
    """One input's map, and the weights of all taps in it."""

    map: Float[Tensor, "batch *space"]
    weights: Float[Tensor, "batch tap"]
    bias_layers: tuple[BiasLayer, ...]


def _fuse(
    trace: Reduced,
    given: Input,
    maps: Sequence[Float[Tensor, "batch *layer_space"]],
    scores: LayerScores,
    recipe: Recipe,
) -> _Fused:
    """The map of an input, all others held fixed: of the layers and biases that depend on it, and its own paths."""
    own = list(given.fused)
    own_scores = scores_of(scores, own, given.path_shares) if len(trace.inputs) > 1 else scores
    own_weights = adjust_for_resolution(
        layer_weights(own_scores, recipe.weighting, recipe.weight_exponent, recipe.path_exponent),
        [maps[index].shape[1:] for index in own],
        given.space,
        recipe.stride_exponent,
        recipe.stage_share,
        given.placements,
    )
    bias_layers = _bias_layers(trace, given, recipe) if recipe.bias == "layers" else ()

    tap_share = 1 - recipe.bias_share if bias_layers else 1
    joining = [maps[index] for index in own] + [layer.map for layer in bias_layers]
    fused = fuse(
        joining if recipe.signed else [each.relu() for each in joining],
        torch.cat([own_weights * tap_share, *(layer.weight[:, None] for layer in bias_layers)], 1),
        given.space,
        recipe.fusion,
        recipe.gamma,
        placements=[*(given.placements or [None] * len(own)), *(layer.placement for layer in bias_layers)],
    )
    weights = own_weights.new_zeros(len(fused), len(maps))
    weights[:, own] = own_weights
    return _Fused(fused, weights, bias_layers)


def explanation_from_slopes(trace: Trace, slopes: Float[Tensor, "batch channel *space"]) -> Explanation:
    """The explanation whose map is made of slope * activation, summed over the channels of the trace's only tap.

    `slopes` stand where the gradient stands in HiResCAM. Scores and completeness are those of the gradient.
    """
    (tap,) = trace.taps
    found = explain_trace(replace(trace, taps=(replace(tap, gradient=slopes),)), _WEIGHTED)
    layer = replace(found.layers[0], joint_score=layer_scores(trace).joint[:, 0])
    return replace(found, layers=(layer,), completeness=completeness(trace), recipe=None)


def explanation_from_map(trace: Trace, maps: Float[Tensor, "batch *space"]) -> Explanation:
    """The explanation whose map is made in another way than from the trace's taps: its score splits at the input only.

    Each map is cut at zero and divided by its maximum.
    """
    trace = replace(trace, taps=(), behind=trace.behind[:0])
    return Explanation(
        map=by_magnitude(maps.detach().relu()),
        layers=(),
        bias_layers=(),
        score=trace.score,
        output=trace.output,
        target=trace.index,
        target_names=trace.target_names,
        clamped=torch.zeros_like(trace.score, dtype=torch.long),
        completeness=completeness(trace),
        recipe=None,
        streams=None,
    )


def _bias_layers(trace: Reduced, given: Input, recipe: Recipe) -> tuple[BiasLayer, ...]:
    """The input's sites with space as layers, weighted by their tempered mass sum|bias * gradient| and their fineness;
    all have bias_share.
    """
    spatial = [
        (site.name, site.map, site.mass, at)
        for site, at in zip(
            (trace.sites[index] for index in given.sites),
            given.site_placements or [None] * len(given.sites),
            strict=True,
        )
        if site.map is not None and site.mass is not None
        if site.map.ndim - 1 == len(given.space) and site.map[0].numel() > 1
    ]
    if not spatial:
        return ()
    mass = torch.stack([mass for _, _, mass, _ in spatial], 1)
    placements = [at for _, _, _, at in spatial]
    sizes = [site_map.shape[1:] for _, site_map, _, _ in spatial]
    coarse = coarseness(sizes, given.space, placements).to(mass) ** recipe.stride_exponent
    weights = recipe.bias_share * shares(power(shares(mass), recipe.weight_exponent) * coarse)
    return tuple(
        BiasLayer(name, site_map, weights[:, index], at) for index, (name, site_map, _, at) in enumerate(spatial)
    )


def _check(highest: Sequence[float], of: str, explanation: Explanation) -> None:
    undefined = [image for image, value in enumerate(highest) if not isfinite(value)]
    if undefined:
        raise OutputError(
            f"The map{of} of image {', '.join(map(str, undefined))} is undefined: a feature map or its gradient holds "
            "infinite or NaN values. Check the weights and, in half precision, the range."
        )
    blank = [image for image, value in enumerate(highest) if value == 0]
    if not blank:
        return
    # An activation that is the same everywhere has no score, but a part of the target's.
    masses = [layer.joint_score for layer in explanation.layers] + [*explanation.completeness.activation.abs().T]
    flat = torch.stack(masses, 1).sum(1).tolist() if masses else [1.0] * len(highest)
    for images, why in (
        ([image for image in blank if flat[image] > 0], "no layer holds evidence for its target."),
        (
            [image for image in blank if flat[image] == 0],
            "the gradient of its score is 0 in every layer. The score is saturated, such as a probability next to 0 "
            "or 1, or only inactive units lead to it. Explain the logit in place of a probability.",
        ),
    ):
        if images:
            warnings.warn(f"The map{of} of image {', '.join(map(str, images))} is blank: {why}", stacklevel=4)


def _stride(space: tuple[int, ...], grid: tuple[int, ...], placement: Placement | None) -> tuple[float, ...]:
    sizes = grid if placement is None else placement.sizes
    return tuple(side / size for side, size in zip(space, sizes, strict=True))


def _sum_of_output(output: Any) -> Tensor:
    tensors = output_tensors(output)
    try:
        return logits_of(output).sum()
    except TargetError:  # several, none of them the logits
        return torch.stack([tensor.sum() for tensor in tensors]).sum()


__getattr__ = deprecated_names(__name__)
