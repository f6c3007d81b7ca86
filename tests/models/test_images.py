"""Images deeper than 8 bits are read at a range that is known, or refused; channels are what the image holds."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from integrative_cam.app._photograph import photograph
from integrative_cam.errors import ImageError
from integrative_cam.models import Preprocessing, read_image
from integrative_cam.render import comparison, contour, overlay

RAMP = np.repeat(np.linspace(0, 1, 64)[None], 16, 0)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(path: Path, values: NDArray[np.generic], kind: int = UNSIGNED, white_is_zero: bool = False) -> Path:
    """An uncompressed greyscale TIFF file, little endian, with the type of number that `kind` says."""
    height, width = values.shape
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {256: width, 257: height, 258: values.itemsize * 8, 259: 1, 262: 0 if white_is_zero else 1}
    tags |= {273: 8, 277: 1, 278: height, 279: len(content), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    return path


def png(path: Path, values: NDArray[np.uint16], colours: int) -> Path:
    """A PNG file of 16 bits; `colours` is its colour type: 2 RGB, 4 grey and alpha, 6 RGB and alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colours, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def saved(path: Path, values: NDArray[np.generic]) -> Path:
    Image.fromarray(values).save(path)
    return path


def row_of(path: Path, value_range: tuple[float, float] | None = None) -> list[int]:
    """The read image's first row, which is grey."""
    read = np.asarray(read_image(path, value_range)).astype(int)
    assert (read == read[..., :1]).all()
    row: list[int] = read[0, :, 0].tolist()
    return row


@pytest.mark.parametrize(
    ("values", "kind", "lowest", "highest"),
    [
        ((RAMP * 0.9).astype(np.float32), FLOAT, "0", "0.9"),
        ((RAMP * 1000 - 500).astype(np.float32), FLOAT, "-500", "500"),
        ((RAMP * 3000 - 1000).astype(np.int16), SIGNED, "-1000", "2000"),
        ((RAMP * 30000).astype(np.int16), SIGNED, "0", "30000"),
        ((RAMP * 3500).astype(np.uint16), UNSIGNED, "0", "3500"),
        ((RAMP * 1000).astype(np.uint16), UNSIGNED, "0", "1000"),
        ((RAMP * 16000).astype(np.uint16), UNSIGNED, "0", "16000"),
        ((RAMP * 4000 + 31768).astype(np.uint16), UNSIGNED, "31768", "35768"),
        ((RAMP * 65535).astype(np.int32), SIGNED, "0", "65535"),
        ((RAMP * 65535).astype(np.uint32), UNSIGNED, "0", "65535"),
    ],
    ids=["unit", "float", "signed", "positive", "12 bits", "10 bits", "14 bits", "offset", "int32", "uint32"],
)
def test_of_an_unknown_range_nothing_is_guessed(
    values: NDArray[np.generic], kind: int, lowest: str, highest: str, tmp_path: Path
) -> None:
    path = tiff(tmp_path / "scan.tif", values, kind)
    said = rf"from {lowest} to {highest}, and does not say which value is black .* value_range=\(black, white\)"
    with pytest.raises(ImageError, match=f"scan.tif: the image holds .*{said}"):
        read_image(path)
    with pytest.raises(ImageError, match=said):
        photograph(path.read_bytes(), "scan.tif")
    # The whole ramp, once its range is said.
    low, high = float(values.min()), float(values.max())
    expected = [int(255 * (value - low) / (high - low)) for value in values[0].astype(float)]
    assert np.abs(np.subtract(row_of(path, (low, high)), expected)).max() <= 1
    assert len(set(expected)) == 64


def test_a_stated_range_clips(tmp_path: Path) -> None:
    values = np.array([[-2000, -1000, -300, 400, 3000]], np.int16)
    assert row_of(tiff(tmp_path / "scan.tif", values, SIGNED), (-1000, 400)) == [0, 0, 127, 255, 255]
    assert row_of(saved(tmp_path / "12.png", np.array([[0, 819, 4095]], np.uint16)), (0, 4095)) == [0, 51, 255]
    for wrong in ((1.0, 1.0), (5.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(ImageError, match=r"scan.tif: value_range must be \(black, white\)"):
            read_image(tmp_path / "scan.tif", wrong)
    holes = tiff(tmp_path / "holes.tif", np.array([[0.5, np.nan]], np.float32), FLOAT)
    for value_range in (None, (0.0, 1.0)):
        with pytest.raises(ImageError, match=r"holes.tif: the image holds NaN or infinite values"):
            read_image(holes, value_range)


def test_what_uses_or_states_its_range_is_read(tmp_path: Path) -> None:
    whole = (RAMP * 65535).astype(np.uint16)
    expected = [value // 257 for value in whole[0].tolist()]
    for path in (saved(tmp_path / "x.png", whole), saved(tmp_path / "x.tif", whole), tiff(tmp_path / "y.tif", whole)):
        assert row_of(path) == expected
    assert row_of(tiff(tmp_path / "negative.tif", whole, white_is_zero=True)) == [255 - value for value in expected]
    # 12 bits, as the file says.
    (tmp_path / "x.pgm").write_bytes(b"P5\n64 16\n4095\n" + (RAMP * 2000).astype(">u2").tobytes())
    assert np.abs(np.subtract(row_of(tmp_path / "x.pgm"), RAMP[0] * 2000 / 4095 * 255)).max() <= 1


def test_signed_values_of_eight_bits_are_refused(tmp_path: Path) -> None:
    """Pillow would read -1 as 255."""
    path = tiff(tmp_path / "x.tif", (RAMP * 200 - 100).astype(np.int8), SIGNED)
    with pytest.raises(ImageError, match=r"x.tif: the image holds signed 8-bit values"):
        read_image(path)


@pytest.mark.parametrize(("colours", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_in_sixteen_bits_use_them_or_are_refused(colours: int, channels: int, tmp_path: Path) -> None:
    def write(largest: int) -> Path:
        values = np.repeat((RAMP * largest).astype(np.uint16)[..., None], channels, 2)
        if channels in (2, 4):
            values[..., -1] = 65535  # opaque
        return png(tmp_path / "x.png", values, colours)

    assert row_of(write(65535)) == [value >> 8 for value in (RAMP * 65535).astype(np.uint16)[0].tolist()]
    with pytest.raises(ImageError, match=r"x.png: the image holds colours in 16 bits, but none above 16383"):
        read_image(write(4095))


def test_colours_in_planes_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    """Pillow reads them as planes of 8 bits, so that every row holds half of two."""
    plane = (RAMP * 65535).astype("<u2")
    data, count, height, width = plane.tobytes() * 3, 3, *plane.shape
    lists = {258: (count, "HHH", (16,) * 3), 273: (count, "III", tuple(8 + at * plane.nbytes for at in range(3)))}
    lists[279] = (count, "III", (plane.nbytes,) * 3)
    beyond, places = b"", {}
    for tag, (_, form, values) in lists.items():
        places[tag] = 8 + len(data) + len(beyond)
        beyond += struct.pack(f"<{form}", *values)
    single = {256: width, 257: height, 259: 1, 262: 2, 277: count, 278: height, 284: 2}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in single.items()]
    entries += [struct.pack("<HHII", tag, 3 if "H" in lists[tag][1] else 4, count, at) for tag, at in places.items()]
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data) + len(beyond))
    listed = struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=lambda entry: entry[1::-1])) + bytes(4)
    (tmp_path / "x.tif").write_bytes(head + data + beyond + listed)
    assert Image.open(tmp_path / "x.tif").size == (64, 16)
    with pytest.raises(ImageError, match=r"x.tif: the image holds 16 bits in a plane per colour"):
        read_image(tmp_path / "x.tif")


