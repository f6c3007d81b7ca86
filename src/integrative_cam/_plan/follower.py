"""Positions followed through a network's functions: which of `positions` each torch function asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .contractions import terms_of
from .functions import (
    ATTENTION,
    AVERAGES,
    CONTRACTIONS,
    DROPPING,
    ELEMENTWISE,
    FACTORS,
    JOINS,
    MOVES,
    NORMS,
    PER_TOKEN,
    REDUCTIONS,
    RESHAPES,
    FunctionCall,
)
from .positions import (
    Axis,
    Field,
    Positions,
    averaged,
    collapsed,
    compact,
    field_of,
    merged,
    replayed,
    reshaped,
    seed,
    spread,
    spread_to,
    windowed,
)
from .steps import tensors_in
from .windows import groups_of, per_axis, sources_of

_MOST_COLOURS = 4
_ATTRIBUTE = "_icam_layout"


@dataclass(eq=False)
class Layout:
    """The positions of a tensor's entries, worked out when asked for; None where they are not known."""

    find: Callable[[], Positions | None]
    shape: tuple[int, ...]
    known: dict[Any, Layout] = field(default_factory=dict)
    """Layouts made from this one, by what made them."""

    @cached_property
    def positions(self) -> Positions | None:
        """The positions, if they are known."""
        with torch.no_grad():
            return self.find()


@dataclass(frozen=True)
class _Call(FunctionCall):
    """A call and the tensors among its arguments that have a layout."""

    sources: tuple[tuple[Tensor, Layout], ...]

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_in((*self.args, *self.kwargs.values()))

    def layout(self, tensor: Any) -> Layout | None:
        return next((layout for source, layout in self.sources if source is tensor), None)


