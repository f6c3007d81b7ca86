"""Image classifiers of transformers: a folder that `save_pretrained` wrote, or a repository of the hub."""

from __future__ import annotations

import os.path
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..errors import ModelError, first_line, import_extra
from ._image import Interpolation, Preprocessing, is_folder
from ._network import Source

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RESAMPLE: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
TOLERANCE = 0.02
"""The mean difference of pixels in [0, 1] that rounding and interpolation may cause."""
TIMEOUT = 5.0
"""Seconds to wait for the hub's answer."""

_one_at_a_time = threading.RLock()


def huggingface(short: str) -> Source:
    """AutoModelForImageClassification with its own image processor and class names.

    Only JSON and safetensors are read: no pickled weights, and no code from the repository.

    Args:
        short: a folder, or OWNER/REPOSITORY of the hub.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: no such folder. The source's functions raise it for what they cannot find, read or mirror.
    """
    transformers = import_extra("transformers", f"model 'hf/{short}'", "hf")
    name = f"hf/{short}"
    folder = Path(os.path.expanduser(short))  # noqa: PTH111 - Path's own fails where there is no such user
    if not is_folder(folder) and (short.startswith((".", "/", "~")) or short.count("/") != 1):
        raise ModelError(f"model {name!r}: no such folder, and a repository of the hub is OWNER/REPOSITORY.")

    def files(*patterns: str) -> Path:
        return folder if is_folder(folder) else _downloaded(short, patterns)

    def create(pretrained: bool = False, num_classes: int | None = None) -> nn.Module:
        kinds = ("*.json", "model*.safetensors") if pretrained else ("*.json",)
        with _as_model_error(name), _quiet():
            place = files(*kinds)
            config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
            if num_classes is not None:
                config.num_labels = num_classes
            automatic: Any = transformers.AutoModelForImageClassification
            if not pretrained:
                return cast(nn.Module, automatic.from_config(config, trust_remote_code=False))
            if not any(place.glob("model*.safetensors")):
                raise ModelError(
                    f"{name}: holds no model.safetensors. Pickled weights are not read, since they can run code; "
                    "save them again with model.save_pretrained(folder)."
                )
            model, info = automatic.from_pretrained(
                place,
                config=config,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            missing = sorted(map(str, info["missing_keys"]))
            if missing:
                raise ModelError(
                    f"{name}: {len(missing)} tensors of {type(model).__name__} are not among the weights (such as "
                    f"{missing[0]}) and would be random. It needs a network trained to classify images."
                )
            return cast(nn.Module, model)

    def preprocessing(_: nn.Module) -> Preprocessing:
        with _as_model_error(name), _quiet():
            automatic: Any = transformers.AutoImageProcessor
            processor = automatic.from_pretrained(files("*.json"), trust_remote_code=False, local_files_only=True)
            return mirrored(processor, name)

    return Source(name, create, preprocessing, _labels, _task)


def _task(model: nn.Module) -> str:
    stated = {"multi_label_classification": "multi-label", "regression": "regression"}
    return stated.get(str(getattr(cast(Any, model).config, "problem_type", None)), "classification")


def _labels(model: nn.Module) -> tuple[str, ...]:
    named = cast(Any, model).config.id2label
    labels = tuple(str(named[index]) for index in range(len(named)))
    # transformers' own names, where none were given
    return () if labels == tuple(f"LABEL_{index}" for index in range(len(named))) else labels


def mirrored(processor: Any, name: str) -> Preprocessing:
    """An image processor as a `Preprocessing`, compared with it on a picture of coloured blocks.

    Raises:
        ModelError: the processor does more, or something else.
    """
    subject = f"{name}: its image processor, {type(processor).__name__},"
    get = processor.to_dict().get
    interpolation = RESAMPLE.get(int(get("resample", 2)))
    if interpolation is None:
        raise ModelError(f"{subject} resamples by filter {get('resample')}; there are {', '.join(RESAMPLE.values())}.")
    sizes = _sizes(get)
    if sizes is None:
        raise ModelError(f"{subject} scales to no fixed size (size {get('size')}); Preprocessing cannot mirror that.")
    resize, crop = sizes
    normalised = get("do_normalize", True)
    mean, std = (get("image_mean"), get("image_std")) if normalised else ((0.0,) * 3, (1.0,) * 3)
    if get("include_top"):
        # EfficientNet's processor divides by the deviation twice.
        std = tuple(deviation**2 for deviation in std)
    # Pixels are v * factor there, and v / 255 here.
    scale = 255 * (get("rescale_factor", 1 / 255) if get("do_rescale", True) else 1.0)
    mean, std = (tuple(value / scale for value in values) for values in (mean, std))
    preprocessing = Preprocessing(resize, crop, interpolation, mean, std)
    difference = _difference(processor, preprocessing)
    if difference > TOLERANCE:
        raise ModelError(
            f"{subject} does more to a picture than scale, crop and normalise (mean difference {difference:.2f} of the "
            "range). Write FILE.py with a factory that returns a Network with the right Preprocessing."
        )
    return preprocessing


def _sizes(get: Callable[..., Any]) -> tuple[int | tuple[int, int], tuple[int, int]] | None:
    """`resize` and `crop` of a `Preprocessing`, from the processor's settings."""
    size, cropped = _sides(get("size")), _sides(get("crop_size"))
    if not get("do_resize", True):
        return None
    match sorted(size):
        case ["height", "width"]:
            both = (size["height"], size["width"])
            return both, (cropped["height"], cropped["width"]) if get("do_center_crop") else both
        case ["shortest_edge"] if get("crop_pct"):
            side = size["shortest_edge"]
            # ConvNeXt's rule: small pictures are scaled and cropped, large ones squashed.
            return (int(side / get("crop_pct")) if side < 384 else (side, side)), (side, side)
        case ["shortest_edge"] if get("do_center_crop"):
            return size["shortest_edge"], (cropped["height"], cropped["width"])
    return None


def _sides(size: Any) -> dict[str, int]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}


