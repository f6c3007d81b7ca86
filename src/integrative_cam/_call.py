"""Run the model once, and its gradient once: everything that any map is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from . import targets
from ._maps.blocks import at_least_float32
from ._maps.traced import BiasSite, Input, SiteT, Tap, TapT, Trace
from ._plan import graph
from ._plan.capture import Candidate, Capture, Shift
from ._plan.inputs import Call, Inputs, call_of, checked, floating
from ._plan.model_state import undisturbed, unwrapped
from ._plan.taps import Taps, may_want, select_for
from .errors import InputError, OutputError, TapError

_HALF_GRADIENT_SCALE = 2.0**10
"""float16 gradients of early layers fall below its smallest number; a power of two is undone exactly."""


def trace(
    model: nn.Module,
    images: Inputs,
    target: targets.Target = None,
    taps: Taps = "activations",
    *,
    differentiable: bool = False,
) -> Trace:
    """Forward once and differentiate the target's score once, leaving model, autograd and RNG as they were.

    A model in training mode runs in evaluation mode meanwhile. In-place operations, frozen parameters,
    `no_grad`, `inference_mode` around the call and autocast all work; a compiled model runs eagerly.

    Args:
        model: any module.
        images: (batch, channel, *space), floating point, on the model's device, for the model's first argument. A
            tuple or list of tensors (batch, ...) for positional arguments, a dict of them for keyword arguments:
            each with floats is an input to differentiate towards, others are passed on.
        target: see `targets.score`.
        taps: see `taps.select`; several inputs choose each among those that depend on it.
        differentiable: keep the graph, towards the parameters and towards images that require a gradient. It costs
            the memory of a training step and a second derivative of every layer. No `.grad` is written here.

    Raises:
        InputError: images or model cannot be used as given, or differentiable where autograd is off.
        OutputError: not finite, without a tensor, or independent of the images.
        TargetError: the target does not name one scalar per sample.
        TapError: no feature map fits.
    """
    (found,) = trace_reduced(model, images, [target], taps, lambda _: (_kept, _kept), differentiable=differentiable)
    return found


Reducers = Callable[[targets.Scored], tuple[Callable[[Tap], TapT], Callable[[BiasSite], SiteT]]]
"""Takes the scores and gives what to make of each tap and of each bias site."""


def trace_reduced(
    model: nn.Module,
    images: Inputs,
    several: targets.Targets,
    taps: Taps,
    reducers: Reducers[TapT, SiteT],
    *,
    differentiable: bool = False,
) -> list[Trace[TapT, SiteT]]:
    """Of each of several targets, a trace that holds what `reducers` make of each tap and site as soon as its gradient
    is there; see `trace`. The model runs once.

    No gradient outlives that moment but those that the reducers keep, and no feature map outlives the last target's.
    """
    _check(model)
    model = unwrapped(model)
    form = checked(model, images)
    if differentiable:
        _check_recording()
    with undisturbed(model, floating(images)[0].device) as before_write:
        call = call_of(images, form, differentiable)
        capture = Capture(model, call.batch, may_want(taps), before_write, differentiable)
        capture.enter(call.leaves)
        with capture:
            output = call.run(model)
        scored = targets.score_each(output, several, call.batch)
        del output
        for each in scored:
            _check_finite(each)
        hidden = _hidden(capture)
        try:
            last = len(scored) - 1
            found = [
                _differentiate(call, each, capture, taps, reducers, differentiable, place == last)
                for place, each in enumerate(scored)
            ]
        except TapError as error:
            raise TapError(f"{error} {hidden}".strip()) from None
        if hidden:
            warnings.warn(f"Some layers are not in the map. {hidden}", stacklevel=2)
        return found


def _kept(found: Any) -> Any:
    return found


def _differentiate(
    call: Call,
    scored: targets.Scored,
    capture: Capture,
    taps: Taps,
    reducers: Reducers[TapT, SiteT],
    differentiable: bool,
    is_last: bool,
) -> Trace[TapT, SiteT]:
    total = scored.score.sum()
    if total.grad_fn is None:
        raise OutputError(
            "The score does not depend on the images: the model detaches its output, runs under no_grad or "
            "ignores its input."
        )
    order = graph.towards_input(total.grad_fn)
    to_inputs = [graph.paths_to(order, get_gradient_edge(leaf).node) for leaf in call.leaves]
    if not any(to_input[order[-1]] for to_input in to_inputs):
        raise OutputError("The score does not depend on the images: the model ignores its input.")
    reached = [[bool(to_input.get(each.edge.node)) for to_input in to_inputs] for each in capture.candidates]
    fused = select_for(capture.candidates, reached, [leaf.ndim for leaf in call.leaves], taps, capture.seen)
    chosen = {index: capture.candidates[index] for index in sorted(set().union(*fused))}
    shifts = [each for each in capture.shifts if any(to_input.get(each.edge.node) for to_input in to_inputs)]
    nodes = {index: each.edge.node for index, each in chosen.items()}
    ndims = {index: each.value.ndim for index, each in chosen.items()}
    if is_last:
        capture.candidates.clear()

    from_score = graph.paths_from(order)
    shares = [graph.path_shares(order, list(nodes.values()), from_score, [to_input]) for to_input in to_inputs]
    overall = graph.path_shares(order, list(nodes.values()), from_score, to_inputs) if len(shares) > 1 else shares[0]
    share_of = dict(zip(nodes, overall, strict=True))
    shares_of = [dict(zip(nodes, each, strict=True)) for each in shares]

    leaves = call.leaves
    if not differentiable:
        scored = replace(scored, score=scored.score.detach(), logits=scored.logits.detach())
        leaves = tuple(leaf.detach() for leaf in leaves)
    reduce_tap, reduce_site = reducers(scored)
    at_tap: dict[int, TapT] = {}
    at_site: dict[int, SiteT] = {}

    def visit_tap(index: int, gradient: Tensor) -> None:
        # Popped: at the last target, nothing but the network's own graph holds the feature map any more.
        at_tap[index] = reduce_tap(_tap(chosen.pop(index), gradient, share_of[index]))

    def visit_site(index: int, gradient: Tensor) -> None:
        if gradient.ndim and len(gradient) % call.batch == 0:
            at_site[index] = reduce_site(_site(shifts[index], gradient, call.batch))

    visits = [(each.edge, partial(visit_tap, index)) for index, each in chosen.items()]
    visits += [(each.edge, partial(visit_site, index)) for index, each in enumerate(shifts)]
    scale = _HALF_GRADIENT_SCALE if torch.float16 in {each.value.dtype for each in chosen.values()} else 1.0
    at_leaves = _gradients(total, call.leaves, visits, scale, differentiable, not is_last)
    if all(each is None for each in at_leaves):
        raise OutputError("The score does not depend on the images: no gradient reaches them.")
    if not at_tap:
        raise TapError("The score does not depend on any of the chosen taps. List them with cam.taps(images).")

    found, sites = sorted(at_tap), sorted(at_site)
    place = {index: at for at, index in enumerate(found)}
    site_nodes = [shifts[index].edge.node for index in sites]
    return Trace(
        taps=tuple(at_tap[index] for index in found),
        sites=tuple(at_site[index] for index in sites),
        behind=graph.behind(order, [nodes[index] for index in found], site_nodes).to(total.device),
        score=at_least_float32(scored.score),
        output=scored.logits,
        index=scored.index,
        target_names=scored.names,
        inputs=tuple(
            Input(
                name=name,
                product=at_least_float32(leaf) * (0 if gradient is None else gradient),
                space=_space(leaf, [ndims[index] for index in own if index in place]),
                path_shares=tuple(share[index] for index in found),
                fused=tuple(place[index] for index in own if index in place),
                sites=tuple(at for at, node in enumerate(site_nodes) if to_input[node]),
            )
            for name, leaf, gradient, to_input, share, own in zip(
                call.names, leaves, at_leaves, to_inputs, shares_of, fused, strict=True
            )
        ),
    )


def _space(leaf: Tensor, ndims: Sequence[int]) -> tuple[int, ...]:
    return tuple(leaf.shape[2 - ndims[0] :]) if ndims else ()


def _gradients(
    total: Tensor,
    leaves: Sequence[Tensor],
    visits: Sequence[tuple[GradientEdge, Callable[[Tensor], None]]],
    scale: float,
    differentiable: bool,
    again: bool,
) -> list[Tensor | None]:
    """The gradients at the leaves; each visit gets that at its edge when it is complete, before it goes on. `again`:
    the graph is needed for another target.
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
            found = torch.autograd.grad(
                total * scale,
                leaves,
                retain_graph=again or differentiable,
                create_graph=differentiable,
                allow_unused=True,
            )
    finally:
        for each in hooks:
            each.remove()
    return [None if each is None else unscaled(each) for each in found]


