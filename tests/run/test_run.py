"""`icam run` in this process: sources, rows, maps and back, failures, what a second run does."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import job, pictures, tiny
from typer.testing import CliRunner

from integrative_cam import Recipe, explain, get_method
from integrative_cam.errors import ExplanationError, InputError, ModelError, TargetError
from integrative_cam.methods import Method
from integrative_cam.models import read_image

pa = pytest.importorskip("pyarrow", reason="needs the extra run: pip install 'integrative-cam[run]'")
pytest.importorskip("fsspec", reason="needs the extra run: pip install 'integrative-cam[run]'")
import pyarrow.parquet as pq  # noqa: E402

from integrative_cam.cli._app import app  # noqa: E402
from integrative_cam.run import Progress, Results, RetryPolicy, run  # noqa: E402
from integrative_cam.run._archives import opened  # noqa: E402
from integrative_cam.run._sources import open_source  # noqa: E402
from integrative_cam.run._table import measured, quantised  # noqa: E402

HALF_LEVEL = 1 / 510
PATIENCE = RetryPolicy(timeout=5, attempts=1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    pictures(folder, 20)
    return folder


@pytest.fixture(scope="module")
def done(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run over two targets each, with thumbnails left out."""
    dest = str(tmp_path_factory.mktemp("dest") / "out")
    outcome = run(job(photographs, dest, target="top2"), workers=0)
    assert (outcome.images, outcome.rows, outcome.found, outcome.code) == (20, 40, 0, 0)
    return dest


# What a row holds.


def test_each_row_is_what_explain_gives_for_that_image_alone(photographs: Path, done: str) -> None:
    network, results = tiny(), Results(done)
    assert len(results) == 40
    table = results.table().to_pylist()
    for place, name in enumerate(
        sorted(path.relative_to(photographs).as_posix() for path in photographs.rglob("*.png"))
    ):
        tensor = network.preprocessing(read_image(photographs / name)).tensor
        logits = network.model(tensor)[0].tolist()
        ranked = sorted(range(5), key=lambda index: -logits[index])
        chances = [np.exp(value) / sum(np.exp(logits)) for value in logits]
        for rank in (1, 2):
            row, found = table[2 * place + rank - 1], results[2 * place + rank - 1]
            wanted = explain(network.model, tensor, ranked[rank - 1])
            assert (row["image"], row["rank"], row["target"]) == (name, rank, ranked[rank - 1])
            assert (row["target_name"], row["prediction_name"]) == (f"name {ranked[rank - 1]}", f"name {ranked[0]}")
            assert row["prediction"] == ranked[0]
            assert row["probability"] == pytest.approx(chances[ranked[rank - 1]], rel=1e-5)
            assert (row["image_width"], row["image_height"]) == (24, 20)
            ((view,), (expected,)) = found.views or (), wanted.views or ()
            assert (view.size, view.box) == (expected.size, pytest.approx(expected.box))
            split = wanted.completeness
            assert row["score"] == pytest.approx(float(wanted.score), rel=1e-4)
            for part in ("input", "bias"):
                assert row[f"score_{part}"] == pytest.approx(float(getattr(split, part)), rel=1e-3, abs=1e-6)
            assert row["score_remainder"] == pytest.approx(0, abs=1e-5)
            assert row["layer_weights"] == pytest.approx(wanted.weights[0].tolist(), rel=1e-4)

            assert found.map.shape == wanted.map.shape == (1, 16, 16)
            assert float((found.map - wanted.map).abs().max()) <= HALF_LEVEL + 1e-5
            torch.testing.assert_close(found.output, wanted.output.detach(), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.weights, wanted.weights, rtol=1e-4, atol=1e-6)
            for name_of in ("gradient_score", "activation_score", "joint_score"):
                for stored, layer in zip(found.layers, wanted.layers, strict=True):
                    assert (stored.name, stored.kind) == (layer.name, layer.kind)
                    torch.testing.assert_close(getattr(stored, name_of), getattr(layer, name_of), rtol=1e-4, atol=1e-6)
            for stored, layer in zip(found.bias_layers, wanted.bias_layers, strict=True):
                assert stored.name == layer.name
                torch.testing.assert_close(stored.weight, layer.weight, rtol=1e-4, atol=1e-6)
            for field in ("score", "input", "bias", "activation", "tap_bias", "is_cut"):
                torch.testing.assert_close(
                    getattr(found.completeness, field), getattr(split, field), rtol=1e-3, atol=1e-5
                )
            assert found.target_names == wanted.target_names == (str(ranked[rank - 1]),)
            assert found.target.tolist() == [ranked[rank - 1]]
            assert found.clamped.tolist() == wanted.clamped.tolist()
            assert found.recipe == Recipe()


