"""Explanations on disk: one safetensors file and a JSON manifest, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ._maps.completeness import Completeness
from ._maps.streams import Streams
from ._plan.placement import Placement
from ._version import __version__
from .errors import ExplanationError
from .explanation import BiasLayer, Explanation, Layer, SeenRegion, tensors_in
from .recipe import OF_0_1_0, Recipe, present_names

FORMAT = 1
MANIFEST = "manifest.json"
ARRAYS = "arrays.safetensors"
DRAFT = ".draft"
"""Ends the names of files that are being written."""


def save(explanation: Explanation, folder: Path) -> Path:
    """See `Explanation.save`."""
    with replaced_folder(folder, MANIFEST) as draft:
        save_file(_arrays(explanation), draft / ARRAYS)
        (draft / MANIFEST).write_text(json.dumps(_manifest(explanation), indent=2) + "\n", "utf-8")
    return folder


def load(folder: Path) -> Explanation:
    """See `Explanation.load`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        arrays = load_file(folder / ARRAYS)
    except FileNotFoundError:
        missing = next(name for name in (MANIFEST, ARRAYS) if not (folder / name).is_file())
        inside = folder / "explanation"
        hint = f" There is one in {inside}." if (inside / MANIFEST).is_file() else ""
        raise ExplanationError(f"{folder} holds no complete explanation: {missing} is missing.{hint}") from None
    except (ValueError, RecursionError, SafetensorError, OSError) as error:
        raise ExplanationError(f"{folder} holds no readable explanation: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ExplanationError(
            f"{folder / MANIFEST} is not an explanation of format {FORMAT}; read it with the version that wrote it."
        )
    try:
        return _explanation(manifest, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ExplanationError(f"{folder} holds an incomplete explanation: {error} is missing or wrong.") from None


@contextmanager
def replaced_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A draft folder that replaces `folder` when the block ends, and is removed on any error.

    `folder` may be absent, empty, or an earlier output, which holds the file `marker`.
    """
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExplanationError(
            f"{folder} exists and is no earlier output of this package; choose another place or remove it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    draft.chmod(0o755)
    try:
        yield draft
        if folder.is_dir():
            retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            folder.replace(retired)
            draft.replace(folder)
            shutil.rmtree(retired)
        else:
            draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def written_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all, even if the process is killed; missing folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}{DRAFT}")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    # The name too, where a folder can be opened.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _arrays(explanation: Explanation) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors_in(explanation)}


def _manifest(explanation: Explanation) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "integrative_cam": __version__,
        "torch": torch.__version__,
        "recipe": explanation.recipe and explanation.recipe.described(),
        "target_names": explanation.target_names,
        "layers": [
            {"name": layer.name, "kind": layer.kind, **_placed(layer.placement)} for layer in explanation.layers
        ],
        "bias_layers": [{"name": layer.name, **_placed(layer.placement)} for layer in explanation.bias_layers],
        "streams": explanation.streams and explanation.streams.names,
        "views": explanation.views and [{"size": view.size, "box": view.box} for view in explanation.views],
    }


def _placed(placement: Placement | None) -> dict[str, Any]:
    return {} if placement is None else {"placement": asdict(placement)}


def _placement_of(described: dict[str, Any] | None) -> Placement | None:
    if described is None:
        return None
    return Placement(
        tuple(map(tuple, described["lines"])),
        tuple((low, high) for low, high in described["seen"]),
        tuple(described["apart"]),
    )


def _explanation(manifest: dict[str, Any], arrays: dict[str, Tensor]) -> Explanation:
    def part(prefix: str, kind: type, names: dict[str, Any]) -> Any:
        stored = [field.name for field in fields(kind) if field.name not in names]
        return kind(**names, **{name: arrays[f"{prefix}{name}"] for name in stored})

    def parts(group: str, kind: type) -> tuple[Any, ...]:
        return tuple(
            part(f"{group}.{index}.", kind, {**names, "placement": _placement_of(names.get("placement"))})
            for index, names in enumerate(manifest[group])
        )

    def streams_of(names: list[str]) -> dict[str, Any]:
        maps = tuple(arrays.get(f"streams.maps.{index}") for index in range(len(names)))
        return {"names": tuple(names), "maps": maps}

    names = tuple(manifest["target_names"])
    if not all(isinstance(name, str) for name in names) or arrays["map"].ndim < 2 or len(arrays["map"]) != len(names):
        raise ValueError("target_names, one for each map,")
    views = manifest.get("views") and tuple(_view(**view) for view in manifest["views"])  # 0.1.0 stored none
    if views and len(views) != len(names):
        raise ValueError("views, one for each map,")
    return Explanation(
        map=arrays["map"],
        layers=parts("layers", Layer),
        bias_layers=parts("bias_layers", BiasLayer),
        score=arrays["score"],
        output=arrays["output"],
        target=arrays.get("target"),
        target_names=names,
        clamped=arrays["clamped" if "clamped" in arrays else "guarded"],  # its name in 0.1.0
        completeness=part("completeness.", Completeness, {}),
        recipe=recipe_of(manifest["recipe"]),
        streams=part("streams.", Streams, streams_of(manifest["streams"])) if manifest.get("streams") else None,
        views=views,
    )


def _view(size: Sequence[int], box: Sequence[float]) -> SeenRegion:
    (width, height), (left, top, right, bottom) = size, map(float, box)
    if min(width, height) <= 0 or not (left < right and top < bottom):
        raise ValueError(f"the view {list(size)}, {list(box)}")
    return SeenRegion((int(width), int(height)), (left, top, right, bottom))


def recipe_of(described: dict[str, Any] | None) -> Recipe | None:
    """The recipe that `Recipe.described` described; None for None, the mark of a method that is no recipe.

    Raises:
        KeyError, TypeError: it is no such description.
    """
    if described is None:
        return None
    # JSON has lists, a recipe has tuples.
    taps = described["taps"]
    return Recipe(
        **{**OF_0_1_0, **present_names(described, warn=()), "taps": taps if isinstance(taps, str) else tuple(taps)}
    )
