"""What the page does when something is chosen on it: values of its fields in, new values out."""

from __future__ import annotations

import base64
import binascii
import html
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import CamError, ImageError
from ..recipe import Recipe
from . import _markup as markup
from ._choice import Switches, offered
from ._photograph import photograph
from ._pictures import photograph_uri
from ._screen import COMPARE, Screen, Shown, archive, code, measure, picture, short, show, stage, top_classes
from ._session import Session
from ._session_store import SessionStore

PARTS = 5
"""Of the page that show a map: see `_parts`."""
HIDDEN = 3
"""Parts of the page that wait for a photograph."""
SWITCHES = len(dataclass_fields(Switches))
LOG = logging.getLogger(__name__)
Values = Any
"""Of Gradio's fields, as it gives and takes them."""


@contextmanager
def as_messages() -> Iterator[None]:
    """An error becomes a message on the page; what was not foreseen goes to the log and is not told."""
    try:
        yield
    except CamError as error:
        raise gr.Error(html.escape(str(error), quote=False), title="That did not work", print_exception=False) from None
    except Exception as error:
        LOG.exception("The page met an unexpected error.")
        raise gr.Error(
            f"Something failed on the server ({type(error).__name__}). Its log says what.",
            title="That did not work",
            print_exception=False,
        ) from None