def _difference(processor: Any, preprocessing: Preprocessing) -> float:
    """The mean difference of their results for one picture, relative to the range; infinite if shapes differ."""
    draw = np.random.default_rng(0)
    # Blocks hide differences of filters; unlike means of the colours show a different order of channels.
    blocks = draw.integers(0, [256, 160, 80], (16, 20, 3)).repeat(32, 0).repeat(32, 1)
    picture = Image.fromarray(blocks.astype(np.uint8))
    theirs: Float[Tensor, "1 3 height width"] = torch.as_tensor(
        np.asarray(processor(picture, return_tensors="pt")["pixel_values"])
    ).float()
    ours = preprocessing(picture).tensor
    if ours.shape != theirs.shape:
        return float("inf")
    std = torch.tensor(preprocessing.std)[:, None, None]
    return float(((ours - theirs) * std).abs().mean())


def _downloaded(repository: str, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    try:
        with hub_or_cache():
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"hf/{repository}: was not downloaded before, and {huggingface_hub.constants.ENDPOINT} cannot be asked: no "
            "answer, or HF_HUB_OFFLINE is set. Give a folder, hf/FOLDER."
        ) from error


@contextmanager
def _as_model_error(name: str) -> Iterator[None]:
    """Turn any error into a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # hubs, files and configurations fail in many ways
        raise ModelError(f"{name}: could not be loaded ({type(error).__name__}: {first_line(error)})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within, load from the cache at once where the hub does not answer.

    huggingface_hub itself tries six times with growing pauses, half a minute per file. Its switch for working offline
    is set meanwhile, which other code that uses the hub at that moment sees as well. A second thread waits: it would
    take the switch for the user's own setting and leave it on.
    """
    from huggingface_hub import constants

    with _one_at_a_time:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        # The library's own session knows proxies and certificates.
        get_session().head(address, timeout=TIMEOUT)
    except Exception:  # of whichever HTTP library the version uses
        return False
    return True
