"""A network with its preprocessing and class names, and how a library builds one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from ..errors import TargetError
from ._image import Preprocessing

LISTED = 12
"""If there are no more classes, an error names them all."""
SUGGESTED = 3

_INDEX = re.compile(r"-?[0-9]{1,9}")


def index_in(text: str) -> int | None:
    """The class index that the text states; None for a name."""
    return int(text) if _INDEX.fullmatch(text) else None


@dataclass(frozen=True)
class Network:
    """A model in evaluation mode, its preprocessing, and its class names in index order (may be empty).

    `notes`: what the user should know, such as that the file does not state its preprocessing. `task`: one of TASKS.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    task: str = "classification"

    def label(self, index: int) -> str:
        """The name of a class, or "class 7" if names are not known."""
        kind = {"regression": "value", "image": "channel"}.get(self.task, "class")
        return self.labels[index] if 0 <= index < len(self.labels) else f"{kind} {index}"

    def index(self, target: str) -> int:
        """The index of a class by its index or name as text; case does not matter, one of several synonyms is enough.

        Raises:
            TargetError: unknown or ambiguous name.
        """
        index = index_in(target)
        if index is not None:
            return index
        wanted = target.strip().lower()
        names = [[label.lower(), *(part.strip() for part in label.lower().split(","))] for label in self.labels]
        matches = [index for index, synonyms in enumerate(names) if wanted in synonyms]
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = ", ".join(f"{index} ({self.labels[index]})" for index in matches)
            raise TargetError(f"target {target!r} names several classes: {several}. Give the index.")
        raise TargetError(f"target {target!r} is no class of {self.name}.{self._instead(wanted)}")

    def _instead(self, wanted: str) -> str:
        """A hint for a name, in lower case, that is no class."""
        if not self.labels:
            return " The class names of this network are not known; give an index."
        if len(self.labels) <= LISTED:
            return f" Its classes are {', '.join(self.labels)}."
        written = {part.strip().lower(): part.strip() for label in self.labels for part in label.split(",")}
        holding = [name for name in written if wanted and wanted in name]
        close = [*holding, *get_close_matches(wanted, written, n=SUGGESTED)]
        first = list(dict.fromkeys(written[name] for name in close))[:SUGGESTED]
        return f" Did you mean {', '.join(first)}?" if first else ""


@dataclass(frozen=True)
class Source:
    """How a library builds a network; its preprocessing, class names and task.

    `create(pretrained=True)` loads the library's weights, `create(num_classes=7)` builds it for so many classes.
    """

    name: str
    create: Callable[..., nn.Module]
    preprocessing: Callable[[nn.Module], Preprocessing]
    labels: Callable[[nn.Module], tuple[str, ...]]
    task: Callable[[nn.Module], str] = lambda _: "classification"

    def network(self, model: nn.Module) -> Network:
        """A model from `create` with its preprocessing, class names and task."""
        parts = self.preprocessing(model), self.labels(model)
        return Network(self.name, model.eval(), *parts, task=self.task(model))
