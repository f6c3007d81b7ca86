"""One visitor's photograph under the networks on offer; what was computed once is used again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._call import trace
from .._maps.reduction import Reduced
from .._maps.traced import Trace
from .._plan.taps import Taps
from ..cam import assemble, reduce
from ..errors import ModelError
from ..explanation import Explanation
from ..models import Network
from ..recipe import Recipe
from ..targets import class_scores
from ._choice import Choice, offered
from ._lru_cache import LruCache, bytes_of
from ._photograph import Photograph

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Offered:
    """A network that the operator put on the page, and the arguments of `load` that name it, without folders."""

    network: Network
    files: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What a network sees: its input, and where it lies in the photograph as shown, (left, top, right, bottom)."""

    tensor: Float[Tensor, "1 channel height width"]
    region: tuple[float, float, float, float]


Offer = Mapping[str, Offered]
"""By name, the default first."""


def on_offer(offer: Offer, name: str) -> Network:
    """A network on offer.

    Raises:
        ModelError: it is not.
    """
    if name not in offer:
        raise ModelError(f"This page offers {', '.join(offer)}, but not {name!r}.")
    return offer[name].network


@dataclass(frozen=True)
class Session:
    """A photograph that a visitor opened. `kept` may forget anything: it is then computed again."""

    visitor: str
    photograph: Photograph
    offer: Offer
    kept: LruCache[Any]

    def network(self, name: str) -> Network:
        """A network on offer; see `on_offer`."""
        return on_offer(self.offer, name)

    def seen(self, name: str) -> Seen:
        """What the network sees of the photograph."""
        found = self.kept.get(self.visitor, ("seen", name))
        if found is None:
            image = self.photograph.full()
            view = self.network(name).preprocessing(image)
            scale = self.photograph.shown.width / image.width
            left, top, right, bottom = view.region
            found = Seen(view.tensor, (left * scale, top * scale, right * scale, bottom * scale))
            self._keep(("seen", name), found)
        seen: Seen = found
        return seen

    def logits(self, name: str) -> Float[Tensor, "classes"]:
        """The network's output for the photograph.

        Raises:
            CamError: the network or its output cannot be used; see `trace`.
        """
        found = self.kept.get(self.visitor, ("logits", name))
        return _logits(self.trace(name, None, Recipe().taps)) if found is None else found

    def trace(self, name: str, target: int | None, taps: Taps) -> Trace:
        """The network's run for a class, None for its top class; done once, whatever recipes follow."""
        found = None if target is None else self.kept.get(self.visitor, ("trace", name, target, taps))
        if found is None:
            found = trace(self.network(name).model, self.seen(name).tensor, target, taps)
            self._keep(("logits", name), _logits(found))
            assert found.index is not None
            self._keep(("trace", name, int(found.index[0]), taps), found)
        done: Trace = found
        return done

    def explanation(self, choice: Choice) -> Explanation:
        """The explanation of a choice.

        Raises:
            CamError: the choice does not fit, or the network cannot be explained.
        """
        # Whether it is smoothed is no part of it.
        name = ("explanation", choice.network, choice.target, choice.method, choice.switches)
        found = self.kept.get(self.visitor, name)
        if found is None:
            recipe = choice.recipe()
            if recipe is None:
                model = self.network(choice.network).model
                found = offered(choice.method)(model, self.seen(choice.network).tensor, choice.target)
            else:
                found = assemble(self._reduced(choice.network, choice.target, recipe), recipe)
            self._keep(name, found)
        explanation: Explanation = found
        return explanation

    def _reduced(self, name: str, target: int, recipe: Recipe) -> Reduced:
        """The layers' maps, which do not depend on how they are weighted, joined by biases and fused."""
        key = ("reduced", name, target, recipe.taps, recipe.readout, recipe.negative_share, recipe.aggregation)
        found: Reduced | None = self.kept.get(self.visitor, key)
        if found is None:
            found = reduce(self.trace(name, target, recipe.taps), replace(recipe, bias="layers"))
            self._keep(key, found)
        return found

    def _keep(self, name: Hashable, value: object) -> None:
        self.kept.put(self.visitor, value, bytes_of(value), name)


def _logits(found: Trace) -> Tensor:
    return class_scores(found.output, "target")[0].float()
