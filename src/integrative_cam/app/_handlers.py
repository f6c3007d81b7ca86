"""What the page does when something is selected on it: values of its fields in, new values out."""

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
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import CamError, ImageError
from ..query import short_name
from ..render._templates import data_uri
from ._choice import INGREDIENTS, recipe_of
from ._photograph import photograph
from ._screen import COMPARE, TOP, Screen, Selection, screen_of
from ._session import Session, SessionStore

PARTS = 5
"""Parts of the page that show a map: see `_parts`."""
HIDDEN = 3
"""Parts of the page that are hidden until there is a photograph."""
LOG = logging.getLogger(__name__)
Values = Any
"""Of Gradio's fields, as it gives and takes them."""


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Show an error as a message on the page; an unexpected one goes to the log, and only its class is shown."""
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
    """The page's actions. `key` is that of the visitor's session, `fields` the values of the page's fields."""

    sessions: SessionStore
    example: Path | None

    @errors_as_messages()
    def photograph(self, key: str | None, *fields: Values, event: Any) -> list[Values]:
        """Open a visitor's own photograph, sent as base64 text."""
        try:
            encoded = base64.b64decode(str(event["data"]), validate=True)
        except (binascii.Error, KeyError, TypeError):
            raise ImageError("This file did not arrive whole; choose it again.") from None
        return self._opened(key, fields, encoded, str(event.get("name", "")))

    @errors_as_messages()
    def open_example(self, key: str | None, *fields: Values) -> list[Values]:
        """Open the photograph that comes with the package."""
        assert self.example is not None
        return self._opened(key, fields, self.example.read_bytes(), self.example.name)

    @errors_as_messages()
    def network(self, key: str | None, *fields: Values) -> list[Values]:
        """Show the same photograph under another network."""
        return self._first(self.sessions.get(key), fields)

    @errors_as_messages()
    def changed(self, key: str | None, *fields: Values) -> list[Values]:
        """Show the maps for what is selected now."""
        return self._changed(key, fields)

    @errors_as_messages()
    def top(self, key: str | None, target: int, *fields: Values) -> list[Values]:
        """Explain one of the top classes; the search is emptied."""
        return [target, None, *self._changed(key, fields, target=target)]

    @errors_as_messages()
    def searched(self, key: str | None, target: int | None, *fields: Values) -> list[Values]:
        """Explain any class, which may be none of the top ones. An emptied search changes nothing."""
        if target is None:
            return [gr.skip()] * (2 + PARTS)
        return [target, target, *self._changed(key, fields, target=target)]

    @errors_as_messages()
    def compared(self, key: str | None, *fields: Values) -> list[Values]:
        """Show one map or two, and the field that selects the second one."""
        compare = selection_of(fields).compare
        return [*(gr.update(visible=compare == other) for other in COMPARE[1:]), *self._changed(key, fields)]

    @errors_as_messages()
    def method(self, key: str | None, *fields: Values) -> list[Values]:
        """Show a method with its own ingredients, in the fields for these too; they are disabled if it has none."""
        own = recipe_of(selection_of(fields).method)
        if own is None:
            updates = [gr.update(interactive=False)] * len(INGREDIENTS)
        else:
            updates = [gr.update(value=getattr(own, name), interactive=True) for name in INGREDIENTS]
        return [*updates, *self._changed(key, fields, recipe=own)]

    @errors_as_messages()
    def layer(self, key: str | None, *fields: Values, event: Any) -> list[Values]:
        """Show a layer's map instead of the fused one. It is kept by name, since its index depends on the method."""
        session, selection, index = self.sessions.get(key), selection_of(fields), event["index"]
        layers = session.explanation(selection.choices()[0]).layers
        is_layer = isinstance(index, int) and 0 <= index < len(layers)
        screen = screen_of(session, replace(selection, layer=layers[index].name if is_layer else None))
        return [screen.selection.layer, screen.stage(), screen.code()]

    @errors_as_messages()
    def measured(self, key: str | None, *fields: Values) -> str:
        """Measure insertion and deletion."""
        return self._screen(key, fields).curves()

    @errors_as_messages()
    def picture(self, opacity: float, key: str | None, *fields: Values) -> str:
        """Download a PNG file."""
        screen = self._screen(key, fields)
        return _download(screen, "map.png", "image/png", screen.picture(opacity))

    @errors_as_messages()
    def archive(self, key: str | None, *fields: Values) -> str:
        """Download a zip file."""
        screen = self._screen(key, fields)
        return _download(screen, "explanation.zip", "application/zip", screen.archive())

    def _screen(self, key: str | None, fields: tuple[Values, ...], **changes: Any) -> Screen:
        return screen_of(self.sessions.get(key), replace(selection_of(fields), **changes))

    def _changed(self, key: str | None, fields: tuple[Values, ...], **changes: Any) -> list[Values]:
        return _parts(self._screen(key, fields, **changes))

    def _opened(self, earlier: str | None, fields: tuple[Values, ...], encoded: bytes, name: str) -> list[Values]:
        session = self.sessions.open(photograph(encoded, name))
        try:
            first = self._first(session, fields)
        except Exception:
            # Nobody will have its key.
            self.sessions.close(session.key)
            raise
        self.sessions.close(earlier)
        # The page gets the photograph once, however often the maps over it change.
        uri = data_uri(session.photograph.shown, quality=85, method=2)
        style = f'<style>:root{{--icam-photograph:url("{uri}")}}</style>'
        return [session.key, style, *[gr.update(visible=True)] * HIDDEN, *first]

    def _first(self, session: Session, fields: tuple[Values, ...]) -> list[Values]:
        """The network's top class, the choices of classes, and the map."""
        selection = replace(selection_of(fields), layer=None)
        network, ranking = session.network(selection.network), session.ranking(selection.network)
        top = ranking.classes[:TOP]
        first, second = top[0].index, top[min(1, len(top) - 1)].index
        selection = replace(selection, target=first, other_target=second)
        classes = [(network.label(index), index) for index in range(len(ranking.classes))]
        choices = [
            (f"{short_name(network.label(entry.index))}  {ranking.as_text(entry.value)}", entry.index) for entry in top
        ]
        return [
            first,
            None,
            gr.update(choices=choices, value=first),
            gr.update(choices=classes, value=None),
            gr.update(choices=classes, value=second),
            *_parts(screen_of(session, selection)),
        ]


def selection_of(fields: tuple[Values, ...]) -> Selection:
    """The values of the page's fields, in their order, as a selection."""
    network, target, method, *rest = fields
    ingredients, (compare, other_target, other_method, layer) = rest[: len(INGREDIENTS)], rest[len(INGREDIENTS) :]
    own = recipe_of(method)
    recipe = own and replace(own, **dict(zip(INGREDIENTS, ingredients, strict=True)))
    target = -1 if target is None else target
    return Selection(network, target, method, recipe, compare or COMPARE[0], other_target, other_method, layer)


def _parts(screen: Screen) -> list[Values]:
    # Curves that belonged to another map go.
    return [screen.stage(), screen.profile(), screen.numbers(), screen.code(), ""]


def _download(screen: Screen, name: str, kind: str, content: bytes) -> str:
    """A file for the browser; see download.js."""
    name = f"{Path(screen.session.photograph.name).stem}-{name}"
    # The time makes the browser take the same file twice.
    return json.dumps({"name": name, "kind": kind, "data": base64.b64encode(content).decode(), "at": time.time()})