def seen(image: Image.Image, channels: int) -> torch.Tensor:
    return Preprocessing(8, (8, 8), mean=(0.0,) * channels, std=(1.0,) * channels)(image).tensor[0]


def test_channels_are_what_the_image_holds_or_none() -> None:
    bands = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    bands[..., 3] = [[255] * 8] * 4 + [[0] * 8] * 4  # near infrared; Pillow takes it for transparency
    four = seen(Image.fromarray(bands, "RGBA"), 4)
    np.testing.assert_allclose(four.permute(1, 2, 0), bands / 255, atol=1e-6)
    np.testing.assert_allclose(
        seen(Image.fromarray(bands[..., 2:], "LA"), 2).permute(1, 2, 0), bands[..., 2:] / 255, atol=1e-6
    )
    # Where it is transparency, colours below it are not seen.
    assert (seen(Image.fromarray(bands, "RGBA"), 3)[:, 4:] == 1).all()
    assert (seen(Image.fromarray(bands, "RGBA"), 1)[:, 4:] == 1).all()
    for channels, mode, said in (
        (4, "RGB", "3 \\(R, G, B"),
        (2, "RGBA", "4 \\(R, G, B, A"),
        (2, "L", "1 \\(L"),
        (4, "CMYK", "4 \\(C, M"),
    ):
        with pytest.raises(ImageError, match=f"the network takes {channels} channels, but the image has {said}"):
            seen(Image.new(mode, (8, 8)), channels)


def test_a_photograph_that_is_turned_by_its_exif_is_seen_and_drawn_upright(tmp_path: Path) -> None:
    photograph = Image.new("RGB", (12, 12), "white")
    photograph.paste("black", (0, 0, 12, 6))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    photograph.save(tmp_path / "x.png", exif=exif)
    preprocessing = Preprocessing(12, (12, 12), mean=(0.0,) * 3, std=(1.0,) * 3)
    for opened in (Image.open(tmp_path / "x.png"), read_image(tmp_path / "x.png")):
        view = preprocessing(opened)
        assert view.tensor[0, 0].mean(1).tolist() == [1] * 6 + [0] * 6
        drawn = overlay(torch.zeros(12, 12), opened)
        assert np.array_equal(np.asarray(drawn), np.asarray(view.photograph))
    exif[0x0112] = 6  # taken with the camera turned: to be shown turned clockwise
    Image.new("RGB", (40, 20)).save(tmp_path / "side.png", exif=exif)
    turned = Image.open(tmp_path / "side.png")
    spot = torch.zeros(40, 20)
    spot[30:, :] = 1  # at the bottom of the upright photograph
    lowest = [
        np.asarray(overlay(spot, turned)).max(2),
        np.asarray(contour(spot, turned)).max(2),
        np.asarray(comparison({"spot": spot}, turned).axes[1].images[0].get_array()).max(2),
    ]
    for values in lowest:
        assert values.shape[0] == 2 * values.shape[1]
        rows = np.nonzero(values > 100)[0] / len(values)
        assert rows.min() > 0.7


def test_a_pillow_image_in_floats_is_not_black() -> None:
    with pytest.raises(ImageError, match=r"floating-point numbers, from 0 to 1, and does not say"):
        seen(Image.fromarray(RAMP.astype(np.float32)), 3)


def test_the_tensor_can_be_stored_and_loaded_without_its_view(tmp_path: Path) -> None:
    """It stays a plain tensor: what it carries along is numbers."""
    tensor = Preprocessing(8, (8, 8))(Image.new("RGB", (9, 8))).tensor
    assert type(tensor) is torch.Tensor
    torch.save(tensor, tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), tensor)
