"""The page's work for programs: endpoints for gradio_client, each of which takes the photograph and keeps nothing."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ImageError, InputError, TapError
from ..recipe import Recipe
from ._choice import Switches, layer_of, offered
from ._handlers import as_messages
from ._photograph import MAX_BYTES, Photograph, photograph
from ._screen import Screen, archive, measure, picture, record, top_classes
from ._session import Session, on_offer
from ._session_store import SessionStore

FOUND = 50
"""Classes that a search gives at most."""


def add(desk: SessionStore, uploads: Path) -> None:
    """Add the endpoints to the Blocks that are being made.

    Args:
        desk: the networks on offer.
        uploads: where Gradio puts what clients upload; no other file is read.
    """

    def networks() -> list[str]:
        """The networks on offer, the default first."""
        return list(desk.offer)

    def classes(words: str, network: str = "") -> list[dict[str, Any]]:
        """Classes whose name holds the words, each with index and label: the first 50."""
        with as_messages():
            _check_texts(words=words, network=network)
            labels = on_offer(desk.offer, network or next(iter(desk.offer))).labels
            found = [(index, label) for index, label in enumerate(labels) if words.lower() in label.lower()]
            return [{"index": index, "label": label} for index, label in found[:FOUND]]

    @contextmanager
    def asked(image: Any, *choice: Any) -> Iterator[tuple[Session, Screen]]:
        with as_messages():
            visit = desk.open(_photograph(image, uploads))
            try:
                yield visit, _screen(visit, *choice)
            finally:
                desk.close(visit.visitor)

    def explain(
        photograph: gr.FileData,
        network: str = "",
        target: str = "",
        method: str = "integrative",
        readout: str = "",
        bias: str = "",
        weighting: str = "",
        negative_share: float = -1,
        layer: str = "",
    ) -> tuple[gr.FileData, dict[str, Any]]:
        """The map over the photograph as a PNG file; its classes, score, layers and Python lines as a dict.

        photograph: handle_file("photo.jpg"). target: a class's index or name; empty, the network's favourite. layer:
        the name of one, for its map instead. An ingredient that is empty, or negative_share=-1, is the method's own.
        """
        with asked(photograph, network, target, method, readout, bias, weighting, negative_share, layer) as (
            visit,
            screen,
        ):
            return _file(picture(visit, screen), "map.png", uploads), record(visit, screen)

    def faithfulness(
        photograph: gr.FileData,
        network: str = "",
        target: str = "",
        method: str = "integrative",
        readout: str = "",
        bias: str = "",
        weighting: str = "",
        negative_share: float = -1,
    ) -> dict[str, Any]:
        """Insertion and deletion of the map: areas and curves. Arguments as for explain."""
        with asked(photograph, network, target, method, readout, bias, weighting, negative_share) as (visit, screen):
            return asdict(measure(visit, screen)[0])

    def explanation(
        photograph: gr.FileData,
        network: str = "",
        target: str = "",
        method: str = "integrative",
        readout: str = "",
        bias: str = "",
        weighting: str = "",
        negative_share: float = -1,
    ) -> gr.FileData:
        """A zip file with the folder that `Explanation.load` reads. Arguments as for explain."""
        with asked(photograph, network, target, method, readout, bias, weighting, negative_share) as (visit, screen):
            return _file(archive(visit, screen), "explanation.zip", uploads)

    queues: dict[str, tuple[Callable[..., Any], ...]] = {
        "quick": (networks, classes),
        "slow": (explain, faithfulness, explanation),
    }
    for queue, endpoints in queues.items():
        for endpoint in endpoints:
            gr.api(endpoint, concurrency_id=queue)


def _screen(
    visit: Session,
    network: str,
    target: str,
    method: str,
    readout: str,
    bias: str,
    weighting: str,
    negative_share: float,
    layer: str = "",
) -> Screen:
    """What the arguments of an endpoint ask for.

    Raises:
        CamError: a name is unknown, or a value out of range.
    """
    _check_texts(
        network=network, target=target, method=method, readout=readout, bias=bias, weighting=weighting, layer=layer
    )
    if not isinstance(negative_share, int | float):
        raise InputError(f"negative_share must be a number, but got {str(negative_share)[:80]}.")
    name = network or next(iter(visit.offer))
    index = visit.network(name).index(target) if target else top_classes(visit, name, 1)[0][0]
    way = offered(method).way
    switches = None
    if isinstance(way, Recipe):
        given = {"readout": readout, "bias": bias, "weighting": weighting}
        changes: dict[str, Any] = {field: value for field, value in given.items() if value}
        if negative_share != -1:
            changes["negative_share"] = negative_share
        switches = replace(Switches.of(way), **changes)
    screen = Screen(name, index, method, switches, layer=layer or None)
    if layer and layer_of(visit.explanation(screen.choices()[0]), layer) is None:
        raise TapError(f"{name} has no layer {layer!r} under {method}; explain lists them.")
    return screen


def _check_texts(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, str | None):
            raise InputError(f"{name} must be text, but got {str(value)[:80]}.")


def _photograph(image: Any, uploads: Path) -> Photograph:
    """An uploaded file.

    Raises:
        ImageError: it is none, whatever path it names.
    """
    given = image.get("path") if isinstance(image, dict) else None
    path = Path(given).resolve() if isinstance(given, str) and "\0" not in given else None
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