@dataclass(frozen=True)
class Handlers:
    """The page's actions for the visits at a desk."""

    desk: SessionStore
    example: Path | None

    def photograph(self, visitor: str | None, *fields: Values, event: Any) -> list[Values]:
        """A visitor's own photograph, as base64 text."""
        with as_messages():
            try:
                encoded = base64.b64decode(str(event["data"]), validate=True)
            except (binascii.Error, KeyError, TypeError):
                raise ImageError("This file did not arrive whole; choose it again.") from None
            return self._opened(visitor, fields, encoded, str(event.get("name", "")))

    def the_example(self, visitor: str | None, *fields: Values) -> list[Values]:
        """The photograph that comes with the package."""
        with as_messages():
            assert self.example is not None
            return self._opened(visitor, fields, self.example.read_bytes(), self.example.name)

    def network(self, visitor: str | None, *fields: Values) -> list[Values]:
        """Another network looks at the same photograph."""
        with as_messages():
            return self._anew(self.desk.visit(visitor), fields)

    def changed(self, visitor: str | None, *fields: Values) -> list[Values]:
        """The maps for what is chosen now."""
        return self._with(visitor, fields)

    def top(self, visitor: str | None, chosen: int, *fields: Values) -> list[Values]:
        """One of the favourite classes; the search is emptied."""
        return [chosen, None, *self._with(visitor, fields, target=chosen)]

    def searched(self, visitor: str | None, chosen: int | None, *fields: Values) -> list[Values]:
        """Any class; it may be none of the favourites. An emptied search changes nothing."""
        if chosen is None:
            return [gr.skip()] * (2 + PARTS)
        return [chosen, chosen, *self._with(visitor, fields, target=chosen)]

    def compared(self, visitor: str | None, *fields: Values) -> list[Values]:
        """One map or two, and the field that says which the second one is."""
        with as_messages():
            compare = screen_of(fields).compare
        return [
            gr.update(visible=compare == COMPARE[1]),
            gr.update(visible=compare == COMPARE[2]),
            *self.changed(visitor, *fields),
        ]

    def method(self, visitor: str | None, *fields: Values) -> list[Values]:
        """A method with its own ingredients; the switches show them, out of use where it has none."""
        with as_messages():
            way = offered(screen_of(fields).method).way
        if not isinstance(way, Recipe):
            return [*[gr.update(interactive=False)] * SWITCHES, *self._with(visitor, fields, switches=None)]
        own = Switches.of(way)
        updates = [gr.update(value=value, interactive=True) for value in vars(own).values()]
        return [*updates, *self._with(visitor, fields, switches=own)]

    def layer(self, visitor: str | None, *fields: Values, event: Any) -> list[Values]:
        """A layer's map instead of the fused one; its name, since other methods have it in another place."""
        with as_messages():
            visit, screen = self.desk.visit(visitor), screen_of(fields)
            layers = visit.explanation(screen.choices()[0]).layers
            index = event["index"]
            known = isinstance(index, int) and 0 <= index < len(layers)
            chosen = replace(screen, layer=layers[index].name if known else None)
            return [chosen.layer, stage(visit, chosen), code(visit, chosen)]

    def measured(self, visitor: str | None, *fields: Values) -> str:
        """Insertion and deletion."""
        with as_messages():
            return markup.curves(measure(self.desk.visit(visitor), screen_of(fields)))

    def picture(self, opacity: float, visitor: str | None, *fields: Values) -> str:
        """A PNG file for download."""
        with as_messages():
            visit = self.desk.visit(visitor)
            return _download(f"{_stem(visit)}-map.png", "image/png", picture(visit, screen_of(fields), opacity))

    def archive(self, visitor: str | None, *fields: Values) -> str:
        """A zip file for download."""
        with as_messages():
            visit = self.desk.visit(visitor)
            return _download(f"{_stem(visit)}-explanation.zip", "application/zip", archive(visit, screen_of(fields)))

    def _with(self, visitor: str | None, fields: tuple[Values, ...], **changes: Any) -> list[Values]:
        with as_messages():
            return _parts(show(self.desk.visit(visitor), replace(screen_of(fields), **changes)))

    def _opened(self, earlier: str | None, fields: tuple[Values, ...], encoded: bytes, name: str) -> list[Values]:
        visit = self.desk.open(photograph(encoded, name))
        try:
            found = self._anew(visit, fields)
        except Exception:
            # Nobody will have its key.
            self.desk.close(visit.visitor)
            raise
        self.desk.close(earlier)
        return [
            visit.visitor,
            markup.photograph(photograph_uri(visit.photograph.shown)),
            *[gr.update(visible=True)] * HIDDEN,
            *found,
        ]

    def _anew(self, visit: Session, fields: tuple[Values, ...]) -> list[Values]:
        """The network's favourite class, and choices of classes, then the map."""
        screen = replace(screen_of(fields), layer=None)
        best = top_classes(visit, screen.network)
        network = visit.network(screen.network)
        first, second = best[0][0], best[min(1, len(best) - 1)][0]
        screen = replace(screen, target=first, other_target=second)
        classes = [(network.label(index), index) for index in range(len(visit.logits(screen.network)))]
        top = [(f"{short(network.label(index))}  {chance:.1%}", index) for index, chance in best]
        return [
            first,
            None,
            gr.update(choices=top, value=first),
            gr.update(choices=classes, value=None),
            gr.update(choices=classes, value=second),
            *_parts(show(visit, screen)),
        ]


def screen_of(fields: tuple[Values, ...]) -> Screen:
    """The fields of the page in their order, as a choice."""
    network, target, method, readout, bias, weighting, negative_share, raw, compare, *others = fields
    other_target, other_method, layer = others
    switched = isinstance(offered(method).way, Recipe)
    return Screen(
        network=network,
        target=-1 if target is None else target,
        method=method,
        switches=Switches(readout, bias, weighting, negative_share) if switched else None,
        raw=raw,
        compare=compare or COMPARE[0],
        other_target=other_target,
        other_method=other_method,
        layer=layer,
    )


def _parts(shown: Shown) -> list[Values]:
    # Curves that belonged to another map go.
    return [shown.stage, shown.profile, shown.numbers, shown.code, ""]


def _stem(visit: Session) -> str:
    return Path(visit.photograph.name).stem


def _download(name: str, kind: str, content: bytes) -> str:
    # The time makes the browser take the same file twice.
    parcel = {"name": name, "kind": kind, "data": base64.b64encode(content).decode(), "at": time.time()}
    return json.dumps(parcel)