def _tap(candidate: Candidate, gradient: Tensor, path_share: Fraction) -> Tap:
    name, kind, value, fold = candidate.name, candidate.kind, candidate.value, candidate.fold
    if fold is None:
        return Tap(name, kind, value, gradient, path_share, is_positive=candidate.is_positive)
    mapped = fold(gradient)
    rest = None
    if candidate.outside is not None:
        rest = fold.rest(
            at_least_float32(gradient) * at_least_float32(candidate.outside),
            at_least_float32(mapped) * at_least_float32(value),
        )
    return Tap(name, kind, value, mapped, path_share, rest, candidate.is_positive)


def _site(shift: Shift, gradient: Tensor, batch: int) -> BiasSite:
    value = at_least_float32(shift.value).expand_as(gradient)
    fold = None if shift.layout.regular else shift.layout.fold
    if fold is not None and fold.batch == batch:
        mapped, shifts = fold(gradient), fold(value)
        return BiasSite(
            shift.name, mapped, shifts, fold.rest(at_least_float32(gradient) * value, at_least_float32(mapped) * shifts)
        )
    if shift.layout.regular or (gradient.ndim == 2 and len(gradient) == batch):
        return BiasSite(shift.name, gradient, value)
    # Nobody knows where on the grid: per sample a list without space.
    return BiasSite(shift.name, gradient.reshape(batch, -1), value.reshape(batch, -1))


def _hidden(capture: Capture) -> str:
    """Which parts of the model cannot be looked into, and what to do; empty where there are none."""
    scripted = [name for name, module in capture.modules.items() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in scripted if not any(name.startswith(f"{other}.") for other in scripted)]
    if outermost:
        return (
            f"The model's part {', '.join(outermost)} is a TorchScript module, whose feature maps cannot be seen. Put "
            "the Python module there that it was scripted or traced from."
        )
    if capture.operators and not capture.seen:
        return (
            "The model calls operators of torch's dispatcher, as program.module() of torch.export does, in which no "
            "layer is recognised. Give the module that was exported, or "
            "integrative_cam.models.exported.as_functions(program)."
        )
    return ""


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


def _check_finite(scored: targets.Scored) -> None:
    finite = scored.score.isfinite()
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise OutputError(
            f"The score of sample {', '.join(map(str, bad))} is NaN or infinite. Check the weights, the input's "
            "normalisation and, in half precision, the range."
        )
