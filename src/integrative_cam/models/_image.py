"""Image files, preprocessing for a network, and the part of the photograph that the network sees."""

from __future__ import annotations

import os.path
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import ImageError, MissingExtraError, first_line

try:
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise MissingExtraError.of("Reading images", "models", error) from error

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

MAX_PIXELS = 100_000_000
# Older versions of Pillow know no AVIF.
_AVIF = ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()
PHOTOGRAPHS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *_AVIF)
FORMATS = (*PHOTOGRAPHS, "PPM", "JPEG2000")
"""The formats that are read. Some of Pillow's other decoders start programs, as that of EPS starts Ghostscript."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Endings of the files in a folder that are taken for images."""
is_file, is_folder = os.path.isfile, os.path.isdir
"""Not Path's methods, which fail for names that no file can have."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, turned upright by its EXIF orientation; transparency over white.

    Raises:
        ImageError: no such file, not an image, truncated, or over MAX_PIXELS.
    """
    with _opened(Path(path)) as image:
        return upright(image)


def decode_image(
    content: bytes, name: str, formats: tuple[str, ...] = FORMATS, max_pixels: int | None = None
) -> Image.Image:
    """`read_image` of a file's content in one of the formats; `name` stands for the file in errors."""
    with _opened(name, BytesIO(content), formats, max_pixels) as image:
        return upright(image)


def encode_image(image: Image.Image, format: str, **options: int) -> bytes:
    """The content of a file of the image; the options are Pillow's, such as quality."""
    content = BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


@contextmanager
def _opened(
    path: Path | str,
    content: BytesIO | None = None,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int | None = None,
) -> Iterator[Image.Image]:
    """Open a file, or its content, with Pillow; any error, also within the block, becomes an ImageError of one line."""
    max_pixels = max_pixels or MAX_PIXELS
    try:
        with warnings.catch_warnings():
            # Pillow warns at a limit of its own; we raise an error at ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(content or path, formats=formats)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{path}: {width} x {height} pixels is over the limit of {max_pixels // 10**6} megapixels; "
                    "scale it down first."
                )
            image.load()
            yield image
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise ImageError(
            f"{path}: is a folder, not an image; give its files, such as {path}/*.jpg, or the folder to icam run."
        ) from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that can be read (PNG, JPEG, WebP, TIFF, ...).") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: over the limit of {max_pixels // 10**6} megapixels; scale it down first.") from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders fail in many ways
        raise ImageError(f"{path}: broken image file ({first_line(error)}).") from None


def read_classes(path: str | Path) -> Int[Tensor, "height width"]:
    """Read a map of class indices, 0 to 255, from a palette or greyscale image file, such as a VOC mask.

    Raises:
        ImageError: no such file, not an image with one 8-bit channel, truncated, or over MAX_PIXELS.
    """
    with _opened(Path(path)) as image:
        if image.mode not in ("P", "L"):
            raise ImageError(
                f"{path}: must hold one class index per pixel (palette or greyscale), but is {image.mode}."
            )
        return torch.from_numpy(np.array(image)).long()


def upright(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, turned upright by its EXIF orientation; transparency over white."""
    image = ImageOps.exif_transpose(image)
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
    """The part of an image that a network sees: as its input, and as a picture at the image's own resolution.

    `region` is where it lies in the image, (left, top, right, bottom) in pixels, not rounded. Where the network's input
    is larger than the scaled image, it reaches beyond the image.
    """

    tensor: Float[Tensor, "1 channel height width"]
    picture: Image.Image
    region: tuple[float, float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """Scale the shorter side to `resize`, crop the centre, scale values to [0, 1] and normalise.

    With `squash`, or where `resize` is a pair (height, width), both sides are scaled, whatever the image's shape.
    `mean` and `std` have 3 values for RGB and 1 for greyscale.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False

    def __call__(self, image: Image.Image) -> View:
        """The network's view of an RGB image.

        Raises:
            ImageError: not a Pillow image, or so narrow that it would be scaled to more than MAX_PIXELS.
        """
        if not isinstance(image, Image.Image):
            raise ImageError(
                f"image must be a Pillow image, such as read_image(path) gives, but got {type(image).__name__}."
            )
        width, height = image.size
        scaled, (left, top, right, bottom) = self._placed(image.size)
        resample = Image.Resampling[self.interpolation.upper()]
        seen = (
            image.convert("RGB" if len(self.mean) == 3 else "L")
            .resize(scaled, resample)
            .crop((left, top, right, bottom))
        )
        values = torch.from_numpy(np.array(seen, dtype=np.float32) / 255).reshape(*self.crop, -1)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        across, down = width / scaled[0], height / scaled[1]
        region = (left * across, top * down, right * across, bottom * down)
        picture = image.crop((round(region[0]), round(region[1]), round(region[2]), round(region[3])))
        return View(((values - mean) / std).permute(2, 0, 1)[None].contiguous(), picture, region)

    def boxes(self, boxes: Float[Tensor, "box 4"], size: tuple[int, int]) -> Float[Tensor, "seen 4"]:
        """Boxes in pixels of the network's input, cut at its borders; boxes outside of it are left out.

        Args:
            boxes: (left, top, right, bottom) in pixels of the image, whose area reaches from 0 to width and height.
            size: (width, height) of the image.
        """
        scaled, (left, top, right, bottom) = self._placed(size)
        scale = torch.tensor([scaled[0] / size[0], scaled[1] / size[1]] * 2, dtype=torch.float64)
        moved = boxes.double() * scale - torch.tensor([left, top] * 2, dtype=torch.float64)
        # The input may be larger than the scaled image.
        limit = torch.tensor([right - left, bottom - top] * 2, dtype=torch.float64)
        seen = moved.clamp_min(0).minimum(limit)
        return seen[(seen[:, 2:] > seen[:, :2]).all(1)].float()

    def classes(self, classes: Int[Tensor, "height width"]) -> Int[Tensor, "crop_height crop_width"]:
        """A map of class indices, 0 to 255, scaled and cropped like the image: nearest pixels, 0 beyond it."""
        picture = Image.fromarray(classes.numpy().astype(np.uint8))
        scaled, region = self._placed(picture.size)
        return torch.from_numpy(np.array(picture.resize(scaled, Image.Resampling.NEAREST).crop(region))).long()

    def _placed(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """The scaled image's (width, height), and the crop in it: (left, top, right, bottom)."""
        width, height = size
        shorter = min(width, height)
        if isinstance(self.resize, tuple):
            scaled = (self.resize[1], self.resize[0])
        elif self.squash:
            scaled = (self.resize, self.resize)
        else:
            # Rounded down, as torchvision and timm do.
            scaled = (int(self.resize * width / shorter), int(self.resize * height / shorter))
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise ImageError(
                f"An image of {width} x {height} pixels would be scaled to {scaled[0]} x {scaled[1]}, which is over "
                f"the limit of {MAX_PIXELS // 10**6} megapixels; cut it into pieces that are less narrow."
            )
        crop_height, crop_width = self.crop
        left, top = round((scaled[0] - crop_width) / 2), round((scaled[1] - crop_height) / 2)
        return scaled, (left, top, left + crop_width, top + crop_height)
