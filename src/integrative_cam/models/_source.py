"""A network that a library builds by name, before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ._image import Preprocessing
from ._network import Network


@dataclass(frozen=True)
class Source:
    """How a library builds a network, what its images go through, the names of its own classes, its task.

    `create(pretrained=True)` gives it with the library's weights, `create(num_classes=7)` with as many classes.
    """

    name: str
    create: Callable[..., nn.Module]
    preprocessing: Callable[[nn.Module], Preprocessing]
    labels: Callable[[nn.Module], tuple[str, ...]]
    task: Callable[[nn.Module], str] = lambda _: "classification"

    def network(self, model: nn.Module) -> Network:
        """`model`, which `create` gave, with what belongs to it."""
        parts = self.preprocessing(model), self.labels(model)
        return Network(self.name, model.eval(), *parts, task=self.task(model))
