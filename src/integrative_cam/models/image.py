"""From an image file to what a network takes, and back to the part of the photograph that it saw."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import ImageError, MissingExtraError

try:
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise MissingExtraError("Reading images", "models", error) from error

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MAX_PIXELS = 100_000_000
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, turned upright by its EXIF orientation; transparency over white.

    Raises:
        ImageError: no such file, not an image, truncated, or over MAX_PIXELS.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns at a limit of its own; ours refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{path}: {width} x {height} pixels is over the limit of {MAX_PIXELS // 10**6} megapixels; "
                    "scale it down first."
                )
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image.") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that can be read (PNG, JPEG, WebP, TIFF, ...).") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: over the limit of {MAX_PIXELS // 10**6} megapixels; scale it down first.") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: broken image file ({error}).") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # 16-bit greyscale; Pillow's own conversion would clip at 255.
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class View:
    """What a network sees of an image: `tensor` as its input, `picture` the same region at the image's resolution."""

    tensor: Float[Tensor, "1 channel height width"]
    picture: Image.Image


@dataclass(frozen=True)
class Preprocessing:
    """Scale the shorter side to `resize`, crop the centre, scale values to [0, 1] and normalise.

    `squash` scales both sides to `resize` instead. One mean per channel: 3 for RGB, 1 for greyscale.
    """

    resize: int = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False

    def __call__(self, image: Image.Image) -> View:
        """The network's view of an RGB image."""
        width, height = image.size
        shorter = min(width, height)
        # Rounded down, as torchvision and timm do.
        scaled = (int(self.resize * width / shorter), int(self.resize * height / shorter))
        if self.squash:
            scaled = (self.resize, self.resize)
        crop_height, crop_width = self.crop
        left, top = round((scaled[0] - crop_width) / 2), round((scaled[1] - crop_height) / 2)
        region = (left, top, left + crop_width, top + crop_height)
        resample = Image.Resampling[self.interpolation.upper()]
        seen = image.convert("RGB" if len(self.mean) == 3 else "L").resize(scaled, resample).crop(region)
        values = torch.from_numpy(np.array(seen, dtype=np.float32) / 255).reshape(crop_height, crop_width, -1)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        across, down = width / scaled[0], height / scaled[1]
        picture = image.crop(
            (round(left * across), round(top * down), round(region[2] * across), round(region[3] * down))
        )
        return View(((values - mean) / std).permute(2, 0, 1)[None].contiguous(), picture)