def test_what_is_not_stored_is_absent_and_the_rest_saves(done: str, tmp_path: Path) -> None:
    found = Results(done)[3]
    assert all(layer.map.numel() == layer.bias.numel() == 0 for layer in found.layers)
    again = type(found).load(found.save(tmp_path / "explanation"))
    torch.testing.assert_close(again.map, found.map, rtol=0, atol=0)
    assert again.recipe == found.recipe


def test_area_centroid_and_box_by_hand() -> None:
    maps = torch.zeros(3, 4, 6)
    maps[0, 1, 2], maps[0, 2, 4], maps[0, 3, 0] = 1.0, 0.75, 0.5  # the last one is not above half
    maps[1] = 0.25  # of its own maximum
    found = measured(maps, 0.5)
    assert found["area"] == [2 / 24, 1, 0]
    assert [found[f"box_{side}"] for side in ("left", "top", "right", "bottom")] == [
        [2, 0, None], [1, 0, None], [5, 6, None], [3, 4, None],
    ]  # fmt: skip
    # (2.5 * 1 + 4.5 * .75 + .5 * .5) / 2.25 and (1.5 * 1 + 2.5 * .75 + 3.5 * .5) / 2.25
    assert found["centroid_x"] == pytest.approx([6.125 / 2.25, 3, None])
    assert found["centroid_y"] == pytest.approx([5.125 / 2.25, 2, None])
    assert measured(maps, 0.4)["box_left"] == [0, 0, None]


def test_quantising_rounds_to_the_nearest_of_256_levels() -> None:
    maps = torch.tensor([[0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 254.6 / 255, 1]])
    assert quantised(maps).tolist() == [[0, 0, 1, 100, 255, 255]]


def test_one_class_for_all_and_another_threshold(photographs: Path, tmp_path: Path) -> None:
    made = job(photographs, tmp_path / "out", target="name 3", threshold=0.9, method=get_method("gradcam"))
    assert run(made, workers=0).rows == 20
    results = Results(str(tmp_path / "out"))
    assert set(results.table(["target"])["target"].to_pylist()) == {3}
    assert results.recipe == get_method("gradcam").recipe
    for row, explanation in zip(results.table().to_pylist(), results, strict=True):
        share = float((explanation.map > 0.9).double().mean())
        assert row["area"] == pytest.approx(share, abs=2 / 256)


def test_labels_are_explained_at_their_logits(photographs: Path, tmp_path: Path) -> None:
    run(job(photographs, tmp_path / "out", "labels", target="name 3"), workers=0)
    results, network = Results(str(tmp_path / "out")), tiny()
    for name, found in zip(results.table(["image"])["image"].to_pylist(), results, strict=True):
        tensor = network.preprocessing(read_image(photographs / name)).tensor
        assert float(found.score) == pytest.approx(float(network.model(tensor)[0, 3]), rel=1e-4)
        wanted = explain(network.model, tensor, 3, score="logit")
        assert float((found.map - wanted.map).abs().max()) <= HALF_LEVEL + 1e-5
        assert found.recipe == wanted.recipe == Recipe(score="logit")


