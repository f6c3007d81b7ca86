"""What a network is, found once: where its taps and bias sites are, and what depends on what.

A `Plan` belongs to a network, the form of its inputs and a choice of taps, and serves any number of images. It holds no
tensor of the network and no module.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from . import graph
from .capture import Candidate, Place, Shift
from .placement import Placement
from .steps import Step
from .taps import Taps, select_for

if TYPE_CHECKING:
    from jaxtyping import Bool

FORMS = 32
"""Plans kept per network; of more forms of inputs, the one used longest ago is planned again."""


@dataclass(frozen=True)
class InputRoute:
    """One input's part in a route.

    Attributes:
        path_shares: per tap, of all paths from this input to the score, the share that passes there.
        fused: the taps that its map is made of.
        sites: the bias sites that act on something computed from it.
        axes: of the input, which its map has; none where it has no map.
        placements: of each of `fused`, its place on the input; None for a grid that covers it evenly.
        site_placements: of each of `sites`, likewise.
    """

    path_shares: tuple[Fraction, ...]
    fused: tuple[int, ...]
    sites: tuple[int, ...]
    axes: tuple[int, ...]
    placements: tuple[Placement | None, ...]
    site_placements: tuple[Placement | None, ...]


@dataclass(frozen=True)
class Route:
    """How a score depends on the taps, bias sites and inputs.

    Attributes:
        taps: in execution order, as indices of `Plan.taps`.
        sites: likewise, of `Plan.sites`.
        path_shares: per tap, of all paths from all inputs to the score, the share that passes there.
        behind: behind[t][s], whether bias site s acts on a value computed from tap t.
        inputs: per input.
    """

    taps: tuple[int, ...]
    sites: tuple[int, ...]
    path_shares: tuple[Fraction, ...]
    behind: tuple[tuple[bool, ...], ...]
    inputs: tuple[InputRoute, ...]

    @cached_property
    def behind_tensor(self) -> Bool[Tensor, "tap site"]:
        """`behind` as a tensor on the CPU, where reading it makes no device wait."""
        return torch.tensor(self.behind, dtype=torch.bool).reshape(len(self.taps), len(self.sites))


Outputs = tuple[tuple[int, int], ...]
"""Which of the network's output tensors a score is computed from: (place, paths to it), paths without common factor."""


@dataclass(frozen=True)
class Plan:
    """Found once; see the module.

    Attributes:
        batch: the samples it was made with.
        modules: the modules' identities, so that a module put in another's place is noticed.
        steps: every torch function that a call makes.
        taps, sites: the places where feature maps and constants are taken.
        routes: how a score depends on them, by the output tensors it is computed from.
        draws: the network draws random numbers.
        hidden: a sentence on parts that cannot be looked into; empty where there are none.
        training: a sentence on what runs as in training; likewise.
    """

    batch: int
    modules: tuple[int, ...]
    steps: tuple[Step, ...]
    taps: tuple[Place, ...]
    sites: tuple[Place, ...]
    routes: Mapping[Outputs, Route]
    draws: bool
    hidden: str
    training: str

    def joined(self, earlier: Plan | None) -> Plan:
        """With the routes of an earlier plan of the same modules and steps, where another output was explained."""
        if earlier is None or any(getattr(earlier, of) != getattr(self, of) for of in ("batch", "modules", "steps")):
            return self
        taps = {(place.step, place.name): place for place in (*earlier.taps, *self.taps)}
        sites = {place.step: place for place in (*earlier.sites, *self.sites)}
        union = replace(
            self,
            taps=tuple(taps[key] for key in sorted(taps)),
            sites=tuple(sites[step] for step in sorted(sites)),
            routes={},
        )
        routes = {**_moved(earlier, union), **_moved(self, union)}
        return replace(union, routes=routes)


