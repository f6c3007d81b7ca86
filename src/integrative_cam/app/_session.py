"""Sessions, each a visitor's photograph under the networks on offer, and the bounded cache of what they computed."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._call import trace
from .._maps.reduction import Reduced
from .._maps.traced import Trace
from ..cam import assemble, reduce
from ..errors import InputError, ModelError
from ..explanation import Explanation, tensors_in, with_views
from ..models import Network
from ..query import Ranking, rank_outputs
from ..recipe import Recipe
from ..targets import class_scores
from ._choice import Choice, offered
from ._photograph import Photograph

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

IDLE = 30 * 60
"""Seconds without use after which a photograph is forgotten."""
PHOTOGRAPH_BYTES = 2**29
COMPUTED_BYTES = 3 * 2**29
"""Bytes for all visitors together: a forgotten result is computed again, a forgotten photograph is asked for."""

T = TypeVar("T")
Value = TypeVar("Value")


@dataclass
class LruCache(Generic[Value]):
    """Values of sessions, at most `limit` bytes: the least recently used, and those unused for `idle` seconds, go.

    Safe to use from many threads.
    """

    limit: int
    idle: float
    clock: Callable[[], float] = time.monotonic
    # By session key and name: the value, its size in bytes, and when it was used last; in order of use.
    _kept: OrderedDict[tuple[str, Hashable], tuple[Value, int, float]] = field(default_factory=OrderedDict, init=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    def get(self, key: str, name: Hashable = None) -> Value | None:
        """The session's value of that name; None if there is none or it was forgotten."""
        with self._lock:
            self._forget_idle()
            if (key, name) not in self._kept:
                return None
            value, size, _ = self._kept.pop((key, name))
            self._kept[key, name] = value, size, self.clock()
            return value

    def put(self, key: str, value: Value, size: int, name: Hashable = None) -> None:
        """Keep a value of `size` bytes; older ones go until all fit. One that does not fit alone is not kept."""
        with self._lock:
            self._forget_idle()
            self._kept.pop((key, name), None)
            if size > self.limit:
                return
            self._kept[key, name] = value, size, self.clock()
            while self._bytes() > self.limit:
                self._kept.popitem(last=False)

    def forget(self, key: str) -> None:
        """Forget everything of a session."""
        with self._lock:
            for place in [place for place in self._kept if place[0] == key]:
                del self._kept[place]

    def sweep(self) -> None:
        """Forget what was idle for too long."""
        with self._lock:
            self._forget_idle()

    @property
    def bytes(self) -> int:
        """The size of all values that are kept now."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(size for _, size, _ in self._kept.values())

    def _forget_idle(self) -> None:
        oldest = self.clock() - self.idle
        while self._kept and next(iter(self._kept.values()))[2] < oldest:
            self._kept.popitem(last=False)


def bytes_of(value: object) -> int:
    """Memory of all tensors in a dataclass; storage that several share counts once."""
    storages = [tensor.untyped_storage() for _, tensor in tensors_in(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(frozen=True)
class Offered:
    """A network that the operator put on the page, and the arguments of `load` that name it, without folders."""

    network: Network
    files: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """The network's input, and the region of the photograph as shown that it covers, (left, top, right, bottom)."""

    tensor: Float[Tensor, "1 channel height width"]
    region: tuple[float, float, float, float]


Offer = Mapping[str, Offered]
"""By name, the default first."""


def on_offer(offer: Offer, name: str) -> Network:
    """A network on offer."""
    if name not in offer:
        raise ModelError(f"This page offers {', '.join(offer)}, but not {name!r}.")
    return offer[name].network


@dataclass(frozen=True)
class Session:
    """One photograph of a visitor. `computed` may forget anything: it is then computed again."""

    key: str
    photograph: Photograph
    offer: Offer
    computed: LruCache[Any]

    def network(self, name: str) -> Network:
        """A network on offer; see `on_offer`."""
        return on_offer(self.offer, name)

    def seen(self, name: str) -> Seen:
        """What the network sees of the photograph."""

        def compute() -> Seen:
            view = self.network(name).preprocessing(self.photograph.full())
            return Seen(view.tensor, view.seen.scaled_to(self.photograph.shown.size).box)

        return self._once(("seen", name), compute)

    def ranking(self, name: str) -> Ranking:
        """The network's classes for the photograph, with probabilities or values as its task means them."""

        def compute() -> Tensor:
            # The first map that a visitor sees is that of the top class.
            recipe = Recipe()
            run = self._run(name, None, recipe)
            assert run.index is not None
            self._trace(name, int(run.index[0]), recipe, lambda: run)
            return class_scores(run.output, "target")[0]

        return rank_outputs(self._once(("output", name), compute), self.network(name).task)

    def explanation(self, choice: Choice) -> Explanation:
        """The explanation of a choice."""

        def compute() -> Explanation:
            images = self.seen(choice.network).tensor
            if choice.recipe is not None:
                reduced = self._reduced(choice.network, choice.target, choice.recipe)
                return with_views(assemble(reduced, choice.recipe), images)
            return offered(choice.method)(self.network(choice.network).model, images, choice.target)

        return self._once(("map", choice), compute)

    def _reduced(self, name: str, target: int, recipe: Recipe) -> Reduced:
        """The layers' maps, which do not depend on how they are weighted, joined by biases and fused."""
        used = ("taps", "score", "readout", "regions", "centred", "negative_share", "aggregation")
        return self._once(
            ("reduced", name, target, *(getattr(recipe, each) for each in used)),
            lambda: reduce(self._trace(name, target, recipe), replace(recipe, bias="layers")),
        )

    def _trace(self, name: str, target: int, recipe: Recipe, compute: Callable[[], Trace] | None = None) -> Trace:
        """The network's run for a class, which serves every recipe of the same taps and score."""
        compute = compute or (lambda: self._run(name, target, recipe))
        return self._once(("trace", name, target, recipe.taps, recipe.score), compute)

    def _run(self, name: str, target: int | None, recipe: Recipe) -> Trace:
        network = self.network(name)
        contrast = recipe.for_task(network.task).score == "contrast"
        return trace(network.model, self.seen(name).tensor, target, recipe.taps, contrast=contrast)

    def _once(self, name: Hashable, compute: Callable[[], T]) -> T:
        value: T | None = self.computed.get(self.key, name)
        if value is None:
            value = compute()
            self.computed.put(self.key, value, bytes_of(value), name)
        return value


@dataclass(frozen=True)
class SessionStore:
    """All sessions of one server."""

    offer: Offer
    photographs: LruCache[Photograph] = field(default_factory=lambda: LruCache(PHOTOGRAPH_BYTES, IDLE))
    computed: LruCache[Any] = field(default_factory=lambda: LruCache(COMPUTED_BYTES, IDLE))

    def open(self, photograph: Photograph) -> Session:
        """A new session; its key cannot be guessed."""
        key = secrets.token_urlsafe(24)
        self.photographs.put(key, photograph, photograph.bytes)
        return Session(key, photograph, self.offer, self.computed)

    def get(self, key: str | None) -> Session:
        """The session of that key."""
        if key is None:
            raise InputError("Choose a photograph first.")
        photograph = self.photographs.get(key)
        if photograph is None:
            raise InputError("Your photograph was forgotten after half an hour without use: choose it again.")
        return Session(key, photograph, self.offer, self.computed)

    def close(self, key: str | None) -> None:
        """Forget everything of a session."""
        if key is not None:
            self.photographs.forget(key)
            self.computed.forget(key)

    def sweep(self) -> None:
        """Forget what nobody used for too long."""
        self.photographs.sweep()
        self.computed.sweep()