def test_a_network_in_half_precision_makes_nearly_the_same_maps(photographs: Path, done: str, tmp_path: Path) -> None:
    run(job(photographs, tmp_path / "out", target="top2", precision="bfloat16"), workers=0)
    half, whole = Results(str(tmp_path / "out")), Results(done)
    scores = [each.table(["score"])["score"].to_numpy() for each in (half, whole)]
    assert not np.array_equal(*scores)
    np.testing.assert_allclose(*scores, rtol=0.02, atol=0.01)
    for one, other in zip(half, whole, strict=True):
        assert 0.98 < torch.corrcoef(torch.stack([one.map.flatten(), other.map.flatten()]))[0, 1] < 1
    with pytest.raises(InputError, match="precision must be one of float32, bfloat16, float16, but got 'int8'"):
        job(photographs, tmp_path / "out", precision="int8")


def test_thumbnails_are_small_overlays(photographs: Path, done: str, tmp_path: Path) -> None:
    assert run(job(photographs, tmp_path / "out", thumbnail=12), workers=0).unfinished == {}
    picture = Results(str(tmp_path / "out")).thumbnail(7)
    assert (picture.format, max(picture.size)) == ("JPEG", 12)
    with pytest.raises(InputError, match="has no thumbnails"):
        Results(done).thumbnail(0)


# Sources: the same images, whatever they come in.


def _tars(photographs: Path, folder: Path) -> None:
    names = sorted(photographs.rglob("*.png"))
    for number, group in enumerate((names[:11], names[11:])):
        with tarfile.open(folder / f"data-{number}.tar", "w") as tar:
            for path in group:
                tar.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"7"))


def _parquet(photographs: Path, folder: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photographs.rglob("*.png"))]
    table = pa.table({"label": list(range(20)), "image": images})
    pq.write_table(table.slice(0, 11), folder / "part-0.parquet", row_group_size=3)
    pq.write_table(table.slice(11), folder / "part-1.parquet")


def _hugging_face(photographs: Path, folder: Path) -> None:
    """As `Dataset.save_to_disk` lays it out: Arrow streams, named in state.json."""
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photographs.rglob("*.png"))]
    table = pa.table({"image": images, "label": list(range(20))})
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, rows in zip(names, (table.slice(0, 11), table.slice(11)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(rows, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def _csv(photographs: Path, folder: Path) -> None:
    names = sorted(photographs.rglob("*.png"))
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "file"), *((0, name) for name in names)])


def _parquet_list(photographs: Path, folder: Path) -> None:
    names = [str(name) for name in sorted(photographs.rglob("*.png"))]
    pq.write_table(pa.table({"file": names}), folder / "list.parquet")