def _moved(plan: Plan, into: Plan) -> dict[Outputs, Route]:
    """A plan's routes, with the indices of another one that holds all of its places."""
    taps = {(place.step, place.name): index for index, place in enumerate(into.taps)}
    sites = {place.step: index for index, place in enumerate(into.sites)}
    return {
        outputs: replace(
            route,
            taps=tuple(taps[plan.taps[index].step, plan.taps[index].name] for index in route.taps),
            sites=tuple(sites[plan.sites[index].step] for index in route.sites),
        )
        for outputs, route in plan.routes.items()
    }


class Plans:
    """The plans of one network by the form of its inputs, the latest `FORMS` of them; threads may share it."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, form: Hashable) -> Plan | None:
        """The plan of that form, if there is one."""
        with self._lock:
            if form in self._plans:
                self._plans.move_to_end(form)
            return self._plans.get(form)

    def put(self, form: Hashable, plan: Plan | None) -> None:
        """Keep a plan, or forget that of the form."""
        with self._lock:
            self._plans.pop(form, None)
            if plan is not None:
                self._plans[form] = plan
                if len(self._plans) > FORMS:
                    self._plans.popitem(last=False)

    def __len__(self) -> int:
        return len(self._plans)

    def __reduce__(self) -> tuple[type[Plans], tuple[()]]:
        # A copy, also in another process, plans for itself.
        return Plans, ()


_of_models: WeakKeyDictionary[nn.Module, Plans] = WeakKeyDictionary()


def plans_of(model: Any) -> Plans:
    """The plans that all calls on a module share; they end with it."""
    try:
        return _of_models.setdefault(model, Plans())
    except TypeError:  # no module, or one that cannot be a key
        return Plans()


@dataclass(frozen=True)
class Study:
    """What the autograd graph says of one score: what was chosen among all candidates and shifts, and the route.

    `settled`: other images will have the same route; see `without_gradient`. `unplaced`: the names of the layers
    without a known place through which an input reaches the score.
    """

    candidates: tuple[int, ...]
    shifts: tuple[int, ...]
    route: Route
    settled: bool
    unplaced: tuple[str, ...]


def study(
    total: Tensor,
    leaves: Sequence[Tensor],
    candidates: Sequence[Candidate],
    shifts: Sequence[Shift],
    taps: Taps,
    seen: Sequence[str],
    unplaced: Sequence[tuple[str, GradientEdge]],
) -> Study | None:
    """Choose taps and bias sites for a score and find its route; None where the score depends on no leaf.

    Raises:
        TapError: no candidate fits `taps`.
    """
    if total.grad_fn is None:
        return None
    order = graph.towards_input(total.grad_fn)
    to_inputs = [graph.paths_to(order, torch.autograd.graph.get_gradient_edge(leaf).node) for leaf in leaves]
    if not any(to_input[order[-1]] for to_input in to_inputs):
        return None
    blind, settled = without_gradient(total, candidates, taps)
    places = [candidate.place.on for candidate in candidates]
    reached = [
        [
            at in on and index not in blind and bool(to_input.get(candidate.edge.node))
            for at, to_input in enumerate(to_inputs)
        ]
        for index, (candidate, on) in enumerate(zip(candidates, places, strict=True))
    ]
    fused = select_for(candidates, reached, taps, seen)
    chosen = sorted(set().union(*fused))
    acting = [
        index for index, shift in enumerate(shifts) if any(to_input.get(shift.edge.node) for to_input in to_inputs)
    ]
    nodes: list[Node] = [candidates[index].edge.node for index in chosen]
    sites_on = [shifts[index].place.on for index in acting]
    site_nodes: list[Node] = [shifts[index].edge.node for index in acting]
    from_score = graph.paths_from(order)
    # A part of a tensor is passed by its part of the paths, and by those of the inputs that it lies on alone.
    parts = [
        [
            places[index][at].share if at in places[index] else Fraction(int(not _is_part(candidates[index])))
            for at in range(len(leaves))
        ]
        for index in chosen
    ]
    counts = [
        [from_score.get(node, 0) * to_input.get(node, 0) * part[at] for node, part in zip(nodes, parts, strict=True)]
        for at, to_input in enumerate(to_inputs)
    ]
    totals = [to_input[order[-1]] for to_input in to_inputs]
    place = {index: at for at, index in enumerate(chosen)}
    route = Route(
        taps=tuple(range(len(chosen))),
        sites=tuple(range(len(acting))),
        path_shares=tuple(sum(of_tap, Fraction(0)) / (sum(totals) or 1) for of_tap in zip(*counts, strict=True)),
        behind=graph.behind(order, nodes, site_nodes),
        inputs=tuple(
            InputRoute(
                path_shares=tuple(Fraction(count) / (total or 1) for count in share),
                fused=tuple(place[index] for index in own),
                sites=tuple(at for at, node in enumerate(site_nodes) if to_input.get(node)),
                axes=places[own[0]][at].axes if own else (),
                placements=tuple(places[index][at].placement for index in own),
                site_placements=tuple(
                    on[at].placement if at in on else None
                    for on, node in zip(sites_on, site_nodes, strict=True)
                    if to_input.get(node)
                ),
            )
            for at, (share, total, own, to_input) in enumerate(zip(counts, totals, fused, to_inputs, strict=True))
        ),
    )
    left_out = tuple(name for name, edge in unplaced if any(to_input.get(edge.node) for to_input in to_inputs))
    return Study(tuple(chosen), tuple(acting), route, settled, left_out)


def without_gradient(total: Tensor, candidates: Sequence[Candidate], taps: Taps) -> tuple[set[int], bool]:
    """The activations that "last" and "stages" pass over, since no position of them has a gradient.

    Behind the last block of a vision transformer only the class token is read: no patch of it matters to the score.
    Whether that is settled: not, where no activation has a gradient, as of a saturated score; none is passed over then.
    """
    patterns = {taps} if isinstance(taps, str) else set() if callable(taps) else set(taps)
    passed: dict[tuple[int, ...], list[int]] = {}
    ended: set[tuple[int, ...]] = set()
    if not patterns & {"last", "stages"}:
        return set(), True
    for index in reversed(range(len(candidates))):
        candidate = candidates[index]
        space = candidate.shape[1:]
        if candidate.kind != "activation" or space in ended:
            continue
        (gradient,) = torch.autograd.grad(total, [candidate.edge], retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        fold = candidate.place.fold
        if (gradient if fold is None else fold(gradient)).any():
            ended.add(space)
            if "stages" not in patterns:
                break
        else:
            passed.setdefault(space, []).append(index)
    if "stages" in patterns:
        passed = {space: indices for space, indices in passed.items() if space in ended}
    return set().union(*passed.values()) if ended else set(), bool(ended)


def _is_part(candidate: Candidate) -> bool:
    return candidate.place.fold is not None and candidate.place.fold.is_part


def without(route: Route, taps: Sequence[int], sites: Sequence[int]) -> Route:
    """The route of those taps and bias sites alone that a gradient reached, as indices of the route's own."""
    tap_at, site_at = {tap: at for at, tap in enumerate(taps)}, {site: at for at, site in enumerate(sites)}
    return Route(
        taps=tuple(route.taps[tap] for tap in taps),
        sites=tuple(route.sites[site] for site in sites),
        path_shares=tuple(route.path_shares[tap] for tap in taps),
        behind=tuple(tuple(route.behind[tap][site] for site in sites) for tap in taps),
        inputs=tuple(
            InputRoute(
                path_shares=tuple(entry.path_shares[tap] for tap in taps),
                fused=(fused := tuple(tap_at[tap] for tap in entry.fused if tap in tap_at)),
                sites=tuple(site_at[site] for site in entry.sites if site in site_at),
                axes=entry.axes if fused else (),
                placements=tuple(at for tap, at in zip(entry.fused, entry.placements, strict=True) if tap in tap_at),
                site_placements=tuple(
                    at for site, at in zip(entry.sites, entry.site_placements, strict=True) if site in site_at
                ),
            )
            for entry in route.inputs
        ),
    )
