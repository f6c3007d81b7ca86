"""The walk: plan + inputs -> forward -> score -> gradient -> what is made of taps and bias sites.

    check the inputs -> run the network on its plan, or plan it -> score each target -> differentiate each score

A gradient is reduced the moment it arrives and freed, unless a reducer keeps it. No value is read back from the device
on the way; `finish` does that once, when all maps are there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import isfinite
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from . import targets
from ._maps.blocks import at_least_float32
from ._maps.traced import BiasSite, Input, SiteT, Tap, TapT, Trace, with_rest
from ._plan.capture import Candidate, Capture, Replay, Shift
from ._plan.inputs import Call, Form, Inputs, call_of, check_finite, checked, floating, shape_of_call
from ._plan.model_state import undisturbed, unwrapped
from ._plan.outputs import output_tensors, outputs_of
from ._plan.plan import InputRoute, Outputs, Plan, Plans, Route, plans_of, study, without
from ._plan.probabilities import FinalProbabilities
from ._plan.taps import Taps, may_want
from .errors import InputError, OutputError, TapError

_HALF_GRADIENT_SCALE = 2.0**10
"""float16 gradients of early layers fall below its smallest number; a power of two is undone exactly."""

EVIDENCE = 10.0
"""What |gradient * activation| of a trained network's top class sum up to at its last activation, in logits: 11 for the
bundled network on its photograph. A score without a unit is scaled to it."""

Reducers = Callable[[targets.Scored], tuple[Callable[[Tap], TapT], Callable[[BiasSite], SiteT]]]
"""Takes the scores and gives what to make of each tap and of each bias site."""


def trace(
    model: nn.Module,
    images: Inputs,
    target: targets.Target = None,
    taps: Taps = "activations",
    *,
    differentiable: bool = False,
    contrast: bool = False,
) -> Trace:
    """Forward once and differentiate the target's score once, leaving model, autograd and RNG as they were.

    A model in training mode runs in evaluation mode meanwhile. In-place operations, frozen parameters,
    `no_grad`, `inference_mode` around the call and autocast all work; a compiled model runs eagerly.

    Args:
        model: any module.
        images: (batch, channel, *space), floating point, on the model's device, for the model's first argument. A
            tuple or list of tensors (batch, ...) for positional arguments, a dict of them for keyword arguments:
            each with floats is an input to differentiate towards, others are passed on.
        target: None (each image's own top class), a class index, a callable on one sample's output that gives a
            scalar, or one of these per image.
        taps: "activations", "stages", "last", a name, glob, module path or resolution, several of these, or a
            callable on a tap; several inputs choose each among those that depend on it.
        differentiable: keep the graph, towards the parameters and towards images that require a gradient. It costs
            the memory of a training step and a second derivative of every layer. No `.grad` is written here.
        contrast: score classes as `Recipe` does with score="contrast".

    Raises:
        InputError: images or model cannot be used as given, or differentiable where autograd is off.
        OutputError: not finite, without a tensor, or independent of the images.
        TargetError: the target does not name one scalar per sample.
        TapError: no feature map fits.
    """
    traced = run(
        model,
        images,
        [target],
        taps,
        lambda _: (_kept, _kept),
        plans_of(unwrapped(model)),
        differentiable=differentiable,
        contrast=contrast,
    )
    verify(traced.finite.tolist(), images)
    verify_scores(traced.traces[0].score.tolist())
    return traced.traces[0]


@dataclass(frozen=True)
class Traced(Generic[TapT, SiteT]):
    """A trace for each target; `finite`: 1 for each floating-point input without NaN and infinite values, else 0."""

    traces: list[Trace[TapT, SiteT]]
    finite: Tensor


def run(
    model: nn.Module,
    images: Inputs,
    several: targets.Targets,
    taps: Taps,
    reducers: Reducers[TapT, SiteT],
    plans: Plans,
    *,
    differentiable: bool = False,
    contrast: bool = False,
) -> Traced[TapT, SiteT]:
    """For each of several targets a trace that holds what `reducers` make of each tap and bias site.

    The model runs once, or twice where the first run left its plan. No gradient outlives its reduction unless the
    reducers keep it, and no feature map outlives the last target's. Values are not checked: see `verify`.
    """
    _check(model)
    model = unwrapped(model)
    form = checked(model, images)
    if differentiable:
        _check_recording()
    leaves = floating(images)
    with torch.no_grad():
        finite = torch.stack([leaf.isfinite().all() for leaf in leaves])
    try:
        traces = _traces(model, images, form, several, taps, reducers, plans, differentiable, contrast)
    except Exception:
        # What went wrong may follow from the values.
        verify(finite.tolist(), images)
        raise
    return Traced(traces, finite)


def _traces(
    model: nn.Module,
    images: Inputs,
    form: Form,
    several: targets.Targets,
    taps: Taps,
    reducers: Reducers[TapT, SiteT],
    plans: Plans,
    differentiable: bool,
    contrast: bool,
) -> list[Trace[TapT, SiteT]]:
    wanted = may_want(taps)
    modules = list(model.modules())
    identities = tuple(map(id, modules))
    key = _key(images, form, taps)
    device = floating(images)[0].device
    walk = _Walk(model, images, form, several, taps, reducers, differentiable, contrast)
    plan = plans.get(key)
    if plan is not None and plan.modules == identities:
        with undisturbed(modules, device) as state:
            traces = walk.on_plan(plan, state.buffers.before_write)
            if traces is not None:
                state.drew = plan.draws
        if traces is not None:
            return _announced(traces, plan.hidden, plan.training)
    with undisturbed(modules, device) as state:
        traces, new = walk.planning(wanted, state.buffers.before_write, identities)
    if new is not None:
        new = replace(new, draws=state.drew is not False)
        plans.put(key, new.joined(plan))
    return _announced(traces, walk.hidden, walk.training)


def _key(images: Inputs, form: Form, taps: Taps) -> Any:
    choice = taps if isinstance(taps, str) or callable(taps) else tuple(taps)
    return choice, shape_of_call(images, form)


def _announced(traces: list[Trace[TapT, SiteT]], hidden: str, training: str) -> list[Trace[TapT, SiteT]]:
    if hidden:
        warnings.warn(f"Some layers are not in the map. {hidden}", stacklevel=6)
    if training:
        warnings.warn(training, stacklevel=6)
    return traces


@dataclass
class _Walk(Generic[TapT, SiteT]):
    """One call: the forward pass, the scores, and the gradient of each."""

    model: nn.Module
    images: Inputs
    form: Form
    several: targets.Targets
    taps: Taps
    reducers: Reducers[TapT, SiteT]
    differentiable: bool
    contrast: bool
    hidden: str = ""
    training: str = ""

    def on_plan(self, plan: Plan, before_write: Callable[[Tensor], bool]) -> list[Trace[TapT, SiteT]] | None:
        """The traces by a plan; None where the run leaves it."""
        call = call_of(self.images, self.form, self.differentiable)
        watch = Replay(plan.steps, plan.batch, plan.taps, plan.sites, call.leaves, before_write, self.differentiable)
        with watch, FinalProbabilities() as final:
            output = call.run(self.model)
        watch.settle()
        if watch.is_off:
            return None
        scored, outputs = _scored(output, self.several, call, final, self.contrast, self.differentiable)
        routes = [plan.routes.get(_outputs(each, outputs, call)) for each in scored]  # type: ignore[arg-type]
        del output, outputs, final
        traces = []
        for place, (scores, route) in enumerate(zip(scored, routes, strict=True)):
            if route is None:
                return None
            candidates = {at: watch.candidates[tap] for at, tap in enumerate(route.taps)}
            shifts = {at: watch.shifts[site] for at, site in enumerate(route.sites)}
            is_last = place == len(scored) - 1
            if is_last:
                watch.candidates.clear()
            parts = self._differentiate(call, scores, candidates, shifts, route, is_last)
            if len(parts.taps) != len(route.taps) or len(parts.sites) != len(route.sites):
                return None
            traces.append(_trace(call, parts, route))
        return traces

    def planning(
        self,
        wanted: Callable[[str, str], bool],
        before_write: Callable[[Tensor], bool],
        identities: tuple[int, ...],
    ) -> tuple[list[Trace[TapT, SiteT]], Plan | None]:
        """The traces, and the plan for later calls; None where none holds."""
        call = call_of(self.images, self.form, self.differentiable)
        watch = Capture(self.model, call.leaves, wanted, before_write, self.differentiable)
        with watch, FinalProbabilities() as final:
            output = call.run(self.model)
        watch.settle()
        scored, outputs = _scored(output, self.several, call, final, self.contrast, self.differentiable)
        keys = [_outputs(scores, outputs, call) for scores in scored]
        del output, outputs, final
        hidden, self.training = _hidden(watch), _training(watch)
        traces: list[Trace[TapT, SiteT]] = []
        plan: Plan | None = None
        places = [candidate.place for candidate in watch.candidates]
        for index, (scores, key) in enumerate(zip(scored, keys, strict=True)):
            try:
                total = scores.score.sum()
                studied = study(
                    total, call.leaves, watch.candidates, watch.shifts, self.taps, watch.seen, watch.unplaced
                )
            except TapError as error:
                raise TapError(f"{_without_place(error, watch)} {hidden}".strip()) from None
            if studied is None:
                raise OutputError(
                    "The score does not depend on the images: the model detaches its output, runs under no_grad or "
                    "ignores its input."
                )
            self.hidden = " ".join(filter(None, (hidden, _left_out(studied.unplaced, len(studied.candidates)))))
            candidates = {at: watch.candidates[tap] for at, tap in enumerate(studied.candidates)}
            shifts = {at: watch.shifts[site] for at, site in enumerate(studied.shifts)}
            is_last = index == len(scored) - 1
            if is_last:
                watch.candidates.clear()
            parts = self._differentiate(call, scores, candidates, shifts, studied.route, is_last)
            if not parts.taps:
                raise TapError("The score does not depend on any of the chosen taps. List them with cam.taps(images).")
            route = without(studied.route, sorted(parts.taps), sorted(parts.sites))
            traces.append(_trace(call, parts, route))
            if key is not None and studied.settled and not watch.positions_depend_on_data:
                plan = Plan(
                    batch=call.batch,
                    modules=identities,
                    steps=tuple(watch.steps),
                    taps=tuple(places[tap] for tap in studied.candidates),
                    sites=tuple(watch.shifts[site].place for site in studied.shifts),
                    routes={key: route},
                    draws=False,
                    hidden=self.hidden,
                    training=self.training,
                ).joined(plan)
        return traces, plan

    def _differentiate(
        self,
        call: Call,
        scored: targets.Scored,
        candidates: dict[int, Candidate],
        shifts: dict[int, Shift],
        route: Route,
        is_last: bool,
    ) -> _Parts[TapT, SiteT]:
        """What is made of each tap and bias site, by its place among the candidates and shifts, and the inputs'
        gradients. Empties `candidates`: at the last target nothing but the network's own graph holds a feature map.
        """
        total = scored.score.sum()
        unit = _unit(scored, total, candidates, self.differentiable)
        scored = replace(scored, unit=unit, score=scored.score if scored.value is None else scored.value)
        if not self.differentiable:
            scored = replace(scored, score=scored.score.detach(), logits=scored.logits.detach())
        reduce_tap, reduce_site = self.reducers(scored)
        parts: _Parts[TapT, SiteT] = _Parts(scored, {}, {}, [])

        def visit_tap(at: int, gradient: Tensor) -> None:
            parts.taps[at] = reduce_tap(_tap(candidates.pop(at), gradient, route.path_shares[at]))

        def visit_site(at: int, gradient: Tensor) -> None:
            known = shifts[at].place.owners is not None or (gradient.ndim > 0 and len(gradient) % call.batch == 0)
            if known and gradient.numel():
                parts.sites[at] = reduce_site(_site(shifts[at], gradient, call.batch))

        visits = [(candidate.edge, partial(visit_tap, at)) for at, candidate in candidates.items()]
        visits += [(shift.edge, partial(visit_site, at)) for at, shift in shifts.items()]
        dtypes = {candidate.value.dtype for candidate in candidates.values()}
        scale = _HALF_GRADIENT_SCALE if torch.float16 in dtypes else 1.0
        gradients = _gradients(total, call.leaves, visits, scale, self.differentiable, not is_last)
        if all(gradient is None for gradient in gradients):
            raise OutputError("The score does not depend on the images: no gradient reaches them.")
        parts.gradients.extend(gradients)
        return parts


@dataclass(frozen=True)
class _Parts(Generic[TapT, SiteT]):
    """What one gradient left."""

    scored: targets.Scored
    taps: dict[int, TapT]
    sites: dict[int, SiteT]
    gradients: list[Tensor | None]


def _scored(
    output: Any,
    several: targets.Targets,
    call: Call,
    final: FinalProbabilities,
    contrast: bool,
    differentiable: bool,
) -> tuple[list[targets.Scored], list[Tensor]]:
    """The scores of each target, and the tensors they may be computed from: the outputs, and logits behind these."""
    whole = targets.Output(output, call.batch, call.leaves, final.logits, final.remain)
    outputs = output_tensors(output)
    scored = targets.score_each(whole, several, call.batch)
    if contrast:
        scored = [
            targets.against_rivals(each, differentiable) if _has_rivals(each, whole, final) else each for each in scored
        ]
    return scored, [*outputs, *final.of(outputs)]


def _has_rivals(scored: targets.Scored, whole: targets.Output, final: FinalProbabilities) -> bool:
    """Labels of a sigmoid do not exclude each other, and probabilities without logits are explained as they are."""
    kind = final.kind(scored.logits)
    if kind is None:
        return (scored.index is not None or bool(scored.classes)) and not whole.are_bare_probabilities(scored.logits)
    return kind == "softmax"


def _outputs(scored: targets.Scored, outputs: Sequence[Tensor], call: Call) -> Outputs | None:
    if scored.index is not None:
        place = next((place for place, tensor in enumerate(outputs) if tensor is scored.logits), None)
        return None if place is None else ((place, 1),)
    return outputs_of(scored.score, outputs, call.leaves)


def _unit(
    scored: targets.Scored, total: Tensor, candidates: Mapping[int, Candidate], differentiable: bool
) -> Tensor | None:
    """What each score is divided by before the read-out: 1 where it is in logits or probabilities; else, so that it
    has the size of a logit in whatever unit it is, sum|g A| at the last tap over EVIDENCE (method.md, Units).
    """
    if all(scored.has_unit):
        return None
    scale = _HALF_GRADIENT_SCALE if any(each.value.dtype == torch.float16 for each in candidates.values()) else 1.0
    for at in sorted(candidates, reverse=True):
        candidate = candidates[at]
        (gradient,) = torch.autograd.grad(
            total * scale, [candidate.edge], retain_graph=True, create_graph=differentiable, allow_unused=True
        )
        if gradient is None:
            continue
        tap = _tap(replace(candidate, outside=None), at_least_float32(gradient) / scale, Fraction(1))
        terms = (at_least_float32(tap.gradient) * at_least_float32(tap.activation)).abs()
        mass, fold = terms.flatten(1).sum(1), candidate.place.fold
        if fold is not None and candidate.outside is not None:
            whole = (at_least_float32(gradient) / scale * at_least_float32(candidate.outside)).abs()
            mass = with_rest(mass, fold.rest(whole, terms))
        mass = mass / EVIDENCE
        own = torch.tensor(scored.has_unit, device=mass.device)
        return torch.where(own | (mass == 0), 1, mass)
    return None


def _trace(call: Call, parts: _Parts[TapT, SiteT], route: Route) -> Trace[TapT, SiteT]:
    leaves = call.leaves if parts.scored.score.requires_grad else [leaf.detach() for leaf in call.leaves]
    return Trace(
        taps=tuple(parts.taps[at] for at in sorted(parts.taps)),
        sites=tuple(parts.sites[at] for at in sorted(parts.sites)),
        score=at_least_float32(parts.scored.score),
        output=parts.scored.logits,
        index=parts.scored.index,
        names=parts.scored.names,
        unit=parts.scored.unit,
        contrast=parts.scored.contrast,
        behind=route.behind_tensor,
        inputs=tuple(
            _input(name, leaf, gradient, entry)
            for name, leaf, gradient, entry in zip(call.names, leaves, parts.gradients, route.inputs, strict=True)
        ),
    )


def _input(name: str, leaf: Tensor, gradient: Tensor | None, entry: InputRoute) -> Input:
    return Input(
        name=name,
        product=at_least_float32(leaf) * (0 if gradient is None else gradient),
        space=tuple(leaf.shape[axis] for axis in entry.axes),
        path_shares=entry.path_shares,
        fused=entry.fused,
        sites=entry.sites,
        placements=entry.placements,
        site_placements=entry.site_placements,
    )


def _kept(part: Any) -> Any:
    return part


def _gradients(
    total: Tensor,
    leaves: Sequence[Tensor],
    visits: Sequence[tuple[GradientEdge, Callable[[Tensor], None]]],
    scale: float,
    differentiable: bool,
    again: bool,
) -> list[Tensor | None]:
    """The gradients at the leaves; each visit gets that at its edge when it is complete, before it goes on.

    `again`: the graph is needed for another target.
    """

    def unscaled(gradient: Tensor) -> Tensor:
        return gradient if scale == 1 else at_least_float32(gradient) / scale

    def hook(place: int, visit: Callable[[Tensor], None], gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[place]
        if gradient is not None:
            visit(unscaled(gradient))

    hooks = [edge.node.register_prehook(partial(hook, edge.output_nr, visit)) for edge, visit in visits]
    try:
        with torch.autocast(total.device.type, enabled=False):
            gradients = torch.autograd.grad(
                total * scale if scale != 1 else total,
                leaves,
                retain_graph=again or differentiable,
                create_graph=differentiable,
                allow_unused=True,
            )
    finally:
        for each in hooks:
            each.remove()
    return [None if gradient is None else unscaled(gradient) for gradient in gradients]


def _tap(candidate: Candidate, gradient: Tensor, path_share: Fraction) -> Tap:
    fold, value = candidate.place.fold, candidate.value
    mapped = gradient if fold is None else fold(gradient)
    rest = None
    if fold is not None and candidate.outside is not None:
        rest = fold.rest(
            at_least_float32(gradient) * at_least_float32(candidate.outside),
            at_least_float32(mapped) * at_least_float32(value),
        )
    return Tap(candidate.name, candidate.kind, value, mapped, path_share, rest, candidate.is_positive)


def _site(shift: Shift, gradient: Tensor, batch: int) -> BiasSite:
    value, place = at_least_float32(shift.value).expand_as(gradient), shift.place
    if place.fold is not None:
        mapped, shifts = place.fold(gradient), place.fold(value)
        return BiasSite(
            place.name,
            mapped,
            shifts,
            place.fold.rest(at_least_float32(gradient) * value, at_least_float32(mapped) * shifts),
        )
    if place.axes == "regular":
        return BiasSite(place.name, gradient, value)
    if place.owners is not None:
        owner = place.owners.to(gradient.device, non_blocking=True).expand(gradient.shape).flatten()
        part = (at_least_float32(gradient) * value).flatten()
        summed = part.new_zeros(batch).index_add(0, owner, part)[:, None]
        return BiasSite(place.name, summed, torch.ones_like(summed))
    # Where on the grid is not known: per sample a list without space.
    return BiasSite(place.name, gradient.reshape(batch, -1), value.reshape(batch, -1))


def verify(finite: Sequence[float], images: Inputs) -> None:
    """Refuse inputs that are not finite; `finite` as in `Traced`, read back."""
    check_finite(images, finite)


def verify_scores(scores: Sequence[float]) -> None:
    """Refuse scores that are not finite.

    Raises:
        OutputError: some are.
    """
    bad = [sample for sample, score in enumerate(scores) if not isfinite(score)]
    if bad:
        raise OutputError(
            f"The score of sample {', '.join(map(str, bad))} is NaN or infinite. Check the weights, the input's "
            "normalisation and, in half precision, the range."
        )


def _hidden(capture: Capture) -> str:
    """Which parts of the model cannot be looked into, and what to do; empty where there are none."""
    scripted = [name for name, module in capture.modules.items() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in scripted if not any(name.startswith(f"{other}.") for other in scripted)]
    if outermost:
        return (
            f"The model's part {', '.join(outermost)} is a TorchScript module, whose feature maps cannot be seen. Put "
            "the Python module there that it was scripted or traced from."
        )
    if capture.has_operators and not capture.seen:
        return (
            "The model calls operators of torch's dispatcher, as program.module() of torch.export does, in which no "
            "layer is recognised. Give the module that was exported, or integrative_cam.models.as_functions(program)."
        )
    return ""


def _training(capture: Capture) -> str:
    """What ran as in training although the model is in evaluation mode; empty where nothing did."""
    if not capture.in_training:
        return ""
    return (
        f"In evaluation mode the model runs {', '.join(dict.fromkeys(capture.in_training))} as in training: with the "
        "batch's statistics, so that a map depends on the other images, or with random numbers. Set its training "
        "argument to self.training."
    )


def _left_out(names: Sequence[str], taps: int) -> str:
    if not names:
        return ""
    return (
        f"Beside the map's {taps}, there are {len(names)} activation(s) of which it is not known where on the input "
        f"they lie, or which lie at several places at once: {_some(names)}."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _without_place(error: TapError, capture: Capture) -> str:
    """The error's text, which does not say that there are no activations where there are some without a place."""
    names = [name for name, _ in capture.unplaced] or capture.single
    if not names or any(candidate.kind == "activation" for candidate in capture.candidates):
        return str(error)
    why = (
        "it is not known where on the input they lie, or they lie at several places at once"
        if capture.unplaced
        else "none has more than one position on the input"
    )
    return f"No feature map with space: of the network's nonlinearities ({_some(names)}), {why}."


def _check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        inside = " Give its .model." if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}.{inside}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is a TorchScript module, whose feature maps cannot be seen. Give the Python module that it was "
            "scripted or traced from."
        )


def _check_recording() -> None:
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise InputError(
            "differentiable=True keeps the autograd graph, but the call is inside of torch.no_grad or "
            "torch.inference_mode, where none is recorded. Call it outside, or leave differentiable out."
        )