@pytest.mark.parametrize(
    ("write", "name", "key"),
    [
        (_tars, "", "data-1.tar/015.png"),
        (_tars, "data-*.tar", "data-1.tar/015.png"),
        (_parquet, "", "part-1.parquet/00000004"),
        (_hugging_face, "", "data-00001-of-00002.arrow/00000004"),
        (_csv, "list.csv", None),
        (_parquet_list, "list.parquet", None),
    ],
    ids=["tar", "pattern", "parquet", "hugging-face", "csv", "parquet-list"],
)
@pytest.mark.parametrize("remote", [False, True], ids=["local", "memory"])
def test_every_kind_of_source_gives_the_same_results_in_shards(
    write, name: str, key: str | None, remote: bool, photographs: Path, done: str, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write(photographs, folder)
    place = f"{folder}/{name}".rstrip("/")
    if remote:
        import fsspec

        memory = fsspec.filesystem("memory")
        url = f"memory://{tmp_path.name}"
        for path in folder.iterdir():
            memory.pipe_file(f"/{tmp_path.name}/{path.name}", path.read_bytes())
        place = f"{url}/{name}".rstrip("/")
    outcome = run(job(place, tmp_path / "out", target="top2"), workers=0)
    assert (outcome.images, outcome.rows, outcome.code) == (20, 40, 0)
    found, wanted = Results(str(tmp_path / "out")), Results(done)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left.map, right.map, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(left.score, right.score, rtol=1e-4, atol=1e-6)
    keys = found.table(["image"])["image"].to_pylist()
    assert len(set(keys)) == 20
    if key is not None:
        assert keys[2 * 15] == key
        assert [shard.images for shard in found.shards] == [8, 3, 8, 1]
        (explanation, _) = found.of(key)
        torch.testing.assert_close(explanation.map, found[30].map, rtol=0, atol=0)
    else:
        assert keys[2 * 15] == str(photographs / "b/015.png")
        assert [shard.images for shard in found.shards] == [8, 8, 4]


def test_a_data_set_that_hugging_face_saved(photographs: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    files = [str(path) for path in sorted(photographs.rglob("*.png"))]
    saved = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": saved, "test": saved.select(range(3))}).save_to_disk(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"), 8, PATIENCE)
    keys = []
    for part in source.parts:
        with opened(part, PATIENCE) as items:
            keys += [item.key for item in items if item.data]
    assert sorted({key.split("/")[0] for key in keys}) == ["test", "train"]
    assert len(set(keys)) == 23


def test_the_destination_may_be_a_store_without_renaming(photographs: Path, tmp_path: Path, done: str) -> None:
    place = f"memory://{tmp_path.name}-dest"
    assert run(job(photographs, place, target="top2"), workers=0).rows == 40
    torch.testing.assert_close(Results(place)[21].map, Results(done)[21].map, rtol=0, atol=0)
    assert run(job(photographs, place, target="top2"), workers=0).found == 20


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "holds no image"),
        (lambda folder: (folder / "list.csv").write_text("name\nx.png\n"), "needs a column `file`, but has name"),
        (lambda folder: (folder / "list.csv").write_text("file\na.png\nb.png\na.png\n"), "lists a.png twice"),
        (lambda folder: (folder / "list.csv").write_text("file,label\n,3\n"), "row 1 names no file"),
        (lambda folder: (folder / "list.csv").write_text("file\n"), "lists no image"),
    ],
)
def test_a_source_that_cannot_be_used(write, message: str, tmp_path: Path) -> None:
    write(tmp_path)
    listed = tmp_path / "list.csv"
    with pytest.raises(InputError, match=message):
        open_source(str(listed if listed.exists() else tmp_path), 8, PATIENCE)


@pytest.mark.parametrize("content", [b"no table", b"PAR1"])
def test_a_broken_parquet_file_is_no_silent_source(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"list.parquet: is no Parquet file, or breaks off \(Parquet "):
        open_source(str(tmp_path / "list.parquet"), 8, PATIENCE)


