"""Files beside photographs: label files, lists with labels, annotations of boxes, masks of classes."""

from __future__ import annotations

import io
from collections.abc import Iterator

import harness
import numpy as np
from PIL import Image

with harness.instrumented("csv", "xml"):
    import torch

    from integrative_cam.cli._explain import _labels, _slug
    from integrative_cam.evaluate._dataset import objects_in, read_boxes, read_dataset, target_of
    from integrative_cam.models import Preprocessing
    from integrative_cam.models._image import read_classes
    from integrative_cam.reports import read_truth
    from integrative_cam.reports._truth import stands_for

FILE = harness.WORK / "list"
VIEW = Preprocessing(16, (12, 12))


def attempt(data: bytes) -> None:
    """The first byte says as what the rest is read."""
    kind, content = data[:1], data[1:]
    if kind == b"c":
        listed = FILE.with_suffix(".csv")
        listed.write_bytes(content)
        for sample in read_dataset(listed):
            stands_for(sample.label, 1, "cat, tabby", 1000)
        read_truth(str(listed))
    elif kind == b"x":
        FILE.write_bytes(content)
        for name, boxes in read_boxes(FILE, (40, 30)).items():
            seen = VIEW.boxes(boxes, (40, 30))
            assert ((seen >= 0) & seen.isfinite()).all()
            assert boxes.isfinite().all(), boxes
            target_of(name, ("cat", "dog"), torch.zeros(2))
    elif kind == b"m":
        FILE.write_bytes(content)
        objects_in(VIEW.classes(read_classes(FILE)))
    else:
        FILE.write_bytes(content)
        for label in _labels(FILE):
            assert set(_slug(label)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def seeds() -> Iterator[bytes]:
    """A right file of each kind, and known tricks."""
    yield b"cfile,label\na.png,1\nb/c.png,tabby\n"
    yield b"clabel\n1\n"
    yield b"cfile\n\n\xff\n"
    yield b'cfile,label\na\n"b""",--1\nc,\xc2\xb2\n'
    box = (
        "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>"
    )
    size = "<size><width>40</width><height>30</height></size>"
    for left in ("1", "nan", "-inf", "1e400", "9" * 5000, ""):
        yield f"x<annotation>{size}{box.format(left)}</annotation>".encode()
    yield b'x<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    yield b"x" + b"<a>" * 2000
    stored = io.BytesIO()
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(stored, "PNG")
    yield b"m" + stored.getvalue()
    yield b"lcat\ndog, hound\n[/x]\n"


if __name__ == "__main__":
    harness.fuzz(attempt, seeds())
