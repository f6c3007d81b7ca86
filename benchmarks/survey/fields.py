"""Networks of other fields by name, made with random weights: what they take, and where their maps should have axes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS = ("channel", "colour", "class")
"""Names of input axes that a map does not have."""


@dataclass(frozen=True)
class Network:
    """A network and how it is called.

    Attributes:
        model: with random weights.
        shape: of one input, without the batch axis.
        axes: their names; a map has all of them but those in `CHANNELS`.
        read: the tensor of one sample's output from which a score is made.
        whole: axes that the network sums over at once, so that a map need not tell places along them apart.
        others: further inputs, by name; the first one is then the argument `first`.
    """

    model: nn.Module
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    read: Callable[[Any], Tensor] = lambda output: output
    whole: tuple[str, ...] = ()
    first: str = ""
    others: Mapping[str, Tensor] | None = None

    @property
    def space(self) -> tuple[int, ...]:
        """The axes of the batch of inputs that the map should have."""
        return tuple(at for at, name in enumerate(self.axes, 1) if name not in CHANNELS)

    def called_with(self, images: Tensor) -> Any:
        """The model's inputs."""
        return {self.first: images, **self.others} if self.others else images


_IMAGE = ("channel", "height", "width")
_VOLUME = ("channel", "depth", "height", "width")
_CLIP = ("channel", "time", "height", "width")
_EEG = ("electrode", "time")


def _of_braindecode(name: str, **options: Any) -> Network:
    import braindecode.models

    model = getattr(braindecode.models, name)(n_chans=22, n_outputs=4, n_times=1000, **options)
    return Network(model, (22, 1000), _EEG, whole=("electrode",))


def _chest() -> Network:
    import torchxrayvision

    model = torchxrayvision.models.DenseNet(weights=None, num_classes=18)
    # As of its trained networks: without thresholds, the outputs are not rescaled.
    model.op_threshs = torch.linspace(0.1, 0.6, 18)
    return Network(model, (1, 224, 224), _IMAGE)


def _monai(name: str) -> Network:
    import monai.networks.nets as nets

    if name == "DenseNet121":
        return Network(nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=3), (1, 48, 48, 48), _VOLUME)
    if name == "SegResNet":
        return Network(
            nets.SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8), (1, 48, 48, 48), _VOLUME
        )
    return Network(nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12), (1, 64, 32, 32), _VOLUME)


def _unet() -> Network:
    import segmentation_models_pytorch

    model = segmentation_models_pytorch.Unet(
        "resnet18", encoder_weights=None, in_channels=1, classes=1, aux_params={"classes": 3}
    )
    return Network(model, (1, 128, 128), _IMAGE, read=lambda output: output[0])


def _ultralytics(kind: str, config: str) -> Network:
    from ultralytics.nn import tasks

    if kind == "classify":
        # Probabilities and logits: the model's output in evaluation mode.
        model = tasks.ClassificationModel(config, nc=10, verbose=False)
        return Network(model, (3, 160, 160), _IMAGE, read=lambda output: output[1])
    detector = {"detect": tasks.DetectionModel, "segment": tasks.SegmentationModel}[kind](config, nc=5, verbose=False)
    boxes = (lambda output: output[0][4:9]) if kind == "detect" else (lambda output: output[0][0][4:9])
    return Network(detector, (3, 160, 160), _IMAGE, read=boxes)


def _open_clip(name: str) -> Network:
    import open_clip

    return Network(open_clip.create_model(name), (3, 224, 224), _IMAGE, read=lambda output: output[0])


def _keras(name: str) -> Network:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    return Network(model, (96, 96, 3), ("height", "width", "channel"))


def _transformers(name: str) -> Network:
    import transformers as t

    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    logits: Callable[[Any], Tensor] = lambda output: output.logits  # noqa: E731
    if name == "AST":
        ast = t.ASTConfig(**small, num_mel_bins=64, max_length=200, num_labels=5)
        return Network(t.ASTForAudioClassification(ast), (200, 64), ("time", "mel"), logits)
    if name in ("wav2vec2", "Conformer"):
        kind = t.Wav2Vec2Config if name == "wav2vec2" else t.Wav2Vec2ConformerConfig
        audio = kind(**small, conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
        head = (
            t.Wav2Vec2ForSequenceClassification if name == "wav2vec2" else t.Wav2Vec2ConformerForSequenceClassification
        )
        return Network(head(audio), (16000,), ("time",), logits)
    if name.startswith("SegFormer"):
        segformer = t.SegformerConfig(
            hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=32, num_labels=3
        )
        head = t.SegformerForSemanticSegmentation if "segment" in name else t.SegformerForImageClassification
        return Network(head(segformer), (3, 128, 128), _IMAGE, logits)
    if name == "DETR":
        backbone = t.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 24, 32, 48],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage4"],
        )
        detr = t.DetrConfig(
            backbone_config=backbone,
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            num_queries=10,
            num_labels=5,
        )
        return Network(t.DetrForObjectDetection(detr), (3, 160, 160), _IMAGE, logits)
    vit = t.ViTConfig(**small, image_size=128, patch_size=16, num_labels=5)
    return Network(t.ViTForImageClassification(vit), (3, 128, 128), _IMAGE, logits)


def _video(name: str) -> Network:
    from torchvision.models import video

    frames = 16 if name.startswith("mvit") else 8
    side = 224 if name.startswith("mvit") else 112
    return Network(getattr(video, name)(num_classes=10), (3, frames, side, side), _CLIP)


NETWORKS: dict[str, Callable[[], Network]] = {
    **{
        f"braindecode/{name}": lambda name=name: _of_braindecode(name)
        for name in ("ShallowFBCSPNet", "Deep4Net", "EEGNet", "ATCNet", "EEGConformer")
    },
    "torchxrayvision/DenseNet": _chest,
    **{f"monai/{name}": lambda name=name: _monai(name) for name in ("DenseNet121", "SegResNet", "SwinUNETR")},
    "segmentation_models_pytorch/Unet": _unet,
    "ultralytics/yolo11n-cls": lambda: _ultralytics("classify", "yolo11n-cls.yaml"),
    "ultralytics/yolo11n": lambda: _ultralytics("detect", "yolo11n.yaml"),
    "ultralytics/yolo11n-seg": lambda: _ultralytics("segment", "yolo11n-seg.yaml"),
    "open_clip/RN50": lambda: _open_clip("RN50"),
    "open_clip/ViT-B-32": lambda: _open_clip("ViT-B-32"),
    **{f"keras/{name}": lambda name=name: _keras(name) for name in ("MobileNetV2", "ResNet50", "EfficientNetB0")},
    **{
        f"transformers/{name}": lambda name=name: _transformers(name)
        for name in ("AST", "wav2vec2", "Conformer", "SegFormer", "SegFormer-segment", "DETR", "ViT")
    },
    **{f"torchvision/{name}": lambda name=name: _video(name) for name in ("r3d_18", "swin3d_t", "mvit_v2_s")},
}
"""The networks, by the library that has them and their name there."""
