"""What `icam run` reads images from: lists, tars, Parquet and Arrow files, what Hugging Face saved."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import harness
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

with harness.instrumented("tarfile", "csv"):
    from integrative_cam.models import Preprocessing
    from integrative_cam.run._archives import opened
    from integrative_cam.run._decode import Decoding, decode
    from integrative_cam.run._failures import RetryPolicy
    from integrative_cam.run._sources import open_source

PATIENCE = RetryPolicy(timeout=5, attempts=1, pause=0)
HOW = Decoding(Preprocessing(8, (8, 8)), PATIENCE, 0)
FOLDER = harness.WORK / "source"
KINDS = ("list.csv", "list.parquet", "images.parquet", "images.tar", "saved")


def picture() -> bytes:
    """A small PNG."""
    stored = io.BytesIO()
    Image.new("RGB", (6, 5), "red").save(stored, "PNG")
    return stored.getvalue()


def contents() -> dict[str, bytes]:
    """A right file of each kind."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("a.png", "b/c.png", "d.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))
    found = {"list.csv": b"file,label\na.png,1\nb/c.png,2\n", "images.tar": tar.getvalue()}
    for name, table in {
        "list.parquet": pa.table({"file": ["a.png", "b.png"]}),
        "images.parquet": pa.table({"image": [{"bytes": picture(), "path": None}, {"bytes": None, "path": "a.png"}]}),
    }.items():
        stored = io.BytesIO()
        pq.write_table(table, stored)
        found[name] = stored.getvalue()
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, pa.schema([("image", pa.binary())])) as writer:
        writer.write_batch(pa.record_batch({"image": [picture(), b""]}))
    return {**found, "saved": stream.getvalue()}


RIGHT = contents()
STATE = {"_data_files": [{"filename": "data-00000.arrow"}], "_indices_data_files": None}
ODD_TABLES = [
    *(pa.table({"file": each}) for each in ([1, 2], [None, "a"], [b"a"], [["a"]], ["a.png"] * 2)),
    *(pa.table({"file": [each]}) for each in ("s3://", "nowhere://x", "\0", "zip://a::b://")),
    *(pa.table({"image": [{"bytes": content, "path": path}]}) for content, path in ((5, "a"), ("x", 7), (None, None))),
    *(pa.table({"image": each}) for each in ([5], [b"", None])),
    *(pa.table({"image": [each]}) for each in ({"bytes": [1], "path": "x"}, {"bytes": b"", "path": 7})),
]


def attempt(data: bytes) -> None:
    """Alter a file, list the source, and decode what it holds."""
    choices = harness.chosen(data)
    kind = choices.PickValueInList(list(KINDS))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / "a.png").write_bytes(picture())
    content = harness.spoiled(RIGHT[kind], choices)
    if kind == "saved":
        place = FOLDER / "data"
        place.mkdir()
        (place / "data-00000.arrow").write_bytes(content)
        state = json.dumps(STATE).encode()
        state = harness.altered(STATE, choices) if choices.ConsumeBool() else harness.spoiled(state, choices)
        (place / "state.json").write_bytes(state)
    else:
        place = FOLDER / kind
        if kind.endswith(".parquet") and choices.ConsumeBool():
            stored = io.BytesIO()
            pq.write_table(choices.PickValueInList(ODD_TABLES), stored)
            content = stored.getvalue()
        place.write_bytes(content)
    source = open_source(str(place), 8, PATIENCE)
    for part in source.parts[:4]:
        with opened(part, PATIENCE) as items:
            for _, item in zip(range(4), items, strict=False):
                if not item.place.startswith(("http", "ftp", "s3", "gs")):
                    decode([item], HOW)


if __name__ == "__main__":
    harness.fuzz(attempt, harness.noise(20, 2, 20, 60))
