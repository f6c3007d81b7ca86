"""Run the model once, and its gradient once: everything that any map is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from typing_extensions import TypeVar  # torch needs it, and brings it

from . import graph, targets
from .blocks import per_channel, sum_over_blocks, wide
from .capture import Candidate, Capture, Shift
from .errors import InputError, OutputError, TapError
from .guard import undisturbed, unwrapped
from .inputs import Call, Inputs, call_of, checked, floating
from .taps import Taps, may_want, select_for

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_HALF_GRADIENT_SCALE = 2.0**10
"""float16 gradients of early layers fall below its smallest number; a power of two is undone exactly."""


@dataclass(frozen=True)
class Sums:
    """Over a feature map A and its gradient g: the sums of g A and |g A|, the means of |g| and |A|."""

    product: Float[Tensor, "batch"]
    magnitude: Float[Tensor, "batch"]
    gradient: Float[Tensor, "batch"]
    activation: Float[Tensor, "batch"]


def block_sums(
    size: Float[Tensor, "row channel position"],
    product: Float[Tensor, "row channel position"],
    strength: Float[Tensor, "row channel position"],
) -> tuple[Tensor, ...]:
    """Of a block, what `sums_of` wants, from |A|, g A and |g|."""
    return tuple(each.sum((1, 2)) for each in (product, product.abs(), strength, size))


def sums_of(found: Sequence[Float[Tensor, "batch"]], entries: int) -> Sums:
    """From what `block_sums` gives for all blocks of a feature map of so many entries per sample."""
    product, magnitude, gradient, activation = found
    return Sums(product, magnitude, gradient / entries, activation / entries)


@dataclass(frozen=True)
class Tap:
    """One feature map and the gradient of the score with respect to that same tensor.

    Both have the network's dtype; `wide` gives them in float32 or better. `path_share`: of
    all the paths from the inputs to the score, the share that passes here. `is_positive`: no
    activation is below zero, whatever the image, as behind a ReLU.
    """

    name: str
    kind: str
    activation: Float[Tensor, "batch channel *space"]
    gradient: Float[Tensor, "batch channel *space"]
    path_share: Fraction
    rest: Float[Tensor, "batch"] | None = None
    is_positive: bool = False

    @cached_property
    def sums(self) -> Sums:
        """What its scores and the score's parts are made of, found in one walk."""
        # Kept for later calls too, which may want the graph.
        with torch.set_grad_enabled(self.gradient.requires_grad):
            found = sum_over_blocks(
                lambda activation, gradient: block_sums(activation.abs(), activation * gradient, gradient.abs()),
                (self.activation, self.gradient),
            )
            return sums_of(found, self.activation[0].numel())

    @property
    def has_sums(self) -> bool:
        """Whether its sums were asked for before."""
        return "sums" in vars(self)

    @property
    def part(self) -> Float[Tensor, "batch"]:
        """<gradient, activation>, with `rest`."""
        return self.sums.product if self.rest is None else self.sums.product + self.rest

    @property
    def is_cut(self) -> bool:
        """Every path passes here."""
        return self.path_share == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, *space)."""
        return tuple(self.activation.shape[1:])


@dataclass(frozen=True)
class BiasSite:
    """A place where the network adds a constant: the gradient there, and `shift`, expanded to its shape.

    The space is empty behind global pooling: (batch, channel). `rest`: as in `Tap`.
    """

    name: str
    gradient: Float[Tensor, "batch channel *space"]
    shift: Float[Tensor, "batch channel *space"]
    rest: Float[Tensor, "batch"] | None = None

    @property
    def part(self) -> Float[Tensor, "batch"]:
        """<gradient, shift>, with `rest`."""
        factor, gradient = per_channel(self.shift), wide(self.gradient)
        if factor is None:
            part = (gradient * self.shift).flatten(1).sum(1)
        else:
            summed = gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient
            part = (summed * factor[..., 0]).sum(1)
        return part if self.rest is None else part + self.rest


@dataclass(frozen=True)
class Input:
    """One floating-point input: dS/dx times x, entry by entry, and how much of the network it reaches.

    `space` is empty where no tap keeps its axes, as of a vector. Per tap, `path_shares`: of all the paths from this
    input to the score, the share that passes there; 0 where the tap does not depend on it. `fused`: the taps that its
    map is made of. `sites`: the bias sites that act on something computed from it.
    """

    name: str
    product: Float[Tensor, "batch ..."]
    space: tuple[int, ...]
    path_shares: tuple[Fraction, ...]
    fused: tuple[int, ...]
    sites: tuple[int, ...]

    @property
    def part(self) -> Float[Tensor, "batch"]:
        """<dS/dx, x>."""
        return self.product.flatten(1).sum(1) if self.product.ndim > 1 else self.product


TapT = TypeVar("TapT", default=Tap)
SiteT = TypeVar("SiteT", default=BiasSite)


@dataclass(frozen=True)
class Trace(Generic[TapT, SiteT]):
    """One forward and one gradient of a batch; detached, and independent of the model from here on, unless it was made
    with `differentiable`: then all tensors with floats keep their graphs.

    Taps and sites may also be what was made of them as soon as their gradients arrived; see `trace_reduced`.
    `behind[t, s]` is True where bias site s acts on a value computed from tap t. `index` holds the target classes,
    None where the target is a callable.
    """

    taps: tuple[TapT, ...]
    sites: tuple[SiteT, ...]
    behind: Bool[Tensor, "tap site"]
    score: Float[Tensor, "batch"]
    output: Tensor
    index: Int[Tensor, "batch"] | None
    target_names: tuple[str, ...]
    inputs: tuple[Input, ...]

    @property
    def is_differentiable(self) -> bool:
        """Whether it keeps the graph, so that maps made of it can be differentiated."""
        return self.score.requires_grad

    @property
    def main_input(self) -> Input:
        """The first input with a map."""
        return next(each for each in self.inputs if each.space)

    @property
    def input_space(self) -> tuple[int, ...]:
        """The spatial size of the main input."""
        return self.main_input.space

    @property
    def input_part(self) -> Float[Tensor, "batch"]:
        """<dS/dx, x>, over all inputs."""
        return torch.stack([each.part for each in self.inputs]).sum(0)


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
    several: targets.Several,
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
        hidden = _hidden(model, capture)
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
        score=wide(scored.score),
        output=scored.logits,
        index=scored.index,
        target_names=scored.names,
        inputs=tuple(
            Input(
                name=name,
                product=wide(leaf) * (0 if gradient is None else gradient),
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
        return gradient if scale == 1 else wide(gradient) / scale

    def hook(place: int, visit: Callable[[Tensor], None], gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[place]
        if gradient is not None:
            visit(unscaled(gradient))

    hooks = [edge.node.register_prehook(partial(hook, edge.output_nr, visit)) for edge, visit in visits]
    try:
        found = torch.autograd.grad(
            total * scale, leaves, retain_graph=again or differentiable, create_graph=differentiable, allow_unused=True
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
        rest = fold.rest(wide(gradient) * wide(candidate.outside), wide(mapped) * wide(value))
    return Tap(name, kind, value, mapped, path_share, rest, candidate.is_positive)


def _site(shift: Shift, gradient: Tensor, batch: int) -> BiasSite:
    value = wide(shift.value).expand_as(gradient)
    fold = None if shift.layout.regular else shift.layout.fold
    if fold is not None and fold.batch == batch:
        mapped, shifts = fold(gradient), fold(value)
        return BiasSite(shift.name, mapped, shifts, fold.rest(wide(gradient) * value, wide(mapped) * shifts))
    if shift.layout.regular or (gradient.ndim == 2 and len(gradient) == batch):
        return BiasSite(shift.name, gradient, value)
    # Nobody knows where on the grid: per sample a list without space.
    return BiasSite(shift.name, gradient.reshape(batch, -1), value.reshape(batch, -1))


def _hidden(model: nn.Module, capture: Capture) -> str:
    """Which parts of the model cannot be looked into, and what to do; empty where there are none."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
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
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
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