def test_no_such_source_or_file_system(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder or file"):
        open_source(str(tmp_path / "absent"), 8, PATIENCE)
    with pytest.raises(InputError, match="cannot be opened"):
        open_source("nowhere://bucket", 8, PATIENCE)


# Images that fail.


def _write_bad(folder: Path) -> None:
    """20 pictures: the third is text, the tenth broken off, the twelfth white."""
    names = pictures(folder, 20, white=[12])
    (folder / names[3]).write_text("no image")
    (folder / names[10]).write_bytes((folder / names[10]).read_bytes()[:300])


@pytest.mark.parametrize("decoders", [0, 1])
def test_bad_images_are_named_and_the_others_done(decoders: int, tmp_path: Path) -> None:
    _write_bad(tmp_path / "source")
    outcome = run(job(tmp_path / "source", tmp_path / "out", "afraid_of_white", decoders=decoders), workers=0)
    assert (outcome.images, outcome.rows, outcome.code) == (17, 17, 1)
    assert [(failure.key, failure.kind) for failure in outcome.failures] == [
        ("a/003.png", "image"), ("b/010.png", "image"), ("b/012.png", "explain"),
    ]  # fmt: skip
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == [{"image": each.key, "kind": each.kind, "reason": each.reason} for each in outcome.failures]
    assert "not an image that can be read" in lines[0]["reason"]
    results = Results(str(tmp_path / "out"))
    keys = results.table(["image"])["image"].to_pylist()
    assert keys == [f"{'ab'[n // 10]}/{n:03d}.png" for n in range(20) if n not in (3, 10, 12)]
    assert results.failures == outcome.failures
    # These do not change with another attempt.
    again = run(job(tmp_path / "source", tmp_path / "out", "afraid_of_white"), workers=0)
    assert (again.found, again.code) == (17, 1)


def test_a_missing_file_is_asked_for_again_by_the_next_run(tmp_path: Path) -> None:
    names = pictures(tmp_path, 10)
    (tmp_path / "list.csv").write_text("file\n" + "\n".join(names))
    hidden = (tmp_path / names[4]).rename(tmp_path / "hidden")
    made = job(tmp_path / "list.csv", tmp_path / "out")
    outcome = run(made, workers=0)
    assert [(failure.key, failure.kind) for failure in outcome.failures] == [(names[4], "missing")]
    assert outcome.code == 1
    hidden.rename(tmp_path / names[4])
    again = run(made, workers=0)
    assert (again.images, again.found, again.failures, again.code) == (10, 2, (), 0)
    assert Results(str(tmp_path / "out")).table(["image"])["image"].to_pylist() == names


@pytest.mark.parametrize("cut", [700, 5000])
def test_a_tar_that_breaks_off_gives_what_came_before(cut: int, photographs: Path, tmp_path: Path) -> None:
    _tars(photographs, tmp_path)
    whole = (tmp_path / "data-1.tar").read_bytes()
    (tmp_path / "data-1.tar").write_bytes(whole[:cut])
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        complete = sum(info.offset_data + info.size <= cut for info in tar if "png" in info.name)
    outcome = run(job(tmp_path, tmp_path / "out"), workers=0)
    assert outcome.images == 11 + complete
    assert "data-1.tar" in [failure.key for failure in outcome.failures]
    assert outcome.code == 1


def test_memory_that_ends_halves_the_batch_and_changes_no_result(photographs: Path, tmp_path: Path) -> None:
    outcome = run(job(photographs, tmp_path / "greedy", "greedy", batch=8), workers=0)
    # 8, then 4, then 2, which is kept.
    assert (outcome.images, outcome.code, outcome.batch_reductions) == (20, 0, 2)
    run(job(photographs, tmp_path / "tiny", "tiny", batch=8), workers=0)
    for left, right in zip(Results(str(tmp_path / "greedy")), Results(str(tmp_path / "tiny")), strict=True):
        torch.testing.assert_close(left.map, right.map, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(left.score, right.score, rtol=1e-4, atol=1e-6)


def test_an_image_too_large_for_memory_alone_is_named(tmp_path: Path) -> None:
    names = pictures(tmp_path / "source", 10, white=[5])
    outcome = run(job(tmp_path / "source", tmp_path / "out", "greedy_for_white", batch=8), workers=0)
    assert [(failure.key, failure.kind) for failure in outcome.failures] == [(names[5], "memory")]
    assert (outcome.images, outcome.code) == (9, 1)


# A second run.


def test_what_is_done_stays_untouched(photographs: Path, tmp_path: Path) -> None:
    made = job(photographs, tmp_path / "out")
    run(made, workers=0)
    shards = tmp_path / "out" / "shards"
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    # One shard cut off, as by a failing disk; one gone; a draft of a killed writer.
    torn, gone, _ = sorted(before)
    (shards / torn).write_bytes((shards / torn).read_bytes()[:-9])
    (shards / gone).unlink()
    (shards / ".0000000-0000.parquet-dead.draft").write_text("torn")
    seen: list[Progress] = []
    outcome = run(made, workers=0, report=seen.append)
    assert (outcome.images, outcome.found, outcome.code) == (20, 4, 0)
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (4, 20, 20)
    after = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {torn, gone}
    assert len({*Results(str(tmp_path / "out")).table(["image"])["image"].to_pylist()}) == 20


def test_results_of_a_run_that_goes_on_are_those_of_finished_parts(photographs: Path, tmp_path: Path) -> None:
    run(job(photographs, tmp_path / "out"), workers=0)
    (tmp_path / "out" / "done" / "0000001.json").unlink()
    results = Results(str(tmp_path / "out"))
    assert len(results) == 12
    assert "a/008.png" not in results.table(["image"])["image"].to_pylist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "other"}, "model was"),
        ({"target": "top2"}, 'target was "top1", now "top2"'),
        ({"method": get_method("gradcam")}, "method was"),
        ({"method": replace(get_method("integrative"), way=Recipe(weight_exponent=0.5))}, "recipe was"),
        ({"shard": 5}, "shard was 8, now 5"),
        ({"threshold": 0.25}, "threshold was 0.5, now 0.25"),
        ({"precision": "bfloat16"}, 'precision was "float32", now "bfloat16"'),
        ({"thumbnail": 9}, "thumbnail was 0, now 9"),
    ],
    ids=["model", "target", "method", "recipe", "shard", "threshold", "precision", "thumbnails"],
)
def test_another_command_into_the_same_place_is_refused(
    changes, message: str, photographs: Path, tmp_path: Path
) -> None:
    run(job(photographs, tmp_path / "out"), workers=0)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    with pytest.raises(InputError, match=message):
        run(job(photographs, tmp_path / "out", **changes), workers=0)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def test_other_weights_or_another_source_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "source", 10)
    factory = tmp_path / "mine.py"
    factory.write_text("from running import tiny as mine")
    made = replace(job(tmp_path / "source", tmp_path / "out"), model=f"{factory}:mine")
    run(made, workers=0)
    factory.write_text("from running import other as mine")
    with pytest.raises(InputError, match="another command: model_fingerprint was"):
        run(made, workers=0)
    factory.write_text("from running import tiny as mine")
    pictures(tmp_path / "source", 11)
    with pytest.raises(InputError, match=r"source_fingerprint was .*images are no longer those of then"):
        run(made, workers=0)


