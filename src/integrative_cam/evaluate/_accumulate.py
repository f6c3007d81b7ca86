"""A metric over many batches: keeps the values, gives their mean and its interval at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..methods._registry import Explainer
from ..recipe import one_of
from ._benchmark import ALL, evaluate
from ._statistics import Interval, bootstrap_mean

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass
class Accumulator:
    """Collects what a metric gives for each batch.

    >>> import torch
    >>> from integrative_cam.evaluate import Accumulator, complexity
    >>> metric = Accumulator(complexity, higher_is_better=False)
    >>> maps = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1)
    >>> for batch in maps.split(2):
    ...     metric.update(batch)
    >>> metric.compute()
    Interval(mean=0.5, low=0.0, high=1.0, n=3)
    >>> metric.values.tolist()
    [0.0, 0.5, 1.0]

    Args:
        function: gives one value per image, shape (batch,).
        higher_is_better: which way is better; None where neither is.
    """

    function: Callable[..., Tensor]
    higher_is_better: bool | None
    _batches: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Call the function and keep its values, on the CPU in float64.

        Raises:
            InputError: it gives no tensor of shape (batch,).
            CamError: see the function.
        """
        values = self.function(*args, **kwargs)
        if not isinstance(values, Tensor) or values.ndim != 1:
            came = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"function must give a tensor with one value per image, shape (batch,), but gave {came}.")
        self._batches.append(values.detach().to("cpu", torch.float64, copy=True))

    @property
    def values(self) -> Float[Tensor, "image"]:
        """All values so far, in the order they came."""
        return torch.cat(self._batches) if self._batches else torch.zeros(0, dtype=torch.float64)

    def compute(self) -> Interval:
        """The mean over all images so far and its 95 % bootstrap interval; for others see `bootstrap_mean`.

        Raises:
            InputError: there are no values, or some are not finite.
        """
        if not len(self.values):
            raise InputError("compute needs at least one image; call update first.")
        return bootstrap_mean(self.values)

    def merge(self, other: Accumulator) -> None:
        """Append another's values, as of the same metric on other images.

        Raises:
            InputError: what is better for one is worse for the other.
        """
        if other.higher_is_better is not self.higher_is_better:
            raise InputError(
                "other must accumulate the same metric, but higher_is_better is "
                f"{self.higher_is_better} here and {other.higher_is_better} there."
            )
        self._batches.extend(other._batches)

    def reset(self) -> None:
        """Forget all values."""
        self._batches = []


def accumulator(metric: str) -> Accumulator:
    """An accumulator of a metric of `icam evaluate`, except `maxboxacc`, which has no value per image.

    Its `update` takes a model, images, a method, and the other arguments of `icam evaluate` as keywords: steps, seed,
    target, regions. For instance `accumulator("insertion").update(model, images, get_method("gradcam"), steps=16)`.

    Raises:
        RecipeError: an unknown metric.
    """
    one_of("metric", metric, ALL)
    return Accumulator(partial(_value, metric), ALL[metric].higher_is_better)


def _value(metric: str, model: nn.Module, images: Tensor, method: Explainer, **settings: Any) -> Tensor:
    return evaluate(model, images, method, [metric], **settings)[metric]
