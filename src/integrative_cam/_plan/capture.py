"""Watch one forward pass: which tensors could be taps, and where biases enter.

A `TorchFunctionMode` sees every torch function that the network calls, inside modules or not. It lives on the calling
thread only and puts nothing on the model, so nothing can stay behind. `Capture` studies an unknown network; `Replay`
goes along with a plan and takes the taps and bias sites it names.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .bias_sites import BatchNorm, Side, batch_norm_shifts, constant_side, shift_of
from .follower import Follower, Layout, give, layout_of
from .functions import BREAKS, CHOICES, COMBINATIONS, CONSTANT, GATES, KINDS, PIECES, PRODUCTS, RANDOM
from .measure import measured
from .model_state import storage_of
from .placement import Fold, Grid, OnInput, grids_of, owners_of
from .positions import Positions
from .steps import DataFlow, Step, same_arguments, same_shapes, tensors_in

if TYPE_CHECKING:
    from jaxtyping import Float

_TRAINING = {
    "batch_norm": ("training", 5),
    "rrelu": ("training", 3),
    "scaled_dot_product_attention": ("dropout_p", 4),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), ("training", 2)),
    **dict.fromkeys(("feature_dropout", "feature_alpha_dropout"), ("training", 2)),
}
"""Functions with an argument that makes them run as in training: its name and place."""


def _is_training(func: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int) -> bool:
    """Whether a call of one of _TRAINING runs as in training; a batch norm without statistics of its own has to, and
    does no harm to a single image.
    """
    name, place = _TRAINING[func]
    if func == "batch_norm" and batch == 1 and not any(isinstance(each, Tensor) for each in args[1:3]):
        return False
    return bool(kwargs.get(name, args[place] if len(args) > place else "dropout" in func))


@dataclass(frozen=True)
class Place:
    """What is taken at one step of a run, or written to there.

    Attributes:
        name: the layer's, with a number from its second call on.
        kind: see `functions.KINDS`.
        axes: how the tensor's axes lie: as (batch, channel, *space), by `fold`, or unknown.
        fold: what brings it to (batch, channel, *space), if its axes lie otherwise.
        on: where that lies on the inputs, by their numbers.
        shape: of the tensor itself.
        owners: the samples of its entries, broadcasting to it, where the first axis does not tell.
        batch: samples in the run that was planned.
        side: which operand of an addition is the constant.
        argument: it is no result of the step but this one of the tensors that go into it.
    """

    step: int
    name: str
    kind: str
    axes: Literal["regular", "folded", "unknown"]
    fold: Fold | None
    on: Mapping[int, OnInput]
    shape: tuple[int, ...]
    owners: Tensor | None
    batch: int
    side: Side = None
    argument: int | None = None

    def serves(self, shape: tuple[int, ...], batch: int) -> bool:
        """Whether a tensor of this shape, from so many samples, lies as this one does."""
        if self.fold is not None:
            return self.fold.serves(shape, self.shape, batch)
        if self.owners is not None:
            return batch == self.batch
        return self.axes == "unknown" or shape[0] == batch


@dataclass(frozen=True)
class Candidate:
    """A feature map met on the way: its value and the place in the autograd graph where it arose.

    `outside`: the network's own tensor, where it has entries that are nowhere on the grid, such as a class token.
    `is_positive`: the function gives nothing below zero.
    """

    place: Place
    value: Float[Tensor, "batch channel *space"]
    edge: GradientEdge
    outside: Tensor | None
    is_positive: bool

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def kind(self) -> str:
        return self.place.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """(channel, *space)."""
        return tuple(self.value.shape[1:])


@dataclass(frozen=True)
class Shift:
    """A constant that the network adds: `value` broadcasts to the output whose edge this is."""

    place: Place
    value: Tensor
    edge: GradientEdge


class Watch(TorchFunctionMode):
    """Holds the feature maps and constants of a run as they are taken.

    A tensor that the network overwrites later is copied just before, and `before_write` is told of it, which says
    whether it was a buffer. With `keep_graph` values stay in the autograd graph.
    """

    def __init__(self, leaves: Sequence[Tensor], before_write: Callable[[Tensor], bool], keep_graph: bool) -> None:
        super().__init__()
        self.candidates: list[Candidate] = []
        self.shifts: list[Shift] = []
        self._flow = DataFlow()
        self._batch = len(leaves[0])
        self._before_write = before_write
        self._keep_graph = keep_graph
        self._by_storage: dict[int, list[int]] = {}
        self._flow.add(tuple(leaves))

    def _take_candidate(self, place: Place, output: Tensor, value: Tensor, is_positive: bool) -> None:
        whole = output if self._keep_graph else output.detach()
        fold = place.fold
        is_whole = fold is None or fold.is_part or (value.numel() == output.numel() and fold.empty is None)
        outside = None if is_whole else whole
        self._by_storage.setdefault(storage_of(output), []).append(len(self.candidates))
        self.candidates.append(Candidate(place, value, get_gradient_edge(output), outside, is_positive))

    def _take_shift(self, place: Place, output: Tensor, value: Tensor) -> None:
        value = value if self._keep_graph else value.detach()
        self.shifts.append(Shift(place, value, get_gradient_edge(output)))

    def _keep_from(self, tensor: Tensor) -> bool:
        """Copy the values that a write to this tensor would change; whether there are any."""
        indices = self._by_storage.pop(storage_of(tensor), ())
        for index in indices:
            candidate = self.candidates[index]
            outside = None if candidate.outside is None else candidate.outside.clone()
            self.candidates[index] = replace(candidate, value=candidate.value.clone(), outside=outside)
        return self._before_write(tensor) or bool(indices)


class Capture(Watch):
    """Study a run: record the candidates that `wanted(name, kind)` asks for, every constant, and all steps."""

    def __init__(
        self,
        model: nn.Module,
        leaves: Sequence[Tensor],
        wanted: Callable[[str, str], bool],
        before_write: Callable[[Tensor], bool],
        keep_graph: bool = False,
    ) -> None:
        super().__init__(leaves, before_write, keep_graph)
        self.steps: list[Step] = []
        self.seen: list[str] = []
        self.in_training: list[str] = []
        self.modules = dict(model.named_modules())
        self.has_operators = False
        self.single: list[str] = []
        self.unplaced: list[tuple[str, GradientEdge]] = []
        self._leaves = list(leaves)
        self._chains: dict[str, _Chain] = {}
        self._unseen: dict[int, weakref.ref[Tensor]] = {}
        self._without_graph: set[str | None] = set()  # made inside of an autograd.Function, for one
        self._follower = Follower([tuple(leaf.shape) for leaf in leaves], self._is_data)
        self._measurements = 0
        self._counted = 0
        self._wanted = wanted
        self._paths: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(name)
        self._calls: Counter[str] = Counter()
        self._data = {self._flow.label(leaf) for leaf in leaves}
        self._data_storages: set[int] = set()
        for of, leaf in enumerate(leaves):
            self._follower.enter(leaf, of)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._follower.finish()

    @property
    def positions_depend_on_data(self) -> bool:
        """Where a feature map lies depends on values computed from the inputs, so that no plan holds."""
        return self._follower.used_data

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        self.has_operators |= isinstance(func, torch._ops.OpOverload)
        name = called.strip("_")  # relu_ is relu in place, __rsub__ is the operator of rsub
        arguments = self._flow.arguments(func, args, kwargs)
        tensors = tensors_in((*args, *kwargs.values()))
        written = _written(called, args, kwargs)
        overwrites = written is not None and self._keep_from(written)
        self._take_unseen(tensors)
        output = func(*args, **kwargs)
        made, kind = output, self._kind_of(name, args, kwargs, tensors) or KINDS.get(name)
        if kind == "activation" and not isinstance(made, Tensor):
            made = args[0] if called == "__setitem__" else made[0]
        if kind == "activation" and written is not None:
            made = _whole(made)
        is_layer = _is_layer(kind, made)
        is_view = is_layer and written is None and made is output and output._is_view()
        if is_view:
            output = made = _unviewed(output)
        # An operator of torch's dispatcher, permute.default, moves what permute moves.
        plain = name if is_layer else name.partition(".")[0]
        if plain not in CONSTANT:
            self._follower.follow(func, plain, args, kwargs, output)
        from_data = name in RANDOM or (name not in CONSTANT and any(map(self._is_data, tensors)))
        self.steps.append(Step(func, arguments, self._flow.add(output, args), overwrites, is_view))
        self._without_graph.update(self._flow.label(t) for t in tensors_in((output,)) if not t.requires_grad)
        if from_data:
            filled = tensors_in((output, written, getattr(written, "_base", None)))
            self._data.update(map(self._flow.label, filled))
            if written is not None and not written.is_floating_point():
                self._data_storages.add(storage_of(written))
        if is_layer:
            self._record(name, kind or "", args, kwargs, made)
        self._chain(name, kind, tensors, made)
        if name in _TRAINING and _is_training(name, args, kwargs, self._batch):
            behind = self.seen[-1] if self.seen else "the input"
            self.in_training.append(behind if is_layer else f"{name} behind {behind}")
        return output

    def _is_data(self, tensor: Tensor) -> bool:
        """Whether the tensor was computed from the inputs, or drawn at random."""
        label = self._flow.label(tensor)
        return self._is_unseen(tensor) or (
            label is not None
            and (label in self._data or (bool(self._data_storages) and storage_of(tensor) in self._data_storages))
        )

    def _is_of_own_function(self, tensor: Tensor) -> bool:
        """Whether an autograd.Function returned it, inside of which it was made without a graph."""
        is_own = isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction)
        return is_own and self._flow.label(tensor) in self._without_graph

    def _is_unseen(self, tensor: Tensor) -> bool:
        """Whether a function returned it that cannot be seen."""
        reference = self._unseen.get(id(tensor))
        return reference is not None and reference() is tensor

    def _kind_of(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> str | None:
        """The kind of a nonlinearity under another name: a choice between values, a mask made of values."""
        data = [tensor for tensor in tensors if self._is_data(tensor)]
        masks = [tensor for tensor in data if not tensor.requires_grad]
        if name in CHOICES or (name in ("max", "min") and len(tensors) == 2):
            return "activation" if len(data) == len(masks) + 1 or len(data) > 1 else None
        if name in PRODUCTS and len(data) == 2 and len(masks) == 1 and data[0].shape == data[1].shape:
            return "activation"
        if name in ("where", "masked_fill", "setitem") and masks and any(mask.dtype == torch.bool for mask in masks):
            return "activation"
        if name in ("max", "min", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d") and data:
            return "activation" if self._follower.is_over_channels(name, args, kwargs) else None
        if name in PIECES:
            return "piece"
        return None

    def _chain(self, name: str, kind: str | None, tensors: Sequence[Tensor], output: Any) -> None:
        """Follow activations that are written in pieces, such as x * sigmoid(x): the product is the activation."""
        label = self._flow.label(output) if isinstance(output, Tensor) else None
        if label is None or not output.requires_grad or name in BREAKS:
            self._counted = len(self.candidates)
            return
        same = [t for t in tensors if t.requires_grad and t.shape == output.shape and self._flow.label(t) is not None]
        labels = list(dict.fromkeys(self._flow.label(tensor) or "" for tensor in same))
        if not labels or (name not in COMBINATIONS and kind not in ("activation", "piece")):
            self._counted = len(self.candidates)
            return
        chains = [self._chains.get(of) or _Chain(of, (), False) for of in labels]
        roots = {chain.root for chain in chains}
        recorded = tuple(index for chain in chains for index in chain.candidates)
        is_one = len(chains) > 1 and len(roots) == 1 and any(chain.is_nonlinear for chain in chains)
        is_gated = name == "mul" and len(chains) == 2 and any(chain.is_gate for chain in chains)
        before = len(self.candidates)
        if name not in PRODUCTS:
            # x + relu(x) is a residual, (x + abs(x)) / 2 an activation.
            is_one = is_one and all(self.candidates[index].kind == "piece" for index in recorded)
        if (is_one or is_gated) and name in ("mul", "add", "sub", "div", "truediv", "radd", "rmul", "iadd", "imul"):
            self._record(name, "activation", (), {}, output)
            if len(self.candidates) > before:
                for index in recorded:
                    self._rename_kind(index, "gate")
        elif kind == "activation" and len(self.candidates) > self._counted and len(chains) > 1:
            for index in recorded:
                self._rename_kind(index, "gate")
        new = tuple(range(self._counted, len(self.candidates)))
        self._counted = len(self.candidates)
        root = chains[0].root if len(roots) == 1 else label
        nonlinear = kind in ("activation", "piece") or any(chain.is_nonlinear for chain in chains)
        self._chains[label] = _Chain(root, (*recorded, *new), nonlinear, name in GATES and len(chains) == 1)

    def _rename_kind(self, index: int, kind: str) -> None:
        candidate = self.candidates[index]
        if candidate.kind in ("activation", "piece"):
            self.candidates[index] = replace(candidate, place=replace(candidate.place, kind=kind))

    def settle(self) -> None:
        """After the run: nonlinearities that are part of others on their way count where there are none but them.

        What came before the first layer, which shows the channels, may have been laid along other axes than the rest.
        """
        axes = {of: on.axes for each in self.candidates for of, on in each.place.on.items()}

        def is_certain(place: Place) -> bool:
            return all(on.axes == axes.get(of, on.axes) for of, on in place.on.items())

        lost = [each for each in self.candidates if not is_certain(each.place)]
        self.candidates = [each for each in self.candidates if is_certain(each.place)]
        self.unplaced += [(each.name, each.edge) for each in lost if each.kind == "activation"]
        for at, shift in enumerate(self.shifts):
            if not is_certain(shift.place):
                nowhere = replace(shift.place, axes="unknown", fold=None, on={})
                self.shifts[at] = replace(shift, place=nowhere)
        kinds = {candidate.kind for candidate in self.candidates}
        for index, candidate in enumerate(self.candidates):
            if candidate.kind == "piece":
                self._rename_kind(index, "gate" if "activation" in kinds else "activation")

    def _take_unseen(self, tensors: Sequence[Tensor]) -> None:
        """Take what a function returned that cannot be seen, such as an autograd.Function: it may be an activation."""
        for number, tensor in enumerate(tensors):
            if (
                tensor.grad_fn is not None
                and tensor.is_floating_point()
                and (self._flow.label(tensor) is None or self._is_of_own_function(tensor))
                and not self._is_unseen(tensor)
            ):
                self._unseen[id(tensor)] = weakref.ref(tensor)
                self._follower.follow_unseen(tensor)
                name = tensor.grad_fn.name().removesuffix("Backward")
                self._record(name, "activation", (), {}, tensor, argument=number)

    def _record(
        self,
        func: str,
        kind: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        argument: int | None = None,
    ) -> None:
        side = constant_side(func, args, kwargs) if args else None
        with torch.set_grad_enabled(self._keep_graph):
            shift = shift_of(func, args, kwargs, side) if args else None
        name = self._name(func)
        self.seen.append(name)
        is_wanted = self._wanted(name, "activation" if kind == "piece" else kind)
        if shift is None and not is_wanted:
            return
        grids = self._grids(output, is_wanted)
        if shift is not None:
            only = grids if grids is not None and len(grids) == 1 else None
            self._take_shift(self._place(name, kind, only, output, side)[0], output, shift)
        if not is_wanted:
            return
        if grids is None:
            if kind == "activation" and output.ndim > 2 and output.shape[2:].numel() > 1:
                self.unplaced.append((name, get_gradient_edge(output)))
            return
        if not grids and kind == "activation":
            self.single.append(name)
        for place in self._place(name, kind, grids, output, argument=argument) if grids else ():
            value = output if self._keep_graph else output.detach()
            value = value if place.fold is None else place.fold(value)
            self._take_candidate(place, output, value, _is_positive(func, args, kwargs))

    def _grids(self, output: Tensor, may_measure: bool) -> list[Grid] | None:
        """The grids in a tensor; measured where its positions do not follow from known functions."""
        layout = layout_of(output)
        grids = self._grids_of(None if layout is None else layout.positions)
        if grids is None and may_measure and self._measurements < _MOST_MEASUREMENTS:
            inputs = [of for of, leaf in enumerate(self._leaves) if leaf.ndim > 1]
            spaces = {of: self._follower.space(of, is_final=False) for of in inputs}
            positions = measured(output, self._leaves, spaces)
            if positions is None:
                self._measurements += 1
            else:
                give(output, Layout(lambda: positions, positions.shape))
                grids = self._grids_of(positions, is_final=True)
        if grids is None:
            return None
        return [grid for grid in grids if grid.fold is None or grid.fold.batch == self._batch]

    def _grids_of(self, positions: Positions | None, is_final: bool = False) -> list[Grid] | None:
        if positions is None:
            return None
        follower, shapes = self._follower, [tuple(leaf.shape) for leaf in self._leaves]
        inputs = sorted({of for of, _ in positions.own.at})
        spaces = {of: follower.space(of, is_final or follower.is_seen(of)) for of in inputs}
        return grids_of(positions, spaces, shapes, self._batch, follower.slid, follower.used_data)

    def _place(
        self,
        name: str,
        kind: str,
        grids: list[Grid] | None,
        output: Tensor,
        side: Side = None,
        argument: int | None = None,
    ) -> list[Place]:
        """A place for each of some grids in a tensor; a bias site has one, of unknown axes where it has no grid."""
        step, shape = len(self.steps) - (argument is None), tuple(output.shape)
        layout = layout_of(output)
        owners = None if layout is None else owners_of(layout.positions, self._batch)
        names = [f"{name}[{number}]" for number in range(len(grids))] if grids and len(grids) > 1 else [name]
        if not grids:
            return [Place(step, name, kind, "unknown", None, {}, shape, owners, self._batch, side)]
        return [
            Place(
                step,
                own_name,
                kind,
                "regular" if grid.fold is None else "folded",
                grid.fold,
                grid.on,
                shape,
                owners,
                self._batch,
                side,
                argument,
            )
            for own_name, grid in zip(names, grids, strict=True)
        ]

    def _name(self, func: str) -> str:
        """Path of the innermost module that runs now, `:function` where it is not a torch.nn layer, `#call`."""
        frame = sys._getframe(3)
        innermost: Any = None
        path, layer = "", False
        while frame is not None:
            code = frame.f_code
            module = frame.f_locals.get("self") if code.co_argcount and code.co_varnames[0] == "self" else None
            paths = () if module is None or module is innermost else self._paths.get(id(module), ())
            if paths and innermost is None:
                innermost, (path, *others) = module, paths
                layer = type(module).__module__.startswith("torch.nn.")
                if not others:
                    break
            elif paths:  # one activation that many modules share is named by the one that runs it
                inside = f"{paths[0]}." if paths[0] else ""
                own = (each for each in self._paths[id(innermost)] if each.startswith(inside))
                path = min(own, key=lambda each: each.count("."), default=path)
                break
            frame = frame.f_back  # type: ignore[assignment]
        name = path if layer and path else f"{path}:{func}"
        self._calls[name] += 1
        calls = self._calls[name]
        return name if calls == 1 else f"{name}#{calls}"


class Replay(Watch):
    """Go along with the planned steps and take what stands at the planned places.

    Where the run leaves the plan, in function, arguments, data flow or shapes, `is_off` is set and nothing more is
    taken: the run goes on undisturbed, and its caller plans anew.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        planned_batch: int,
        taps: Sequence[Place],
        shifts: Sequence[Place],
        leaves: Sequence[Tensor],
        before_write: Callable[[Tensor], bool],
        keep_graph: bool = False,
    ) -> None:
        super().__init__(leaves, before_write, keep_graph)
        self._steps = steps
        self._batches = planned_batch, self._batch
        shift_at = {place.step: place for place in shifts}
        tap_at: dict[int, list[Place]] = {}
        self._unseen: dict[int, list[Place]] = {}
        for place in taps:
            (tap_at if place.argument is None else self._unseen).setdefault(place.step, []).append(place)
        self._taken = {step: (tap_at.get(step, []), shift_at.get(step)) for step in tap_at.keys() | shift_at.keys()}
        self._at = 0
        self._left = False
        self._batch_norms: list[tuple[int, BatchNorm]] = []

    def settle(self) -> None:
        """After the run: work out what was put off, the constants of all batch norms at once."""
        with torch.set_grad_enabled(self._keep_graph):
            values = batch_norm_shifts([call for _, call in self._batch_norms])
        for (at, _), value in zip(self._batch_norms, values, strict=True):
            if value is None:
                self._left = True
            else:
                self.shifts[at] = replace(self.shifts[at], value=value if self._keep_graph else value.detach())

    @property
    def is_off(self) -> bool:
        """The run left the plan, or ended before it."""
        return self._left or self._at != len(self._steps)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        at = self._at
        if not self._left and at < len(self._steps):
            step = self._steps[at]
            if func == step.function and same_arguments(
                step.arguments, self._flow.arguments(func, args, kwargs), self._batches
            ):
                self._at = at + 1
                if step.overwrites:
                    written = _written(func.__name__, args, kwargs)
                    if written is not None:
                        self._keep_from(written)
                if at in self._unseen:
                    self._take_arguments(self._unseen[at], tensors_in((*args, *kwargs.values())))
                output = func(*args, **kwargs)
                if step.is_view:
                    output = _unviewed(output)
                if not same_shapes(step.shapes, self._flow.add(output, args), self._batches):
                    self._left = True
                elif at in self._taken:
                    made = output
                    if not isinstance(output, Tensor):
                        made = args[0] if output is None else output[0]
                    elif _written(func.__name__, args, kwargs) is not None:
                        made = _whole(output)
                    self._left = not self._take(*self._taken[at], func.__name__.strip("_"), args, kwargs, made)
                return output
        self._left = True
        written = _written(getattr(func, "__name__", ""), args, kwargs)
        if written is not None:
            self._keep_from(written)
        return func(*args, **kwargs)

    def _take_arguments(self, taps: Sequence[Place], tensors: Sequence[Tensor]) -> None:
        for tap in taps:
            self._left |= not self._take([tap], None, "", (), {}, tensors[tap.argument or 0])

    def _take(
        self,
        taps: Sequence[Place],
        site: Place | None,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> bool:
        """Take the taps and the constant; whether they are as planned."""
        shape = tuple(output.shape)
        if not output.requires_grad or not all(place.serves(shape, self._batch) for place in (*taps, site) if place):
            return False
        if site is not None and name == "batch_norm":
            self._batch_norms.append((len(self.shifts), BatchNorm(*args, **kwargs)))
            self._take_shift(site, output, output)
        elif site is not None:
            with torch.set_grad_enabled(self._keep_graph):
                shift = shift_of(name, args, kwargs, site.side)
            if shift is None:
                return False
            self._take_shift(site, output, shift)
        for tap in taps:
            value = output if self._keep_graph else output.detach()
            value = value if tap.fold is None else tap.fold(value)
            self._take_candidate(tap, output, value, _is_positive(name, args, kwargs))
        return True


@dataclass(frozen=True)
class _Chain:
    """A tensor that was computed entry by entry from one tensor, the root, and the candidates on its way."""

    root: str
    candidates: tuple[int, ...]
    is_nonlinear: bool
    is_gate: bool = False


_MOST_MEASUREMENTS = 3
"""Failed ones: a gradient costs as much as half a call."""


def _is_layer(kind: str | None, output: Any) -> bool:
    """Whether a call of that kind returned a tensor on the way from the inputs to the score."""
    return (
        kind is not None
        and isinstance(output, Tensor)
        and output.requires_grad
        and output.is_floating_point()
        and not output.is_leaf
    )


def _whole(written: Tensor) -> Tensor:
    """What was written to a part of a tensor is met in the whole tensor."""
    base = written._base
    return base if base is not None and written.numel() < base.numel() else written


def _unviewed(output: Tensor) -> Tensor:
    """The same memory, but no view.

    Linear and instance norm end in a view of a tensor that nobody else sees. Writing into a view would give it another
    place in the graph and cut the recorded one off.
    """
    unviewed: Tensor = torch.ops.aten._unsafe_view(output, output.shape)
    return unviewed


def _is_positive(func: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the function gives nothing below zero, whatever it is given."""
    if func == "hardtanh":  # nn.ReLU6 as well
        least = kwargs.get("min_val", args[1] if len(args) > 1 else -1)
        return isinstance(least, int | float) and least >= 0
    return func in ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")


def _written(called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that this call overwrites, if any."""
    out = kwargs.get("out")
    if isinstance(out, Tensor):
        return out
    in_place = (
        called == "__setitem__" or (called.endswith("_") and not called.endswith("__")) or kwargs.get("inplace") is True
    )
    first = args[0] if args else kwargs.get("input")
    return first if in_place and isinstance(first, Tensor) else None