def test_how_the_work_is_spread_may_change(photographs: Path, done: str) -> None:
    outcome = run(job(photographs, done, target="top2", batch=7, decoders=1, patience=PATIENCE), workers=1)
    assert (outcome.images, outcome.found) == (20, 20)


def test_a_place_with_something_else_is_left_alone(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds no run"):
        run(job(photographs, tmp_path), workers=0)
    with pytest.raises(ExplanationError, match="holds no run"):
        Results(str(tmp_path))


def test_errors_of_the_call_come_before_any_work(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no class of tiny"):
        run(job(photographs, tmp_path / "out", target="zebra"), workers=0)
    with pytest.raises(ModelError, match="no function"):
        run(job(photographs, tmp_path / "out", "absent"), workers=0)
    with pytest.raises(InputError, match="workers=0"):
        run(job("memory://nowhere", tmp_path / "out", decoders=1), workers=0)
    for name in ("batch", "shard"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, but got 0"):
            job(photographs, tmp_path / "out", **{name: 0})
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_network_does_not_have_stops_the_run(photographs: Path, tmp_path: Path) -> None:
    outcome = run(job(photographs, tmp_path / "out", target="77"), workers=0)
    assert (outcome.code, outcome.images, outcome.failures) == (3, 0, ())
    assert "out of range" in outcome.unfinished[0]


def test_the_manifest_says_what_was_run(photographs: Path, done: str) -> None:
    manifest = json.loads((Path(done) / "manifest.json").read_text())
    assert manifest["source"] == str(photographs)
    assert manifest["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert manifest["torch"] == torch.__version__
    assert len(manifest["model_fingerprint"]) == len(manifest["source_fingerprint"]) == 64


def test_the_maps_are_plain_greyscale_png_in_small_row_groups(photographs: Path, tmp_path: Path) -> None:
    """Others can read them without this package."""
    run(job(photographs, tmp_path / "out", shard=64, target="top3"), workers=0)
    file = pq.ParquetFile(tmp_path / "out" / "shards" / "0000000-0000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(2)] == [32, 28]
    picture = Image.open(io.BytesIO(file.read(["map"])["map"][5].as_py()))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (16, 16))
    stored = torch.from_numpy(np.array(picture)).float() / 255
    torch.testing.assert_close(stored, Results(str(tmp_path / "out"))[5].map[0], rtol=0, atol=0)


def test_a_run_of_0_1_0_is_read(tmp_path: Path) -> None:
    """Written by 0.1.0, over the same pictures."""
    names = pictures(tmp_path / "source", 5)
    (tmp_path / "source" / names[2]).write_text("no image")
    stored = Results(str(Path(__file__).parent / "run-of-0.1.0"))
    of_then = {"score": "logit", "regions": None, "centred": False, "negative_share": 0.5, "gamma": 0.85}
    assert stored.recipe == replace(Recipe(), **of_then)
    run(job(tmp_path / "source", tmp_path / "out", method=Method("then", "", "", stored.recipe)), workers=0)
    made = Results(str(tmp_path / "out"))
    assert stored.failures == made.failures
    assert stored.table().column_names == made.table().column_names
    assert stored.table(["image", "target"]).equals(made.table(["image", "target"]))
    for old, new in zip(stored, made, strict=True):
        torch.testing.assert_close(old.map, new.map, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(old.weights, new.weights, rtol=1e-4, atol=1e-6)
        assert old.clamped.tolist() == new.clamped.tolist()
        assert old.views is None  # 0.1.0 did not store what the network saw


# The command.


def icam_run(source: Path, dest: Path, network: str, *more: str) -> tuple[int, str, str]:
    made = job(source, dest, network)
    words = ["run", str(source), "--out", str(dest), "--model", made.model, "--workers", "0", "--decoders", "0"]
    found = CliRunner().invoke(app, [*words, "--shard", "8", "--batch", "4", "--device", "cpu", *more])
    assert found.exception is None or isinstance(found.exception, SystemExit)
    return found.exit_code, found.stdout, found.stderr


def test_the_command_says_what_failed_and_its_exit_code_too(tmp_path: Path) -> None:
    _write_bad(tmp_path / "source")
    code, said, complained = icam_run(tmp_path / "source", tmp_path / "out", "afraid_of_white", "--bias", "none")
    assert code == 1
    assert f"17 images explained: 17 rows in {tmp_path / 'out'}" in said
    assert "icam: a/003.png: not an image that can be read" in complained
    assert f"icam: 3 failed (2 image, 1 explain); see {tmp_path / 'out'}/failures.csv." in complained
    assert Results(str(tmp_path / "out")).recipe == Recipe(bias="none")
    code, said, _ = icam_run(tmp_path / "source", tmp_path / "out", "afraid_of_white", "--bias", "none")
    assert (code, "17 images explained, 17 of them by an earlier run" in said) == (1, True)


def test_the_command_says_that_it_is_not_at_its_end(photographs: Path, tmp_path: Path) -> None:
    code, _, complained = icam_run(photographs, tmp_path / "out", "tiny", "--target", "77")
    assert code == 3
    assert "out of range" in complained
    assert "icam: 3 of 3 parts are not finished; run the same command again to continue." in complained


def test_the_command_halves_batches_and_says_so(photographs: Path, tmp_path: Path) -> None:
    code, said, complained = icam_run(photographs, tmp_path / "out", "greedy")
    assert (code, complained.count("icam:")) == (0, 0)
    assert "Batches halved because memory ran out: 1." in said
