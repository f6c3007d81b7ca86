"""Endpoints for gradio_client: each call brings its photograph, which is forgotten once the call is answered."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ImageError, InputError, TapError, TargetError
from ..query import parse_target
from ._choice import INGREDIENTS, recipe_of
from ._handlers import errors_as_messages
from ._photograph import MAX_BYTES, Photograph, photograph
from ._screen import Screen, Selection, screen_of
from ._session import Session, SessionStore, on_offer

CLASSES_LISTED = 50
"""Classes that a search returns at most."""


@dataclass(frozen=True)
class Arguments:
    """What a call asks for; see the endpoint `explain`. Empty texts and -1 stand for what is not given."""

    network: str = ""
    target: str = ""
    method: str = "integrative"
    readout: str = ""
    bias: str = ""
    weighting: str = ""
    negative_share: float = -1
    layer: str = ""


def add(sessions: SessionStore, uploads: Path) -> None:
    """Add the endpoints to the Blocks that are being made; they read no files but what Gradio puts in `uploads`."""

    def networks() -> list[str]:
        """The networks on offer, the default first."""
        return list(sessions.offer)

    @errors_as_messages()
    def classes(words: str, network: str = "") -> list[dict[str, Any]]:
        """Classes whose name holds the words, each with index and label: the first 50."""
        _check_texts(words=words, network=network)
        labels = on_offer(sessions.offer, network or next(iter(sessions.offer))).labels
        matching = [(index, label) for index, label in enumerate(labels) if words.lower() in label.lower()]
        return [{"index": index, "label": label} for index, label in matching[:CLASSES_LISTED]]

    def explain(screen: Screen) -> tuple[gr.FileData, dict[str, Any]]:
        """The map over the photograph as a PNG file; its classes, score, layers and Python lines as a dict.

        photograph: handle_file("photo.jpg"). target: a class's index or name; empty, the network's top class. layer:
        the name of one, for its map instead. An ingredient that is empty, or negative_share=-1, is the method's own.
        """
        return _file(screen.picture(), "map.png", uploads), screen.record()

    def faithfulness(screen: Screen) -> dict[str, Any]:
        """Insertion and deletion of the map: areas and curves. Arguments as for explain."""
        return screen.measure()[0]

    def explanation(screen: Screen) -> gr.FileData:
        """A zip file with the folder that `Explanation.load` reads. Arguments as for explain."""
        return _file(screen.archive(), "explanation.zip", uploads)

    for quick in (networks, classes):
        gr.api(quick, concurrency_id="quick")
    for slow in (explain, faithfulness, explanation):
        gr.api(_endpoint(slow, sessions, uploads), concurrency_id="slow")


def _endpoint(answer: Callable[[Screen], Any], sessions: SessionStore, uploads: Path) -> Callable[..., Any]:
    """A function of a photograph and `Arguments`, in the form that Gradio reads: by its signature and type hints."""
    arguments = [field for field in fields(Arguments) if field.name != "layer" or answer.__name__ == "explain"]

    @errors_as_messages()
    def endpoint(image: Any, *values: Any) -> Any:
        session = sessions.open(_photograph(image, uploads))
        try:
            call = Arguments(**dict(zip((field.name for field in arguments), values, strict=False)))
            return answer(_screen(session, call))
        finally:
            sessions.close(session.key)

    hints = {"photograph": gr.FileData, **{field.name: type(field.default) for field in arguments}}
    defaults = {field.name: field.default for field in arguments}
    returned = answer.__annotations__["return"]
    endpoint.__name__, endpoint.__doc__ = answer.__name__, answer.__doc__
    endpoint.__annotations__ = {**hints, "return": returned}
    endpoint.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults.get(name, Parameter.empty))
            for name in hints
        ],
        return_annotation=returned,
    )
    return endpoint


def _screen(session: Session, call: Arguments) -> Screen:
    """The map that a call asks for."""
    _check_texts(**{name: value for name, value in asdict(call).items() if name != "negative_share"})
    if not isinstance(call.negative_share, int | float):
        raise InputError(f"negative_share must be a number, but got {str(call.negative_share)[:80]}.")
    name = call.network or next(iter(session.offer))
    own = recipe_of(call.method)
    changes = {field: value for field in INGREDIENTS if (value := getattr(call, field)) not in ("", -1)}
    target = _target(session, name, call.target or "top1")
    selection = Selection(name, target, call.method, own and replace(own, **changes), layer=call.layer or None)
    screen = screen_of(session, selection)
    if call.layer and screen.maps[0].layer is None:
        raise TapError(f"{name} has no layer {call.layer!r} under {call.method}; explain lists them.")
    return screen


def _target(session: Session, network: str, text: str) -> int:
    """The one class that a target text means."""
    target = parse_target(text, session.network(network))
    if target == 1:
        return session.ranking(network).classes[0].index
    if isinstance(target, int) or len(target) > 1:
        raise TargetError(f"target {text!r} means several classes; name one.")
    return target[0]


def _check_texts(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, str | None):
            raise InputError(f"{name} must be text, but got {str(value)[:80]}.")


def _photograph(image: Any, uploads: Path) -> Photograph:
    """Read an uploaded file, and delete it."""
    place = image.get("path") if isinstance(image, dict) else None
    path = Path(place).resolve() if isinstance(place, str) and "\0" not in place else None
    if path is None or not path.is_relative_to(uploads.resolve()) or not path.is_file():
        raise ImageError('photograph must be an uploaded file: handle_file("photo.jpg") of gradio_client.')
    with path.open("rb") as file:
        encoded = file.read(MAX_BYTES + 1)
    path.unlink(missing_ok=True)
    return photograph(encoded, str(image.get("orig_name") or path.name))


def _file(content: bytes, name: str, uploads: Path) -> gr.FileData:
    folder = uploads / secrets.token_urlsafe(24)
    folder.mkdir()
    (folder / name).write_bytes(content)
    return gr.FileData(path=str(folder / name))
