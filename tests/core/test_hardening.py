"""Odd images, broken files, wild calls: an error that says what is wrong, or the right answer, in bounded memory.

Most files and names here once ended in something else than a CamError, as the harnesses in fuzz/ found.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples
from PIL import Image
from random_networks import drawn, outcome
from running import job, pictures
from test_files import small, write_onnx
from torch import Tensor, nn

from integrative_cam import CamError, Explanation, explain
from integrative_cam.app._guard import Guard, holds_address
from integrative_cam.app._photograph import photograph
from integrative_cam.errors import ExplanationError, ImageError, InputError, ModelError, TapError, TargetError
from integrative_cam.evaluate._dataset import read_boxes, read_dataset
from integrative_cam.evaluate._evaluation import _stored_rows
from integrative_cam.models import Network, Preprocessing, build, load, read_image
from integrative_cam.models._weights import classes_in, fill, read_weights
from integrative_cam.query import Prediction, Question, resolve_targets
from integrative_cam.reports import cases_of_explanations, read_truth
from integrative_cam.reports._truth import stands_for
from integrative_cam.run import Results, RetryPolicy, run
from integrative_cam.run._archives import Item, opened
from integrative_cam.run._decode import Decoding, Sample, decode
from integrative_cam.run._sources import filesystem, open_source
from integrative_cam.run._store import Store

PATIENCE = RetryPolicy(timeout=5, attempts=1, pause=0)
VIEW = Preprocessing(32, (28, 28))
LONG = "9" * 5000

pytestmark = pytest.mark.slow


# Images.


def noise(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((48, 32), Image.Resampling.NEAREST)


def animated(folder: Path, kind: str) -> Path:
    """Three pictures, the first of them `noise()`."""
    file = folder / f"moving.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    noise().save(file, save_all=True, append_images=[noise(1), noise(2)], duration=40, **options)
    return file


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_of_an_animation_the_first_picture_is_read(kind: str, tmp_path: Path) -> None:
    file = animated(tmp_path, kind)
    assert Image.open(file).n_frames == 3
    off = np.abs(np.asarray(read_image(file)).astype(int) - np.asarray(noise()))
    assert off.mean() < 8  # a GIF has 256 colours; the other pictures differ by 85
    assert np.array_equal(np.asarray(photograph(file.read_bytes(), "x").shown), np.asarray(read_image(file)))


def test_colours_for_print_become_those_of_the_screen(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert read_image(tmp_path / "red.tif").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["png", "gif"])
def test_a_transparent_colour_of_a_palette_is_white(form: str, tmp_path: Path) -> None:
    indices = Image.fromarray(np.array([[0, 1]] * 2, np.uint8), "L").convert("P")
    indices.putpalette([10, 20, 30, 200, 0, 0] + [0] * 762)
    indices.save(tmp_path / f"x.{form}", transparency=0)
    found = read_image(tmp_path / f"x.{form}")
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_sixteen_bits_keep_their_upper_half(tmp_path: Path) -> None:
    deep = np.array([[0, 257 * 7, 257 * 200 + 250, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name))[0, :, 0], [0, 7, 200, 255])


def test_the_ending_of_a_name_does_not_count(tmp_path: Path) -> None:
    noise().save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.jpg")), np.asarray(noise()))


def unreadable(folder: Path) -> dict[str, str]:
    """File names, each with what is said of it."""
    (folder / "empty.png").write_bytes(b"")
    noise().save(folder / "whole.jpg")
    (folder / "torn.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:700])
    (folder / "whole.jpg").unlink()
    (folder / "here.png").symlink_to("there.png")
    (folder / "there.png").symlink_to("here.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    Image.new("1", (1, 20_000)).save(folder / "narrow.png")
    noise().save(folder / "program.eps")
    (folder / "program.eps").rename(folder / "program.png")
    return {
        "empty.png": "not an image",
        "torn.jpg": "broken image file",
        "here.png": "link",
        "there.png": "link",
        "huge.png": "over the limit of 100 megapixels",
        "narrow.png": "1 x 20000 pixels would be scaled to 256 x 5120000",
        "program.png": "not an image",
    }


def test_a_decoders_own_error_is_no_crash(tmp_path: Path) -> None:
    pytest.importorskip("PIL.AvifImagePlugin", reason="needs Pillow 11.3")
    noise().save(tmp_path / "x.avif")
    whole = (tmp_path / "x.avif").read_bytes()
    (tmp_path / "x.avif").write_bytes(whole[:-20] + b"\xff" * 20)  # Pillow's RuntimeError
    with pytest.raises(ImageError, match=r"x.avif: broken image file \(Failed to decode"):
        read_image(tmp_path / "x.avif")


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is started fails the test; Pillow starts Ghostscript for EPS."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, no_programs: None) -> None:
    for name, message in unreadable(tmp_path).items():
        with pytest.raises(ImageError, match=message):
            Preprocessing()(read_image(tmp_path / name))
        if not name.startswith(("here", "there", "narrow")):
            with pytest.raises(ImageError):
                photograph((tmp_path / name).read_bytes(), name)


COMMAND = "import sys; from integrative_cam.cli import main; sys.argv = ['icam', *sys.argv[1:]]; main()"


def icam(*words: object) -> tuple[int, str, str, int]:
    """Exit code, standard output and error of the command, and its peak memory in MiB."""
    # Not getrusage's, which counts what the parent held when it forked.
    told = "import atexit, re, sys; status = lambda: open('/proc/self/status').read()\n"
    told += "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) // 1024\n"
    told += "atexit.register(lambda: print('PEAK', peak(), file=sys.stderr))\n"
    command = [sys.executable, "-c", told + COMMAND, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    error, _, peak = done.stderr.rpartition("PEAK")
    return done.returncode, done.stdout, error, int(peak)


def test_the_command_names_what_it_cannot_read_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "folder.png").mkdir(parents=True)
    bad = {**unreadable(folder), "folder.png": "is a folder"}
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    animated(folder, "gif")
    network = Path(__file__).parents[1] / "running.py"
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(network.parent)!r})\n"
        "from running import Tiny\nfrom integrative_cam.models import Network, Preprocessing\n"
        "def net(): return Network('tiny', Tiny().eval(), Preprocessing())\n"
    )
    files = sorted(folder.iterdir())
    model = f"{tmp_path}/net.py:net"
    code, _, error, peak = icam("explain", *files, "--model", model, "--out", tmp_path / "out")
    lines = [line for line in error.splitlines() if line.startswith("icam: ")]
    assert code == 1, error
    for name, message in bad.items():
        assert any(name in line and message in line for line in lines), (name, lines)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "moving"}
    assert peak < 1500  # 400 megapixels would be 1200 MiB beyond what is imported
    code, _, error, _ = icam(
        "run", folder, "--model", model, "--out", tmp_path / "run", "--workers", 0, "--decoders", 0
    )
    assert code == 1, error
    results = Results(str(tmp_path / "run"))
    assert sorted(results.table(["image"])["image"].to_pylist()) == ["moving.gif", "one.png"]
    failed = {failure.key: failure.reason for failure in results.failures}
    for name, message in bad.items():
        if name in failed:  # links in a circle and folders are not listed
            assert message in failed[name]
    assert {"empty.png", "torn.jpg", "huge.png", "narrow.png", "program.png"} <= failed.keys()


@given(
    data=st.binary(max_size=60),
    place=st.integers(0, 400),
    cut=st.integers(0, 400),
    form=st.sampled_from(["PNG", "GIF", "JPEG", "TIFF", "WEBP"]),
)
@examples(150)
def test_a_damaged_image_is_read_or_refused(data: bytes, place: int, cut: int, form: str) -> None:
    stored = io.BytesIO()
    noise().resize((5, 4)).save(stored, form)
    content = bytearray(stored.getvalue())
    content[place : place + cut] = data
    (found,) = decode([Item("x", data=bytes(content))], Decoding(VIEW, PATIENCE, 0))
    if isinstance(found, Sample):
        assert found.values.shape == (3, 28, 28)
        assert np.isfinite(found.values).all()
    else:
        assert found.kind == "image"
    try:
        assert photograph(bytes(content), "x").shown.mode == "RGB"
    except ImageError:
        assert not isinstance(found, Sample) or form != "PNG"


# Names.


NETWORK = Network("tiny", nn.Identity(), VIEW, ("cat", "dog, hound"))


@pytest.mark.parametrize("name", ["²", "--1", "-", LONG, f"-{LONG}", "1 ", "٣"])
def test_what_is_no_number_is_no_index(name: str) -> None:
    with pytest.raises(TargetError, match="is no class of tiny"):
        NETWORK.index(name)
    assert not stands_for(name, 1, "cat", 2)


@pytest.mark.parametrize("target", ["top0", f"top{LONG}", "top٣", "top"])
def test_favourites_are_counted_from_one(target: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is no class of tiny"):
        Question(target).check(NETWORK)
    with pytest.raises(TargetError, match="is no class of tiny"):
        job(tmp_path, tmp_path / "out", target=target).targets(NETWORK)


def test_an_output_without_any_class_is_told() -> None:
    network = Network("tiny", nn.Identity(), VIEW, ("cat", "dog"), task="multi-label")
    prediction = Prediction(network, noise(), VIEW(noise()), torch.full((2, 4, 4), -9.0))
    with pytest.raises(TargetError, match="tiny finds nothing in this photograph; name a class"):
        resolve_targets(Question(), prediction)


def test_names_that_no_file_can_have() -> None:
    with pytest.raises(TargetError, match=r"must be a box, .* or the file of a mask"):
        Question(within=LONG).check(NETWORK)
    for name in (f"x.{LONG}", f"{LONG}.onnx", f"{LONG}.pt2", f"{LONG}.py:make", f"hf/{LONG}"):
        with pytest.raises(ModelError):
            build(name)
    for place in ("a\0b", "reference://x", "zip://a::file://nowhere", "github://a@b", f"zip://{LONG}"):
        with pytest.raises(InputError):
            filesystem(place)
    with pytest.raises(TapError, match="matches no feature map"):
        explain(small(), torch.rand(1, 3, 8, 8), taps=f"{LONG}x{LONG}")


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    """Not read as rich's markup, in which [/b] is an error and [red] vanishes."""
    folder = tmp_path / "[b]"
    folder.mkdir()
    noise().save(folder / "cat[red].png")
    (tmp_path / "labels").write_text("\n".join(f"kind[/b] {index}" for index in range(1000)))
    weights = small().state_dict()
    assert weights
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom running import Tiny as net\n"
    )
    code, out, error, _ = icam(
        *("explain", folder / "cat[red].png", "--model", f"{tmp_path}/net.py:net", "--labels", tmp_path / "labels"),
        *("--out", tmp_path / "[/out]"),
    )
    assert code == 0, error
    assert "cat[red].png" in out
    assert "kind[/b] 0" in out
    assert "[/out]" in out.replace("\n", "")


