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
from ..explanation import SeenRegion, remember_views

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
TIFF_TAGS = (339, 258, 262, 284)
"""SampleFormat (2: signed), BitsPerSample, PhotometricInterpretation (0: white is 0), PlanarConfiguration."""
SCALED_WHEN_READ = ("PPM", "JPEG2000")
"""The formats that say their white; Pillow scales integers of theirs of more than 8 bits to 16."""
UNSURE = 2**14 - 1
"""Of 16 bits: where no value is above, it may be data of 10, 12 or 14 bits, as of scanners and sensors."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Endings of the files in a folder that are taken for images."""
is_file, is_folder = os.path.isfile, os.path.isdir
"""Not Path's methods, which fail for names that no file can have."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


def read_image(path: str | Path, value_range: tuple[float, float] | None = None) -> Image.Image:
    """Read an image file as 8-bit RGB, turned upright by its EXIF orientation; transparency over white.

    >>> read_image("scan.tif", value_range=(-1000, 400))     # Hounsfield units: -1000 becomes black, 400 white

    Args:
        path: the file.
        value_range: of greyscale files with more than 8 bits: the values that become black and white; those beyond are
            clipped. By default such a file is read only where its range is known: of 16-bit integers that use their
            range, and where the format declares it. Other files are read as they are.

    Raises:
        ImageError: no such file, not an image, truncated, over MAX_PIXELS, or deeper than 8 bits with a range that
            must be said: floating-point, signed and 32-bit values, and 16 bits that hold no more than 14.
    """
    with _opened(Path(path)) as image:
        return as_rgb(image, value_range)


def decode_image(
    content: bytes, name: str, formats: tuple[str, ...] = FORMATS, max_pixels: int | None = None
) -> Image.Image:
    """`read_image` of a file's content in one of the formats; `name` stands for the file in errors."""
    with _opened(name, BytesIO(content), formats, max_pixels) as image:
        return as_rgb(image)


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
            try:
                yield image
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from None
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
            raise ImageError(f"must hold one class index per pixel (palette or greyscale), but is {image.mode}.")
        return torch.from_numpy(np.array(image)).long()