class Follower:
    """Gives the outputs of torch's functions their layouts, and learns which axis of an input holds its channels.

    `is_data` says whether a tensor was computed from the network's inputs. `used_data`: some position depends on such
    values, so that another input would have other positions.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], is_data: Callable[[Tensor], bool]) -> None:
        self.used_data = False
        self._shapes = shapes
        self._is_data = is_data
        self._channels: set[Axis] = set()
        self._convolved: set[Axis] = set()  # windows slid along these
        self._in_batch: set[Axis] = set()  # a layer saw the places along these one by one, as the frames of a clip
        self._layers: set[int] = set()  # inputs that a layer with weights saw
        self._space: dict[int, tuple[int, ...]] = {}
        self._layouts: list[Layout] = []
        self._by_node: dict[Any, tuple[GradientEdge, Layout]] = {}

    def enter(self, tensor: Tensor, of: int) -> None:
        """Give an input of the network its layout."""
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            self._layouts.append(Layout(lambda: seed(shape, of), shape))
            give(tensor, self._layouts[-1])

    def follow_unseen(self, tensor: Tensor) -> None:
        """Give what an unseen function returned the layout of what went into it, if it works entry by entry."""
        node = tensor.grad_fn if layout_of(tensor) is None else None
        for source, _ in () if node is None else node.next_functions:
            entry = self._by_node.get(source)
            if entry is None or entry[1].shape != tuple(tensor.shape):
                continue
            edge, layout = entry
            for axis in range(tensor.ndim):
                if tensor.shape[axis] > 1 and not _is_local(tensor, edge, axis):
                    return
            give(tensor, layout)
            return

    def finish(self) -> None:
        """After the run, let go of all tensors: the autograd graph would keep itself alive through them."""
        for layout in self._layouts:
            layout.find = _unknown
            layout.known.clear()
        self._by_node.clear()

    @property
    def slid(self) -> frozenset[Axis]:
        """The inputs' axes along which windows slid, so that neighbours are seen together."""
        return frozenset(self._convolved)

    def space(self, of: int, is_final: bool = True) -> tuple[int, ...]:
        """The axes of an input that its map has: all but the batch's and the channels'.

        The channels' is the one that the first layer mixes whole. Where layers mixed none, it is the first axis of
        size 1, if there is one, and before any layer the second axis, as everywhere in torch. The answer stays once it
        was final.
        """
        if of not in self._space:
            shape = self._shapes[of]
            axes = range(1, len(shape))
            channels = {axis for axis in axes if (of, axis) in self._channels}
            if not channels and len(shape) > 2:
                single = (axis for axis in axes if shape[axis] == 1)
                channels = {next(single, self._second(of)) if of in self._layers else 1}
            space = tuple(axis for axis in axes if axis not in channels)
            if not is_final:
                return space
            self._space[of] = space
        return self._space[of]

    def is_seen(self, of: int) -> bool:
        """Whether a layer with weights saw an input."""
        return of in self._layers

    def _second(self, of: int) -> int:
        """The second axis as the channels', unless windows slid along it or layers left its many places apart."""
        is_frames = of in self._layers and self._shapes[of][1] > _MOST_COLOURS
        return 0 if (of, 1) in self._convolved | self._in_batch or is_frames else 1

    def is_over_channels(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a maximum is one over channels: positions do not change along its axes, but there are several."""
        source = args[0] if args else kwargs.get("input")
        layout = layout_of(source) if isinstance(source, Tensor) else None
        if not isinstance(source, Tensor) or layout is None or source.ndim < 3 or layout.positions is None:
            return False
        if "pool" in name:
            kernel = per_axis(kwargs.get("kernel_size", args[1] if len(args) > 1 else 1), int(name[-2]), 1)
            axes = tuple(axis for axis, size in enumerate(kernel, source.ndim - len(kernel)) if size > 1)
        else:
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            dims = (dims,) if isinstance(dims, int) else dims
            if not isinstance(dims, tuple | list):
                return False
            axes = tuple(dim % source.ndim for dim in dims)
        field = layout.positions.own
        space = {(of, axis) for of in range(len(self._shapes)) for axis in self.space(of, is_final=False)}
        still = all(values.shape[axis] == 1 for key, values in field.at.items() if key in space for axis in axes)
        return still and any(spread(values) > 0 for key, values in field.at.items() if key in space)

    def follow(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Give what `func`, called `name`, returned its layout, where its arguments have any."""
        sources = tuple(
            (tensor, layout)
            for tensor in tensors_in((*args, *kwargs.values()))
            if tensor.numel() and (layout := self._layout(tensor)) is not None
        )
        if not sources:
            return
        call = _Call(func, name, args, kwargs, sources)
        if name == "setitem":
            value, index = call.layout(args[2]), _on_cpu(args[1])
            if value is not None:  # constants written into a feature map leave it where it lies
                self.used_data |= any(map(self._is_data, tensors_in((index,))))
                self._write(args[0], value, lambda old, new: old.__setitem__(index, new))
            return
        others = tuple((tensor, layout) for tensor, layout in sources if tensor is not out)
        if name == "copy" and args[0] is out:
            call = replace(call, sources=others)
            if not others:
                return
        outputs = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple | list) else []
        for at, tensor in enumerate(outputs):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                shape = tuple(tensor.shape)
                is_empty = not tensor.numel()
                layout = (
                    Layout(_unknown, shape) if is_empty else self._made(call, shape, at if tensor is not out else None)
                )
                self._layouts.append(layout)
                give(tensor, layout)
                if tensor.grad_fn is not None:
                    self._by_node[tensor.grad_fn] = torch.autograd.graph.get_gradient_edge(tensor), layout
        if others and args and args[0] is out and out._base is not None and (layout := layout_of(out)) is not None:
            self._write(out, layout, Tensor.copy_)

    def _layout(self, tensor: Tensor) -> Layout | None:
        """A tensor's layout; of what an unseen function computed from the inputs, one without positions."""
        layout = layout_of(tensor)
        if layout is None and tensor.requires_grad and self._is_data(tensor):
            return Layout(_unknown, tuple(tensor.shape))
        return layout

    def _made(self, call: _Call, shape: tuple[int, ...], at: int | None) -> Layout:
        name, (source, first) = call.name, call.sources[0]
        if name in JOINS and (layout := self._joined(call, shape)) is not None:
            return layout
        if name in MOVES:
            return self._moved(call, shape, at)
        if name in CONTRACTIONS:
            return self._contracted(call, shape)
        if name in ELEMENTWISE or (name == "glu" and len(call.sources) == 1):
            return self._elementwise(call, shape)
        if name in REDUCTIONS:
            return self._reduced(call, shape)
        is_first = call.argument(0, "query" if name in ATTENTION else "input") is source
        if name in ATTENTION and not is_first:  # a query that is the same for all images looks everywhere
            keys = 0 if name == "multi_head_attention_forward" else -2
            return self._derived(first, (name, shape), shape, lambda: self._mixed(first, (keys, -1), shape))
        if not is_first:
            return Layout(_unknown, shape)
        if name in RESHAPES:
            return self._derived(
                first, shape, shape, lambda: None if first.positions is None else reshaped(first.positions, shape)
            )
        if name in ATTENTION or (name in PER_TOKEN and not at):
            return self._derived(first, (name, shape), shape, lambda: self._mixed(first, (-1,), shape))
        if (sources := sources_of(call, first.shape, shape)) is not None:
            groups = groups_of(call)
            key = (name, shape, groups, repr(sources))
            return self._derived(first, key, shape, lambda: self._windowed(first, sources, shape, groups))
        return self._averaged(call, shape) if name in AVERAGES else Layout(_unknown, shape)

    def _derived(
        self, parent: Layout, key: Any, shape: tuple[int, ...], find: Callable[[], Positions | None]
    ) -> Layout:
        if key not in parent.known:
            parent.known[key] = Layout(find, shape)
        return parent.known[key]

    def _mixed(self, layout: Layout, axes: tuple[int, ...], shape: tuple[int, ...]) -> Positions | None:
        """After a mixture along some axes, the last of channels, for a tensor of that shape."""
        positions, whole = layout.positions, frozenset[Axis]()
        for axis in axes:
            mixed = None if positions is None else collapsed(positions, axis)
            positions, whole = (None, whole) if mixed is None else mixed
        self._mixes_channels(whole)
        return None if positions is None else spread_to(positions.field, shape)

    def _mixes_channels(self, axes: frozenset[Axis]) -> None:
        self._channels |= {axis for axis in axes if axis[0] not in self._space}

    def _windowed(
        self, layout: Layout, sources: Sequence[Tensor | None], shape: tuple[int, ...], groups: int
    ) -> Positions | None:
        if layout.positions is None:
            return None
        own = layout.positions.own
        new, whole = windowed(layout.positions, sources, shape, groups)
        if groups:
            self._layers |= {of for of, _ in own.at}
        first = len(shape) - len(sources)
        for key, values in own.at.items():
            if any(size > 1 for size in values.shape[first:]):
                self._convolved.add(key)
            if any(size > 1 for size in compact(values, values.isfinite()).shape[: first - 1]):
                self._in_batch.add(key)
        self._mixes_channels(whole)
        return new

    def _elementwise(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        layouts = list(dict.fromkeys(layout for _, layout in call.sources))
        if call.name == "glu":
            return self._halved(call, layouts[0], shape)
        if call.name in NORMS:
            return layouts[0]
        # What has no gradient, such as a mask, shows nothing of its own.
        layouts = list(dict.fromkeys(of for tensor, of in call.sources if tensor.requires_grad)) or layouts
        whole = [layout for layout in layouts if layout.shape == shape]
        if whole and call.name in FACTORS:
            layouts = whole  # a factor that is broadcast, such as a gate, leaves the other's positions
        if len(layouts) == 1 and whole:
            return layouts[0]

        def find() -> Positions | None:
            known = [layout.positions for layout in layouts if layout.positions is not None]
            if not known:
                return None
            start = spread_to(known[0].own, shape)
            joint = reduce(lambda a, b: None if a is None else merged(a, b, shape), known[1:], start)
            unknown = [layout.shape for layout in layouts if layout.positions is None]
            return joint if joint is not None and all(_is_same_everywhere(of, joint) for of in unknown) else None

        return self._derived(layouts[0], ("together", shape, *map(id, layouts[1:])), shape, find)

    def _halved(self, call: _Call, layout: Layout, shape: tuple[int, ...]) -> Layout:
        dim = call.argument(1, "dim", -1) % len(shape)

        def find() -> Positions | None:
            if layout.positions is None:
                return None
            return replayed(lambda index: index(0).narrow(dim, 0, shape[dim]), [layout.positions], None, False)

        return self._derived(layout, ("glu", dim), shape, find)

    def _reduced(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        source, first = call.sources[0]
        if call.name in ("max", "min") and len(call.tensors) > 1:
            return self._elementwise(call, shape)
        if len(call.sources) > 1:
            return Layout(_unknown, shape)
        dims = call.argument(2 if call.name in ("norm", "vector_norm", "linalg_vector_norm", "quantile") else 1, "dim")
        dims = dims if call.name != "topk" else call.argument(2, "dim", -1)
        dims = call.kwargs.get("axis", dims)
        ndim = source.ndim
        if isinstance(dims, int) and not isinstance(dims, bool):
            axes: tuple[int, ...] = (dims % ndim,)
        elif isinstance(dims, tuple | list) and dims:
            axes = tuple(dim % ndim for dim in dims)
        else:
            axes = tuple(range(ndim))

        def find() -> Positions | None:
            positions = first.positions
            for axis in axes:
                mixed = None if positions is None else collapsed(positions, axis)
                if mixed is None:
                    return None
                positions = mixed[0]
            if positions is None or positions.shape == shape:
                return positions
            if len(shape) == len(positions.shape):  # topk
                return spread_to(positions.own, shape)
            return reshaped(positions, shape)

        return self._derived(first, (call.name, axes, shape), shape, find)

    def _contracted(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        terms = terms_of(call)
        if terms is None:
            return Layout(_unknown, shape)
        operands, result = terms
        layouts = [call.layout(tensor) for tensor, _ in operands]
        key = (call.name, shape, tuple(letters for _, letters in operands), result, *map(id, layouts))
        fixed = [(tensor.detach(), letters) for (tensor, letters), of in zip(operands, layouts, strict=True) if not of]
        varying = [(layout, letters) for layout, (_, letters) in zip(layouts, operands, strict=True) if layout]
        if not varying:
            return Layout(_unknown, shape)

        def find() -> Positions | None:
            options = [self._contract(layout, letters, result, fixed, shape) for layout, letters in varying]
            varied = [positions for positions in options if positions is not None and positions.varies()]
            # Where one operand's place is not known, it may be what tells the result's positions apart.
            if not varied:
                return None if None in options else options[0]
            # In windows, one operand may tell windows apart only, and the other one their positions too.
            return max(varied, key=lambda positions: sum(size > 1 for size in positions.own.shape))

        return self._derived(varying[0][0], key, shape, find)

    def _contract(
        self,
        layout: Layout,
        letters: str,
        result: str,
        fixed: Sequence[tuple[Tensor, str]],
        shape: tuple[int, ...],
    ) -> Positions | None:
        """Where the result lies by one operand: it keeps that one's rows, and mixes what is summed over."""
        positions = layout.positions
        if positions is None or len(letters) != len(positions.shape):
            return None
        self._layers |= {of for of, _ in positions.own.at}
        for axis, letter in enumerate(letters):
            if letter in result:
                continue
            moved = self._permuted(positions, axis, letter, letters, result, fixed)
            if moved is not None:
                positions, letters = moved
                continue
            mixed = collapsed(positions, axis)
            if mixed is None:
                return None
            positions = mixed[0]
            self._mixes_channels(mixed[1])
        field = positions.own
        order = [letters.index(letter) for letter in result if letter in letters]
        rest = [axis for axis in range(len(letters)) if axis not in order]

        def arrange(values: Tensor) -> Tensor:
            values = values.permute(*rest, *order)[(0,) * len(rest)]
            for at, letter in enumerate(result):
                if letter not in letters:
                    values = values.unsqueeze(at)
            return values

        if any(field.shape[axis] > 1 for axis in rest):
            return None
        at = {axis: arrange(values) for axis, values in field.at.items()}
        return spread_to(field_of(arrange(field.sample), at, field.seen), shape)

    def _permuted(
        self,
        positions: Positions,
        axis: int,
        letter: str,
        letters: str,
        result: str,
        fixed: Sequence[tuple[Tensor, str]],
    ) -> tuple[Positions, str] | None:
        """A square matrix that takes each place mostly from one other, as a permutation or the neighbours of a graph.

        Places that vary along `letter` lie along the matrix's other letter then.
        """
        size = positions.shape[axis]
        field = positions.own
        if not any(spread(values) > 0 and values.shape[axis] > 1 for values in field.at.values()):
            return None
        for matrix, names in fixed:
            new = [name for name in names if name in result and name not in letters]
            if letter not in names or len(new) != 1 or matrix.shape[names.index(new[0])] != size:
                continue
            kept = (names.index(letter), names.index(new[0]))
            magnitude = matrix.abs().double().cpu()
            for other in reversed(range(matrix.ndim)):
                if other not in kept:
                    magnitude = magnitude.sum(other)
            magnitude = magnitude if kept[0] < kept[1] else magnitude.T
            peak, source = magnitude.max(0)
            if not bool((peak >= 2 * magnitude.mean(0)).all()):
                return None
            self.used_data |= not torch.equal(source, torch.arange(size))
            moved = replayed(partial(_selected, axis, source), [positions], None, False)
            if moved is None:
                return None
            return moved, letters[:axis] + new[0] + letters[axis + 1 :]
        return None

    def _averaged(self, call: _Call, shape: tuple[int, ...]) -> Layout:
        first = call.sources[0][1]
        rest = [_on_cpu(value) for value in call.args[1:]]
        named = {
            name: _on_cpu(value) for name, value in call.kwargs.items() if name not in ("input", "mode", "padding_mode")
        }
        if call.name == "grid_sample":
            rest = rest[:1]
            named.setdefault("align_corners", call.argument(4, "align_corners", False) or False)

        def find() -> Positions | None:
            self.used_data = True
            positions = first.positions
            if positions is None:
                return None
            if call.name not in ("fold", "col2im"):
                positions = self._mixed(first, (1,), positions.shape)
            if positions is None:
                return None
            mean = averaged(positions, lambda values: call.func(values, *rest, **named))
            return None if mean is None else spread_to(mean.own, shape)

        return Layout(find, shape)

    def _joined(self, call: _Call, shape: tuple[int, ...]) -> Layout | None:
        """Feature maps joined along their channels lie where each of them does."""
        tensors = call.argument(0, "tensors")
        layouts = [call.layout(tensor) for tensor in tensors]
        dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
        if not isinstance(dim, int) or any(tensor.ndim != len(shape) for tensor in tensors):
            return None
        dim %= len(shape)
        known = [layout for layout in layouts if layout is not None]
        if dim == 0 or any(
            layout is None and tensor.shape[dim] == 1 for layout, tensor in zip(layouts, tensors, strict=True)
        ):
            return None

        def find() -> Positions | None:
            certain = [self._without_channels(layout.positions, dim) for layout in known if layout.positions]
            if len(certain) < len(known):
                return None
            if any(field.shape[dim] > 1 for field in certain):
                return self._moved(call, shape, None).positions
            pieces = [spread_to(field, shape) for field in certain]
            joint = pieces[0]
            for piece in pieces[1:]:
                joint = None if joint is None or piece is None else merged(joint, piece, shape, exact=True)
            if joint is None or any(values.isnan().any() for values in joint.own.at.values()):
                return self._moved(call, shape, None).positions
            return joint

        key = ("cat", dim, shape, *map(id, layouts[1:]))
        return self._derived(known[0], key, shape, find)

    def _without_channels(self, positions: Positions, dim: int) -> Field:
        """The field, without the coordinates along an input's channels where nothing else changes along an axis."""
        field = positions.own
        changing = {key for key, values in field.at.items() if values.shape[dim] > 1}
        if not changing or any(axis in self.space(of, is_final=False) for of, axis in changing):
            return field
        if dim != 1 and not all(self.is_seen(of) for of, _ in changing):
            return field  # before the first layer, the channels are a guess
        mixed = collapsed(positions, dim)
        if mixed is None:
            return field
        self._mixes_channels(mixed[1])
        return mixed[0].field

    def _write(self, target: Tensor, value: Layout, put: Callable[[Tensor, Tensor], Any]) -> None:
        """Entries with a layout were written to a tensor: give it and what it is a view of their new layouts."""
        whole = target if target._base is None else target._base
        shape, before = tuple(whole.shape), layout_of(whole)
        window = target.size(), target.stride(), target.storage_offset() - whole.storage_offset()
        known = [layout.positions for layout in (before, value) if layout is not None]
        sources = [positions for positions in known if positions is not None]

        def write(numbers: Callable[[int], Tensor]) -> Tensor:
            old = torch.zeros(shape, dtype=torch.float64)
            if before is not None:
                old.copy_(numbers(0))
            put(old if target is whole else old.as_strided(*window), numbers(len(sources) - 1))
            return old

        made: Positions | None = None
        with torch.no_grad():
            if len(sources) == len(known) and (target is whole or whole.is_contiguous()):
                made = replayed(write, sources, None, False)
        give(whole, Layout(lambda: made, shape))
        if target is not whole:
            give(target, value if value.shape == tuple(target.shape) else Layout(_unknown, tuple(target.shape)))

    def _moved(self, call: _Call, shape: tuple[int, ...], at: int | None) -> Layout:
        layouts = {id(tensor): layout for tensor, layout in call.sources}
        order = list(dict.fromkeys(layout for _, layout in call.sources))
        number = {id(layout): place for place, layout in enumerate(order)}
        name = call.name

        def stand_in(value: Any) -> Any:
            """A call's argument without the tensors, which would live on with the layout."""
            if isinstance(value, Tensor):
                if id(value) in layouts:
                    return layouts[id(value)]
                return _Blank(tuple(value.shape)) if value.is_floating_point() else value.detach().cpu()
            return type(value)(map(stand_in, value)) if type(value) in (list, tuple) else value

        args, kwargs = stand_in(call.args), {key: stand_in(value) for key, value in call.kwargs.items()}
        if name == "pad":
            args, kwargs = args[:2], {key: value for key, value in kwargs.items() if key == "pad"}
        by_data = any(not t.is_floating_point() and self._is_data(t) for t in call.tensors)

        def find() -> Positions | None:
            self.used_data |= by_data
            sources = [layout.positions for layout in order]
            known = [positions for positions in sources if positions is not None]
            if len(known) < len(sources):
                return None

            def run(numbers: Callable[[int], Tensor]) -> Any:
                def put(value: Any) -> Any:
                    if isinstance(value, Layout):
                        return numbers(number[id(value)])
                    if isinstance(value, _Blank):
                        return torch.zeros(value.shape, dtype=torch.float64)
                    return type(value)(map(put, value)) if type(value) in (list, tuple) else value

                return call_function(*map(put, args), **{key: put(value) for key, value in kwargs.items()})

            return replayed(run, known, at, name in DROPPING)

        call_function = call.func
        tensors = any(id(value) not in layouts for value in call.tensors)
        key: tuple[Any, ...] = (name, at, shape, repr(_plain(call.args)), repr(_plain(tuple(call.kwargs.values()))))
        if tensors or len(order) > 1:
            key = (*key, object())
        return self._derived(order[0], key, shape, find)


@dataclass(frozen=True)
class _Blank:
    """Stands for a tensor whose entries lie nowhere."""

    shape: tuple[int, ...]


def _is_local(tensor: Tensor, source: GradientEdge, axis: int) -> bool:
    """Whether a slice of a tensor depends on the same slice of its source alone."""
    place = tensor.shape[axis] // 8
    with torch.enable_grad():
        part = tensor.select(axis, place)
        (gradient,) = torch.autograd.grad(part.square().sum() + part.sum(), [source], retain_graph=True)
    lines = gradient.detach().abs().movedim(axis, 0).flatten(1).sum(1)
    return bool(lines[place] > 0) and bool(lines.sum() == lines[place])


def _is_same_everywhere(shape: tuple[int, ...], positions: Positions) -> bool:
    """Whether a tensor of this shape, broadcast to one at these positions, adds the same at all of them."""
    field = positions.own
    sizes = (1,) * (len(field.shape) - len(shape)) + shape
    return not any(values.shape[axis] > 1 < size for values in field.at.values() for axis, size in enumerate(sizes))


def _unknown() -> Positions | None:
    return None


def layout_of(tensor: Tensor) -> Layout | None:
    """The layout that a tensor was given."""
    return getattr(tensor, _ATTRIBUTE, None)


def give(tensor: Tensor, layout: Layout) -> None:
    """Give a tensor a layout."""
    setattr(tensor, _ATTRIBUTE, layout)


def _selected(axis: int, source: Tensor, index: Callable[[int], Tensor]) -> Tensor:
    return index(0).index_select(axis, source)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def _plain(value: Any) -> Any:
    """`value` without tensors, to compare calls by."""
    if isinstance(value, Tensor):
        return "tensor"
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