# Lists and annotations.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file\n\xff\xfe\n", "no CSV file in UTF-8"),
        (b"file,label\na.png,1\n,2\n", "row 2 names no file"),
        (b"label,file\n1\n", "row 1 names no file"),
        (b'file\n"' + b"x" * 200_000, "no CSV file"),
    ],
)
def test_lists_that_cannot_be_used(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "list.csv")
    with pytest.raises(InputError):
        open_source(str(tmp_path / "list.csv"), 8, PATIENCE)


def test_of_a_folder_only_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # opened, it would wait for a writer for ever
    (tmp_path / "a.png").touch()
    assert [sample.name for sample in read_dataset(tmp_path)] == ["a.png"]


def test_a_list_as_spreadsheets_write_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbffile,label\r\na.png,3\r\n")
    (sample,) = read_dataset(tmp_path / "list.csv")
    assert (sample.name, sample.label) == ("a.png", "3")


@pytest.mark.parametrize("left", ["nan", "inf", "-1e300", LONG])
def test_boxes_are_made_of_pixels(left: str, tmp_path: Path) -> None:
    corners = f"<xmin>{left}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    (tmp_path / "a.xml").write_text(f"<a><object><name>cat</name><bndbox>{corners}</bndbox></object></a>")
    with pytest.raises(InputError, match="no VOC annotation that can be read"):
        read_boxes(tmp_path / "a.xml", (20, 20))