def as_rgb(image: Image.Image, value_range: tuple[float, float] | None = None) -> Image.Image:
    """A Pillow image of any mode as 8-bit RGB, turned upright by its EXIF orientation; transparency over white.

    For `value_range` see `read_image`.

    Raises:
        ImageError: deeper than 8 bits, and its range is not known.
    """
    layout = str(getattr(image, "tile", ""))  # empty once loaded
    formats, bits, photometric, planes = (_tag(image, tag) for tag in TIFF_TAGS)
    declared = image.format in SCALED_WHEN_READ
    image = ImageOps.exif_transpose(image)
    if is_deep(image):
        if value_range is None and image.mode != "F" and (declared or bits == (12,)):
            value_range = (0, 4095 if bits == (12,) else 65535)
        grey = _in_8_bits(image, value_range, sure=2 not in formats and 32 not in bits)
        # Where white is 0, Pillow inverts images of up to 8 bits only.
        return (ImageOps.invert(grey) if 0 in photometric else grey).convert("RGB")
    if 2 in formats:
        raise ImageError("the image holds signed 8-bit values; save it with 0 for black and 255 for white.")
    if 16 in bits and 2 in planes:
        raise ImageError("the image holds 16 bits in a plane per colour, which Pillow misreads; save it with 8 bits.")
    if (";16" in layout or 16 in bits) and np.asarray(image.convert("RGB")).max() <= UNSURE >> 8:
        raise ImageError(  # of colours, Pillow keeps the upper 8 bits alone
            f"the image holds colours in 16 bits, but none above {UNSURE}, and does not say which value is white; save "
            "it with 8 bits per channel."
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """The numbers that a TIFF file says of itself under a tag; none for other files."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def is_deep(image: Image.Image) -> bool:
    """Whether the image is greyscale with more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _in_8_bits(image: Image.Image, value_range: tuple[float, float] | None, sure: bool) -> Image.Image:
    """A deep greyscale image with 8 bits. `sure`: integers of it are known to be 16 bits without sign."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("the image holds NaN or infinite values; replace them first.")
    least, largest = float(values.min()), float(values.max())
    if value_range is None:
        # Data of 10, 12 or 14 bits is often stored in 16: from 0 on or, if it was signed, around 32768.
        uses_them = UNSURE < largest <= 65535 and not 0 < largest - least <= 4095
        if image.mode == "F" or not sure or least < 0 or not uses_them:
            kind = "floating-point numbers" if image.mode == "F" else "integers of more than 8 bits"
            raise ImageError(
                f"the image holds {kind}, from {least:.6g} to {largest:.6g}, and does not say which value is black and "
                "which is white. Say it in Python, integrative_cam.models.read_image(path, value_range=(black, white))"
                ", and save that with 8 bits where a file is needed."
            )
        value_range = (0, 65535)
    low, high = value_range
    if not low < high:
        raise ImageError(f"value_range must be (black, white) with black < white, but got {value_range}.")
    # Rounded down, as Pillow does with colours in 16 bits.
    return Image.fromarray(((values - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class View:
    """The part of an image that a network sees: as its input, and as a picture at the image's own resolution.

    `photograph` is the whole image as it is drawn, 8-bit RGB and upright. `region` is where the view lies in it, (left,
    top, right, bottom) in pixels, not rounded; it reaches beyond where the network's input is larger than the scaled
    image. Explanations of `tensor` know it, and pictures of them lie on the photograph where the network looked. A
    tensor that is computed from it, as by `torch.cat`, does not bring it along; then draw on the views:
    `explanation.plot(views)`.
    """

    tensor: Float[Tensor, "1 channel height width"]
    picture: Image.Image
    region: tuple[float, float, float, float]
    photograph: Image.Image

    @property
    def seen(self) -> SeenRegion:
        """`region`, with the photograph's size."""
        return SeenRegion(self.photograph.size, self.region)


@dataclass(frozen=True)
class Preprocessing:
    """Scale the shorter side to `resize`, crop the centre, scale values to [0, 1] and normalise.

    With `squash`, or where `resize` is a pair (height, width), both sides are scaled, whatever the image's shape.
    `mean` and `std` have 3 values for RGB and 1 for greyscale; with other numbers, such as 4 for RGB and near infrared,
    images must have as many bands.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False

    def __call__(self, image: Image.Image) -> View:
        """The network's view of an image.

        Args:
            image: of any mode; see `read_image` for those of more than 8 bits. Where the network takes another number
                of channels than 1 and 3, its bands, such as those of mode RGBA, are the channels.

        Raises:
            ImageError: not a Pillow image; so narrow that it would be scaled to more than MAX_PIXELS; deeper than 8
                bits, of an unknown range; or of another number of bands than the network takes.
        """
        if not isinstance(image, Image.Image):
            raise ImageError(
                f"image must be a Pillow image, such as read_image(path) gives, but got {type(image).__name__}."
            )
        photograph, bands = self._channels(image)
        width, height = photograph.size
        scaled, (left, top, right, bottom) = self._placed(photograph.size)
        resample = Image.Resampling[self.interpolation.upper()]
        # One by one: Pillow would multiply colours by what it takes for transparency.
        seen = [band.resize(scaled, resample).crop((left, top, right, bottom)) for band in bands]
        values = torch.from_numpy(np.stack([np.asarray(band, np.float32) for band in seen]) / 255)
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        across, down = width / scaled[0], height / scaled[1]
        region = (left * across, top * down, right * across, bottom * down)
        tensor = ((values - mean) / std)[None].contiguous()
        picture = photograph.crop((round(region[0]), round(region[1]), round(region[2]), round(region[3])))
        view = View(tensor, picture, region, photograph)
        remember_views(tensor, [view.seen])
        return view

    def _channels(self, image: Image.Image) -> tuple[Image.Image, tuple[Image.Image, ...]]:
        """The image as 8-bit RGB, and an 8-bit image for each channel that the network takes."""
        count, bands = len(self.mean), image.getbands()
        if count in (1, 3):
            photograph = as_rgb(image)
            return photograph, (photograph.convert("L"),) if count == 1 else photograph.split()
        if count != len(bands) or image.mode not in ("LA", "RGBA", "RGBX"):
            raise ImageError(
                f"the network takes {count} channels, but the image has {len(bands)} ({', '.join(bands)}). Give a "
                "Pillow image of mode RGBA for 4 channels or LA for 2, or call explain() with a tensor of your own."
            )
        image = ImageOps.exif_transpose(image)
        return image.convert("RGB"), image.split()

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
