"""Image files: as `icam explain`, `icam run` and the page read them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import harness

with harness.instrumented("PIL"):
    import numpy as np
    from PIL import Image, ImageSequence  # noqa: F401

    from integrative_cam.app import _photograph as page
    from integrative_cam.errors import ImageError
    from integrative_cam.models import Preprocessing
    from integrative_cam.models import _image as reading
    from integrative_cam.run._decode import Decoding, Sample, _sample
    from integrative_cam.run._failures import Failure, RetryPolicy

# Small limits are soon reached, and cheap.
reading.MAX_PIXELS = page.MAX_PIXELS = 2**20
HOW = Decoding(Preprocessing(32, (28, 28)), RetryPolicy(), thumbnail=16)


def attempt(data: bytes) -> None:
    """Read it in three ways; what is read is upright RGB within the limit, or an error says why not."""
    found = _sample("x", data, HOW)
    assert isinstance(found, Sample | Failure)
    if isinstance(found, Sample):
        assert found.values.shape == (3, 28, 28)
        assert np.isfinite(found.values).all()
    try:
        shown = page.photograph(data, "x").shown
        assert (shown.mode, max(shown.size) <= page.SHOWN) == ("RGB", True)
    except ImageError:
        pass
    image = reading.decode_image(data, "x")
    assert (image.mode, image.width * image.height <= reading.MAX_PIXELS) == ("RGB", True)


def seeds() -> Iterator[bytes]:
    """A few pixels in every format and mode that Pillow writes, turned and animated ones among them."""
    draw = np.random.default_rng(0)
    colours = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for form, modes in {
        "PNG": ("RGB", "RGBA", "P", "LA", "L", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("P", "L"),
        "TIFF": ("RGB", "CMYK", "F", "I;16", "1", "LAB"),
        "BMP": ("RGB", "P", "1"),
        "AVIF": ("RGB",),
        "PPM": ("RGB", "1"),
        "ICO": ("RGBA",),
        "TGA": ("RGB",),
        "JPEG2000": ("RGB",),
        "EPS": ("RGB",),
        "PDF": ("RGB",),
        "ICNS": ("RGBA",),
        "PCX": ("RGB",),
        "SGI": ("RGB",),
        "DDS": ("RGB",),
        "MPO": ("RGB",),
    }.items():
        for mode in modes:
            stored = io.BytesIO()
            image = Image.fromarray(np.full((5, 7), 30_000, np.uint16)) if mode == "I;16" else colours.convert(mode)
            try:
                image.save(stored, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}))
            except (OSError, ValueError, KeyError):
                continue  # a build of Pillow without that format
            yield stored.getvalue()
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        stored = io.BytesIO()
        colours.save(stored, form, save_all=True, append_images=[colours.rotate(90), colours], duration=40)
        yield stored.getvalue()


if __name__ == "__main__":
    harness.fuzz(attempt, seeds())