# Sources.


@pytest.mark.parametrize("column", [[1, 2], [b"a.png"], [["a.png"]]])
def test_a_list_names_files_by_text(column: list[Any], tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"file": column}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="must hold text"):
        open_source(str(tmp_path / "list.parquet"), 8, PATIENCE)


@pytest.mark.parametrize("row", [{"bytes": 5, "path": "a"}, {"bytes": "text", "path": 7}, {"bytes": [1], "path": "x"}])
def test_images_in_parquet_are_bytes(row: dict[str, Any], tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [row]}), tmp_path / "images.parquet")
    (part,) = open_source(str(tmp_path / "images.parquet"), 8, PATIENCE).parts
    with opened(part, PATIENCE) as items, pytest.raises(InputError, match="needs a column of encoded images"):
        list(items)


@pytest.mark.parametrize(
    "state",
    ["[]", "5", "{", "\ud800", '{"_data_files": true}', '{"_data_files": [{}]}', '{"_data_files": [5]}', "[" * 10_000],
)
def test_a_state_that_is_not_hugging_faces(state: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(state, errors="surrogatepass", encoding="utf-8")
    with pytest.raises(InputError, match=r"state.json: is not what save_to_disk of Hugging Face writes"):
        open_source(str(tmp_path), 8, PATIENCE)


def test_a_damaged_page_of_parquet_breaks_off(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [b"x" * 50, b"y" * 50]}), file)
    content = bytearray(file.read_bytes())
    content[4:12] = b"\xff" * 8
    file.write_bytes(content)
    (part,) = open_source(str(file), 8, PATIENCE).parts
    with opened(part, PATIENCE) as items, pytest.raises(InputError, match="no Parquet file, or breaks off"):
        list(items)


