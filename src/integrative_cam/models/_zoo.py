"""A network by name: from a library, a hub or a file, or the bundled default."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .._choices import DEFAULT_NETWORK as DEFAULT
from ..errors import MissingExtraError, ModelError, first_line
from ._bundled import efficientnet_lite0
from ._exported import TRUSTED, from_exported
from ._huggingface import hub_or_cache, huggingface
from ._image import Preprocessing, is_file
from ._network import Network, Source
from ._onnx import from_onnx
from ._weights import classes_in, fill, read_weights


def load(name: str = DEFAULT, weights: str | Path | None = None) -> Network:
    """A network ready to explain: pretrained, or with the weights of a local file.

    A classifier with another number of classes is recognised from the weights.

    Args:
        name: "efficientnet-lite0" (bundled), "torchvision/resnet18", "timm/resnet18", "resnet18" (torchvision
            first), "hf/owner/repository" or "hf/folder" (see `huggingface`), "file.onnx" (see `from_onnx`),
            "file.pt2:trusted" (see `from_exported`), or "file.py:factory", whose factory() returns a module or a
            `Network`. The file is executed.
        weights: safetensors, or a torch file with a state dict; without it, the library's pretrained weights.

    Raises:
        ModelError: unknown name, download failed, weights missing, unreadable or of another network.
        MissingExtraError: the library is not installed.
    """
    whole = _whole(name)
    if weights is None:
        return whole() if whole else _pretrained(_source(name))
    if _is_graph(name):
        raise ModelError(f"model {name!r}: carries its own weights; leave out the weights {weights}.")
    state = read_weights(weights)
    network = build(name)
    classes = classes_in(state, network.model)
    if classes is not None and whole is None:
        source = _source(name)
        network = replace(source.network(source.create(num_classes=classes)), labels=())
    fill(network.model, state, weights)
    return network


def build(name: str = DEFAULT) -> Network:
    """The network with random weights, which is enough to list its taps; a file with a graph has its own weights."""
    whole = _whole(name)
    if whole is not None:
        return whole()
    source = _source(name)
    return source.network(source.create())


def _pretrained(source: Source) -> Network:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = source.create(pretrained=True)
    except ModelError:
        raise
    except Exception as error:  # hubs fail in many ways
        raise ModelError(
            f"{source.name}: could not load pretrained weights ({first_line(error)}). Give a local file with --weights."
        ) from error
    return source.network(model)


def _is_graph(name: str) -> bool:
    """Whether it is the name of a file that holds a graph with its weights."""
    return name.endswith((".onnx", ".pt2", f".pt2{TRUSTED}"))


def _whole(name: str) -> Callable[[], Network] | None:
    """The function that loads the network, if its weights come with it and not from a library; else None."""
    if name == DEFAULT:
        return efficientnet_lite0
    if ".py:" in name:
        return partial(_from_file, name)
    if name.endswith(".onnx"):
        return partial(from_onnx, Path(name))
    return partial(from_exported, name) if _is_graph(name) else None


def _source(name: str) -> Source:
    if name.startswith("hf/"):
        return huggingface(name.removeprefix("hf/"))
    if Path(name).suffix not in ("", ".py") and is_file(name):
        raise ModelError(
            f"model {name!r}: networks are not read from such files, but from FILE.onnx, FILE.pt2 and FILE.py:FACTORY. "
            "A file of weights goes to --weights, beside the name of its network."
        )
    file, _, factory = name.partition(":")
    if name.endswith(".py") or (factory and is_file(f"{file}.py")):
        raise ModelError(
            f"model {name!r}: a network in a file is named by the file and the function that makes it, such as "
            f"{file.removesuffix('.py')}.py:{factory or 'factory'}."
        )
    library, _, short = name.rpartition("/")
    if library not in ("", "torchvision", "timm"):
        raise ModelError(f"model {name!r}: unknown library {library!r}; there are torchvision, timm and hf.")
    try:
        import timm
        import torchvision
    except ImportError as error:
        raise MissingExtraError.of(f"model {name!r}", "models", error) from error
    in_torchvision = torchvision.models.list_models(module=torchvision.models)
    in_timm = timm.list_models()
    if library in ("", "torchvision") and short in in_torchvision:
        return _torchvision(short)
    # A tag selects weights: "resnet18.a1_in1k".
    if library in ("", "timm") and short.split(".")[0] in in_timm:
        return _timm(short)
    known = {"torchvision": in_torchvision, "timm": in_timm}.get(library, [DEFAULT, *in_torchvision, *in_timm])
    close = get_close_matches(short, dict.fromkeys(known), n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ModelError(
        f"model {name!r} is not known.{hint} Give a torchvision or timm name, hf/REPOSITORY-OR-FOLDER, FILE.onnx, or "
        "file.py:factory for your own."
    )


def _torchvision(name: str) -> Source:
    import torchvision

    published = torchvision.models.get_model_weights(name).DEFAULT

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if name in ("googlenet", "inception_v3") and not pretrained:
            options["init_weights"] = False  # drawing them takes minutes, and weights replace them
        model: nn.Module = torchvision.models.get_model(name, weights=published if pretrained else None, **options)
        return model

    def preprocessing(model: nn.Module) -> Preprocessing:
        transform = published.transforms()
        # Some published weights change the size that a vision transformer is built for.
        side = int(getattr(model, "image_size", transform.crop_size[0]))
        return Preprocessing(
            transform.resize_size[0] if side == transform.crop_size[0] else side,
            (side, side),
            transform.interpolation.value,
            tuple(transform.mean),
            tuple(transform.std),
        )

    return Source(f"torchvision/{name}", create, preprocessing, lambda _: tuple(published.meta["categories"]))


def _timm(name: str) -> Source:
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config

    def preprocessing(model: nn.Module) -> Preprocessing:
        config = resolve_data_config(model=model)
        height, width = config["input_size"][1:]
        return Preprocessing(
            int(height / config["crop_pct"]),
            (height, width),
            config["interpolation"],
            tuple(config["mean"]),
            tuple(config["std"]),
            squash=config["crop_mode"] == "squash",
        )

    def labels(model: nn.Module) -> tuple[str, ...]:
        subset = infer_imagenet_subset(model)
        if subset is None:
            return ()
        names = ImageNetInfo(subset)
        return tuple(names.index_to_description(index) for index in range(names.num_classes()))

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        with hub_or_cache() if pretrained else nullcontext():
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        return model

    return Source(f"timm/{name}", create, preprocessing, labels)


def _assumed(factory: str) -> str:
    return (
        f"{factory}() returns a module, which does not say what it takes: photographs are scaled to 256, cropped to "
        "224 x 224 and normalised as for ImageNet. If it was trained otherwise, or to name its classes, let it return "
        "integrative_cam.models.Network(name, module, Preprocessing(...), labels)."
    )


def _from_file(name: str) -> Network:
    path, _, factory = name.rpartition(":")
    file = Path(path)
    if not is_file(file):
        raise ModelError(f"model {name!r}: no such file {file}.")
    # Named by its path, so that it hides no other module.
    spec = importlib.util.spec_from_file_location(str(file.absolute()), file)
    if spec is None or spec.loader is None:
        raise ModelError(f"model {name!r}: {file} cannot be imported.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
    try:
        spec.loader.exec_module(module)
        make = getattr(module, factory, None)
        if not callable(make):
            raise ModelError(f"model {name!r}: {file} has no function {factory!r}.")
        made = make()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"model {name!r}: {type(error).__name__} in {file}: {error}") from error
    if isinstance(made, Network):
        return replace(made, model=made.model.eval())
    if isinstance(made, nn.Module):
        return Network(name, made.eval(), Preprocessing(), notes=(_assumed(factory),))
    raise ModelError(f"model {name!r}: {factory}() must return a torch.nn.Module, but returned {type(made).__name__}.")