# What is stored.


ODD: tuple[Any, ...] = (None, True, -1, 2**63, 10**400, 1e308, float("nan"), "", "[/b]", [], [[]], {}, [None])


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a JSON document."""
    found = [path] if path else []
    if isinstance(document, dict | list):
        keys = document if isinstance(document, dict) else range(len(document))
        for key in keys:
            found += places(document[key], (*path, key))
    return found


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with one value replaced; without it where the value is `...`."""
    document = json.loads(json.dumps(document))
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


def each_change(file: Path, read: Callable[[], object], allowed: tuple[type[Exception], ...] = (CamError,)) -> int:
    """How many changes of a JSON file, one value at a time, end in an error; any other error than those is raised."""
    content, errors = file.read_text(), 0
    document = json.loads(content)
    for path in places(document):
        for value in (*ODD, ...):
            file.write_text(json.dumps(changed(document, path, value)))
            try:
                read()
            except allowed:
                errors += 1
    for text in ("", "{", "null", "[]", "[" * 10_000, '{"format": ' + LONG + "}", "\0"):
        file.write_text(text)
        with pytest.raises(allowed):
            read()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(allowed):
        read()
    file.write_text(content)
    read()
    return errors


def test_a_changed_manifest_of_an_explanation(tmp_path: Path) -> None:
    folder = explain(small(), torch.rand(1, 3, 12, 12)).save(tmp_path / "e")
    errors = each_change(folder / "manifest.json", lambda: repr(Explanation.load(folder)))
    assert errors > 100


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a failure."""
    folder = tmp_path_factory.mktemp("run")
    names = pictures(folder / "source", 4)
    (folder / "source" / names[2]).write_text("no image")
    assert run(job(folder / "source", folder / "out"), workers=0).code == 1
    return folder


def test_changed_results_of_a_run(finished: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    shutil.copytree(finished / "out", dest)

    def read() -> None:
        results = Results(str(dest))
        assert (results.table().num_rows, len(results.layers) > 0) in ((len(results), len(results) > 0), (3, True))
        [results[row] for row in range(len(results))]

    (record,) = (dest / "done").iterdir()
    assert each_change(dest / "manifest.json", read) > 10
    assert each_change(record, read) > 50
    # What the reader refuses, the same command does again.
    before = {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    record.write_text("{")
    with pytest.raises(ExplanationError, match="is no record of a part; run the same command again"):
        Results(str(dest))
    assert run(job(finished / "source", dest), workers=0).code == 1
    assert {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()} == before


def test_a_stored_map_that_is_no_png(finished: Path, tmp_path: Path) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    shutil.copytree(finished / "out", tmp_path / "out")
    (shard,) = (tmp_path / "out" / "shards").iterdir()
    (record,) = (tmp_path / "out" / "done").iterdir()
    table = pq.read_table(shard)
    at = table.schema.get_field_index("map")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array([b"GIF89a"] * 3, pa.binary())), shard)
    found = json.loads(record.read_text())
    found["shards"][0]["bytes"] = shard.stat().st_size
    record.write_text(json.dumps(found))
    with pytest.raises(ExplanationError, match="row 1 cannot be read"):
        Results(str(tmp_path / "out"))[1]


def test_a_changed_record_is_left_out_of_the_report(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    folder = tmp_path / "cat"
    explain(small(), torch.rand(1, 3, 12, 12)).save(folder / "explanation")
    noise().save(folder / "overlay.png")
    record = {
        "image": "cat.png", "size": [8, 8], "seen": [0, 0, 8, 8], "model": "m", "classes": 5, "method": "integrative",
        "named": "cat", "target": {"index": 1, "label": "cat", "classes": [1]}, "probability": 0.5,
        "top": [{"index": 1, "label": "cat", "probability": 0.5}],
        "parts": {"input": 1.0, "bias": 0.0, "remainder": 0.5},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    unread: list[str] = []

    def read() -> None:
        cases, said = cases_of_explanations(tmp_path, read_truth(None))
        assert len(cases) + len(said) == 1
        unread.extend(said)
        if said:
            raise InputError(said[0])

    assert each_change(folder / "record.json", read) > 30
    Image.new("1", (20_000, 20_000)).save(folder / "overlay.png")
    with pytest.raises(InputError, match="over the limit"):
        read()


def test_what_an_evaluation_left_is_checked(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for content in ("{", "[]", "[" * 10_000, LONG):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ExplanationError, match=r"manifest.json: .* start anew in another folder"):
            store.claim({"steps": 2}, "evaluation")
    (tmp_path / "parts" / "0").mkdir(parents=True)
    for content in ("{", "[]", "{}", '{"rows": 5, "left_out": []}'):
        (tmp_path / "parts" / "0" / "0.json").write_text(content)
        with pytest.raises(ExplanationError, match=r"0.json: .* remove it, and run the command again"):
            _stored_rows(store, models=1)


# Networks and weights.


def test_a_changed_file_beside_a_network(tmp_path: Path) -> None:
    right = {
        "resize": 32, "crop": [20, 28], "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 1],
        "squash": True, "labels": ["a", "b", "c", "d"], "task": "classification",
    }  # fmt: skip
    name = str(write_onnx(tmp_path / "net.onnx", small()))
    (tmp_path / "net.json").write_text(json.dumps(right))

    def read() -> None:
        network = load(name)
        assert network.preprocessing(noise()).tensor.isfinite().all()
        network.label(0)

    assert each_change(tmp_path / "net.json", read) > 60


def test_a_network_of_enormous_images_is_refused(tmp_path: Path) -> None:
    name = str(write_onnx(tmp_path / "net.onnx", small(), shape=["batch", 3, 200_000, 200_000]))
    with pytest.raises(ModelError, match="200000 x 200000 pixels, which is over 100 megapixels"):
        load(name)


@pytest.mark.parametrize("labels", ["[" * 100_000, LONG, '{"a": ' * 50_000])
def test_class_names_that_cannot_be_read_are_none(labels: str, tmp_path: Path) -> None:
    assert load(str(write_onnx(tmp_path / "net.onnx", small(), metadata={"names": labels}))).labels == ()


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 3))


RIGHT = model().state_dict()


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(3, 2).to_sparse(),
        torch.zeros(3, 2, device="meta"),
        torch.zeros(1).expand(10**9, 2),
    ],
    ids=["sparse", "meta", "expanded"],
)
def test_weights_hold_their_own_values(weight: Tensor, tmp_path: Path) -> None:
    torch.save({**RIGHT, "2.weight": weight}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    with pytest.raises(ModelError, match=r"2.weight is no tensor that holds its own values"):
        read_weights(tmp_path / "w.pth")


def test_expanded_weights_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    torch.save({**RIGHT, "2.weight": torch.ones(1).expand(3, 2)}, tmp_path / "w.pth")
    own = model()
    fill(own, read_weights(tmp_path / "w.pth"), "w.pth")
    assert torch.equal(own.state_dict()["2.weight"], torch.ones(3, 2))


def test_a_single_number_says_nothing_of_classes() -> None:
    assert classes_in({**RIGHT, "2.bias": torch.tensor(1.0)}, model()) is None
    with pytest.raises(ModelError, match="1 have another shape"):
        fill(model(), {**RIGHT, "2.bias": torch.tensor(1.0)}, "x")


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


@given(seed=st.integers(0, 10_000), legacy=st.booleans())
@examples(60)
def test_damaged_weights_are_read_or_refused(seed: int, legacy: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    stored = io.BytesIO()
    torch.save(RIGHT, stored, _use_new_zipfile_serialization=not legacy)
    draw, content = np.random.default_rng(seed), bytearray(stored.getvalue())
    for at in draw.integers(0, len(content), 4):
        content[at] = draw.integers(0, 256)
    (folder / "damaged.pth").write_bytes(content[: len(content) - int(draw.integers(0, 2)) * 300])
    try:
        assert all(isinstance(value, Tensor) for value in read_weights(folder / "damaged.pth").values())
    except ModelError as error:
        assert "damaged.pth" in str(error)  # noqa: PT017


def test_pickles_in_any_wrapping_are_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    attack = pickle.dumps(Payload(proof))
    torch.save({"a": torch.zeros(1)}, tmp_path / "right.pth")
    with zipfile.ZipFile(tmp_path / "right.pth") as right, zipfile.ZipFile(tmp_path / "zip.pth", "w") as changed_zip:
        for entry in right.namelist():
            changed_zip.writestr(entry, attack if entry.endswith("data.pkl") else right.read(entry))
    (tmp_path / "plain.pth").write_bytes(attack)
    (tmp_path / "named.safetensors").write_bytes(attack)
    (tmp_path / "named.onnx").write_bytes(attack)
    for name in ("zip.pth", "plain.pth", "named.safetensors"):
        with pytest.raises(ModelError):
            read_weights(tmp_path / name)
    with pytest.raises(ModelError):
        load(str(tmp_path / "named.onnx"))
    assert not proof.exists()


def test_a_safetensors_head_that_promises_too_much(tmp_path: Path) -> None:
    head = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62))
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "w.safetensors")


# Requests.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_an_address_is_seen_in_every_encoding_of_json(encoding: str) -> None:
    body = json.dumps({"data": [{"path": "http://127.0.0.1:1/x"}]}).encode(encoding)
    assert json.loads(body)  # as the application behind the guard reads it
    assert holds_address(body)


JSON = (b"content-type", b"application/json")
FORM = (b"content-type", b"multipart/form-data; boundary=x")
Message = dict[str, Any]


def answered(
    guard: Guard, messages: Sequence[Message], headers: Sequence[tuple[bytes, bytes]] = (JSON,)
) -> Coroutine[Any, Any, int]:
    """The status that a request gets, whose last message never comes where the list ends before its body does."""
    left, sent = list(messages), list[Message]()

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(60)
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> int:
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/call/explain", "headers": headers}
        await guard(scope, receive, send)
        return int(sent[0]["status"])

    return ask()


async def unreached(scope: Any, receive: Any, send: Any) -> None:
    pytest.fail("was passed on")


def part(size: int, more: bool = True) -> Message:
    return {"type": "http.request", "body": b" " * size, "more_body": more}


@pytest.mark.parametrize("headers", [(JSON,), (), (JSON, FORM), (FORM, JSON), ((b"content-type", b"text/plain"),)])
def test_no_content_type_hides_an_address(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    body = {"type": "http.request", "body": b'{"data": [{"path": "http://127.0.0.1:1/x"}]}'}
    assert asyncio.run(answered(Guard(unreached, 1000), [body], headers)) == 400


def test_bodies_that_come_slowly_or_break_off_are_given_up() -> None:
    guard = Guard(unreached, 1000, idle=0.05)
    assert asyncio.run(answered(guard, [part(10), part(10)])) == 408
    assert asyncio.run(answered(guard, [part(10), {"type": "http.disconnect"}])) == 400
    assert guard.held == 0


def test_bodies_on_their_way_are_bounded_together() -> None:
    guard = Guard(unreached, 1000, idle=0.3)

    async def many() -> list[int]:
        return list(await asyncio.gather(*(answered(guard, [part(900)]) for _ in range(40))))

    found = asyncio.run(many())
    assert found.count(408) == 17  # of 900 bytes each, within 16 times 1000
    assert found.count(503) == 23
    assert guard.held == 0


# Wild calls.


def test_wild_calls_are_right_and_leave_nothing_behind() -> None:
    """Each call by itself says what is wrong; `benchmarks/soak.py calls` makes ten thousand."""
    came = {seed: outcome(seed) for seed in range(250)}
    assert {seed: wrong for seed, (_, wrong) in came.items() if wrong} == {}
    maps = [seed for seed, (what, _) in came.items() if what == "map"]
    assert len(maps) > 180
    assert all(
        what == "map" or what.startswith("RecipeError: readout='softmax' needs a class") for what, _ in came.values()
    )
    # That the invariants were asked for at all.
    calls = [drawn(seed) for seed in maps]
    assert sum(call.exact and call.dtype is torch.float64 for call in calls) > 10
    assert sum(call.model.training for call in calls) > 50
    assert sum(isinstance(call.images, tuple) for call in calls) > 20
    assert sum(call.batch > 1 and call.dtype is torch.float32 for call in calls) > 40
