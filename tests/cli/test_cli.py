"""The command as users run it: a process of its own, on real photographs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from integrative_cam import Explanation, explain
from integrative_cam.cli._explain import enlarge
from integrative_cam.models import Network, load, read_image
from integrative_cam.query import predict
from integrative_cam.render import overlay

FILES = ["decomposition.png", "explanation", "overlay.png", "panel.png", "record.json"]


def icam(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("icam")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def assert_one_line(run: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert run.returncode == code, run.stderr
    assert message in run.stderr
    assert run.stderr.startswith("icam: ")
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert "Traceback" not in run.stderr + run.stdout


def test_without_arguments_the_bundled_cat_is_explained(tmp_path: Path) -> None:
    run = icam("explain", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Top classes" in run.stdout
    first = next(line for line in run.stdout.splitlines() if "explained" in line)
    assert "cat" in first
    assert "Layers that weigh most, of 33" in run.stdout
    assert (
        "Score (logit, less those of the other classes) 7.91 = input -1.61, biases +4.09, remainder +5.42" in run.stdout
    )
    folder = tmp_path / "icam-out" / "chelsea"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert all(f"icam-out/chelsea/{name}" in run.stdout for name in FILES[:4])

    found = Explanation.load(folder / "explanation")
    assert found.map.shape == (1, 224, 224)
    assert float(found.map.max()) == 1
    assert float(found.map.std()) > 0.05
    whole = read_image(photograph())
    picture = Image.open(folder / "overlay.png")
    assert picture.size == whole.size
    region = load().preprocessing(whole).region
    assert np.array_equal(np.asarray(picture), np.asarray(overlay(found.map[0], whole, region)))
    assert Image.open(folder / "panel.png").size[0] > 1000


def photograph() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data" / "chelsea.png"


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "other").mkdir()
    Image.open(photographs / "coffee.png").save(tmp_path / "other" / "coffee.png")
    run = icam(
        "explain", photographs / "coffee.png", "text.jpg", "none.png", "other/coffee.png", photographs / "rocket.jpg",
        "--out", "results", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 1
    assert "icam: text.jpg: not an image that can be read" in run.stderr
    assert "icam: none.png: no such file." in run.stderr
    assert "icam: 2 of 5 images failed, 3 done." in run.stderr
    assert "Explaining" in run.stderr  # the progress bar
    assert "3 explanations" in run.stdout
    assert re.search(r"^coffee +espresso \d+\.\d% +\w", run.stdout, re.MULTILINE)
    assert re.search(r"^coffee-2 +espresso", run.stdout, re.MULTILINE)
    assert "Written: a folder each in results\n" in run.stdout
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["coffee", "coffee-2", "rocket"]
    assert "Traceback" not in run.stderr


def test_json_and_top_three(tmp_path: Path, photographs: Path) -> None:
    run = icam("explain", photographs / "rocket.jpg", "--target", "top3", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["failures"] == []
    records = answer["explanations"]
    assert [record["target"] for record in records] == [
        {"index": top["index"], "label": top["label"], "classes": [top["index"]]} for top in records[0]["top"][:3]
    ]
    assert records[0]["target"]["label"] == "missile"
    assert records[0]["probability"] > records[1]["probability"] > records[2]["probability"]
    for record in records:
        assert sum(layer["weight"] for layer in record["layers"]) == pytest.approx(1)
        assert record["score"] == pytest.approx(sum(record["parts"].values()), rel=1e-4)
        saved = Explanation.load(tmp_path / record["files"]["explanation"])
        assert saved.target.tolist() == [record["target"]["index"]]
    assert len({record["files"]["overlay"] for record in records}) == 3


def test_target_by_name_and_every_ingredient(tmp_path: Path) -> None:
    run = icam(
        "explain", "--target", "egyptian CAT", "--taps", "stages", "--taps", "7x7", "--readout", "softplus",
        "--aggregation", "channel", "--negative-share", "0.25", "--bias", "complete", "--bias-share", "0.1",
        "--score", "logit", "--regions", "7",
        "--weighting", "average", "--weight-exponent", "1", "--stride-exponent", "0", "--stage-share", "0.25",
        "--unsigned", "--fusion", "geometric", "--gamma", "2", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (record,) = json.loads(run.stdout)["explanations"]
    assert record["target"] == {"index": 285, "label": "Egyptian cat", "classes": [285]}
    assert record["recipe"] == {
        "taps": ["stages", "7x7"], "score": "logit", "readout": "softplus", "aggregation": "channel", "regions": 7,
        "centred": True, "negative_share": 0.25, "bias": "complete", "bias_share": 0.1,
        "weighting": "average", "weight_exponent": 1.0, "signed": False,
        "fusion": "geometric", "path_exponent": 4.0, "stride_exponent": 0.0, "stage_share": 0.25, "gamma": 2.0,
    }  # fmt: skip
    sizes = [tuple(layer["size"]) for layer in record["layers"]]
    assert sizes[0] == (112, 112)
    assert sizes.count((7, 7)) > 1
    assert sizes.count((14, 14)) == 1


def test_why_this_and_not_that(tmp_path: Path) -> None:
    network = load()
    with torch.no_grad():
        logits = network.model(network.preprocessing(read_image(photograph())).tensor)[0]
    run = icam("explain", "--target", "tabby + 285", "--versus", "tiger cat", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (record,) = json.loads(run.stdout)["explanations"]
    label = "tabby, tabby cat + Egyptian cat rather than tiger cat"
    assert record["target"] == {"index": None, "label": label, "classes": [281, 285]}
    assert record["probability"] is None
    assert record["score"] == pytest.approx(float(logits[281] + logits[285] - logits[282]), rel=1e-4)
    assert Explanation.load(tmp_path / record["files"]["explanation"]).target_names == ("(281 + 285) - 282",)

    run = icam("explain", "--target", "top2", "--versus", "runner-up", "--json", cwd=tmp_path)
    records = json.loads(run.stdout)["explanations"]
    assert [record["target"]["label"] for record in records] == [
        "tiger cat rather than the runner-up", "Egyptian cat rather than the runner-up",
    ]  # fmt: skip
    assert [record["score"] for record in records] == pytest.approx(
        [float(logits[282] - logits[285]), float(logits[285] - logits[282])], rel=1e-3
    )

    run = icam("explain", "--target", "tabby", "--versus", "282+285", cwd=tmp_path)
    marked = [line.split("  <- ")[1].split()[0] for line in run.stdout.splitlines() if "  <- " in line]
    assert marked == ["versus", "versus", "explained"]
    score = float(logits[281] - logits[282] - logits[285])
    assert f"Score (tabby, tabby cat rather than tiger cat + Egyptian cat) {score:.2f} = input" in run.stdout


def test_local_weights_and_labels(tmp_path: Path, photographs: Path) -> None:
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(weights=None, num_classes=3).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "names.txt").write_text("coffee\ntea\nwater\n", "utf-8-sig")  # as spreadsheets do
    run = icam(
        "explain", photographs / "coffee.png", "--model", "torchvision/resnet18", "--weights", "w.safetensors",
        "--labels", "names.txt", "--target", "coffee", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "coffee  <- explained" in run.stdout
    assert "tea" in run.stdout
    assert "of 17" in run.stdout


def test_results_are_replaced_but_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "icam-out" / "chelsea").mkdir(parents=True)
    (tmp_path / "icam-out" / "chelsea" / "mine.txt").write_text("precious")
    assert_one_line(icam("explain", cwd=tmp_path), 1, "is no earlier output of this package")
    assert (tmp_path / "icam-out" / "chelsea" / "mine.txt").read_text() == "precious"
    (tmp_path / "icam-out" / "chelsea" / "mine.txt").unlink()
    assert icam("explain", cwd=tmp_path).returncode == 0
    assert icam("explain", cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "icam-out").iterdir()] == ["chelsea"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["explain", "--model", "resnt18"], 2, "'resnt18' is not known. Did you mean resnet18"),
        (["explain", "--target", "tabbby"], 2, "'tabbby' is no class of efficientnet-lite0. Did you mean tabby"),
        (["explain", "--target", "1000"], 1, "target 1000 is out of range: the model has 1000 outputs, 0 to 999"),
        (["explain", "--versus", "tabbby"], 2, "'tabbby' is no class of efficientnet-lite0"),
        (["explain", "--versus", "tiger cat"], 1, "--versus: tiger cat is the target itself; name another class"),
        (["explain", "--bias", "full"], 2, "bias must be one of complete, residual, layers, none, but got 'full'"),
        (["explain", "--negative-share", "2"], 2, "negative_share must be between 0 and 1, but got 2.0"),
        (["explain", "--taps", "blocks.9.*"], 1, "'blocks.9.*' matches no feature map"),
        (["explain", "--method", "gradcm"], 2, "but got 'gradcm'. Did you mean 'gradcam'?"),
        (["compare", "--methods", "gradcam,scoore"], 2, "method must be one of integrative, gradcam"),
        (["compare", "--methods", ","], 2, "--methods names no method"),
        (["explain", "--within", "1,2,1,3"], 2, "a box is LEFT,TOP,RIGHT,BOTTOM with RIGHT > LEFT"),
        (["explain", "--within", "1,2,3"], 2, "pixels of the photograph, or the file of a mask"),
        (["explain", "--within", "1,2,3,4"], 1, "--within has no meaning for efficientnet-lite0, whose output is 1000"),
        (["explain", "--similar-to", "a.jpg", "--target", "cat"], 2, "--similar-to compares whole outputs"),
        (["explain", "--similar-to", "a.jpg"], 1, "a.jpg: no such file"),
        (["explain", "--step", "2"], 1, "--step 2 needs an output of (step, class)"),
        (["explain", "--task", "labels"], 2, "--task must be one of classification, multi-label, regression"),
        (["explain", "--probability", "--versus", "rest"], 1, "leave out --probability, or name the rival"),
        (
            ["explain", "."],
            1,
            ".: is a folder, not an image; give its files, such as ./*.jpg, or the folder",
        ),
        (["report", "."], 2, ".: holds no explanation with a record.json"),
        (["compare", "--target", "top3"], 2, "compare draws one; give top1, an index or a name"),
        (["explain", "none.png"], 1, "none.png: no such file"),
        (["explain", "--weights", "none.pth"], 2, "weights none.pth: no such file"),
        (["explain", "--labels", "none.txt"], 2, "labels none.txt: cannot be read"),
        (["taps", "--taps", "5x5"], 2, "there are 112x112, 56x56, 28x28, 14x14, 7x7"),
        (["taps", "--model", "none.py:make"], 2, "no such file none.py"),
        (["run", "none", "--out", "results"], 2, "icam: none: no such folder or file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    assert_one_line(icam(*arguments, cwd=tmp_path), code, message)
    assert not any(path.is_dir() and any(path.iterdir()) for path in tmp_path.iterdir())


def test_a_tiny_photograph_is_drawn_large_with_its_region(lite0: Network, tmp_path: Path) -> None:
    Image.new("RGB", (40, 32), (90, 120, 200)).save(tmp_path / "tiny.png")
    prediction = predict(tmp_path / "tiny.png", lite0)
    drawn = enlarge(prediction, explain(lite0.model, prediction.view.tensor).map[0])
    assert drawn.photograph.size == (320, 256)
    assert drawn.view.region == pytest.approx([8 * each for each in prediction.view.region])
    assert drawn.to_photograph((0, 0, 224, 224)) == pytest.approx(drawn.view.region)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    run = icam("explain", "--bias", "full", "--debug", cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert "RecipeError" in run.stderr


def test_a_crash_in_the_users_network_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x[0, 0, 0, 0, 0]\n"
    )
    run = icam("taps", "--model", "mine.py:Net", cwd=tmp_path)
    note, crash = run.stderr.splitlines()
    assert run.returncode == 2
    assert note.startswith(
        "icam: Net() returns a module, which does not say what it takes: photographs are scaled to 256"
    )
    assert crash.startswith("icam: unexpected IndexError")


def test_taps(tmp_path: Path) -> None:
    run = icam("taps", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "33 taps for input 3x224x224" in run.stdout
    last = next(line for line in run.stdout.splitlines() if "blocks.6.0.bn2.act" in line).split()
    assert last[-8:] == ["7", "x", "7", "32", "x", "32", "all", last[-1]]
    assert int(last[-1]) < 6  # biases that come after it: the last block's end, the head
    run = icam("taps", "--model", "timm/resnet10t", "--all", "--json", cwd=tmp_path)
    kinds = {tap["kind"] for tap in json.loads(run.stdout)}
    assert kinds >= {"activation", "conv", "norm", "merge", "pool"}


def test_compare_and_methods(tmp_path: Path, photographs: Path) -> None:
    run = icam(
        "compare", photographs / "coffee.png", "--methods", "integrative, gradcam,layercam-fused", "--target", "cup",
        "--out", "results", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["target"]["label"] == "cup"
    assert load().label(answer["target"]["index"]) == "cup"
    assert list(answer["area_above_half"]) == ["integrative", "gradcam", "layercam-fused"]
    picture = np.asarray(Image.open(tmp_path / answer["picture"]).convert("RGB"))
    assert picture.std() > 30  # photographs, not a blank sheet
    run = icam("methods", cwd=tmp_path)
    assert "gradcam++" in run.stdout
    assert "arXiv:1710.11063" in run.stdout


def test_method_with_an_ingredient_changed(tmp_path: Path) -> None:
    run = icam("explain", "--method", "gradcam", "--taps", "stages", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    recipe = json.loads(run.stdout)["explanations"][0]["recipe"]
    assert (recipe["taps"], recipe["aggregation"], recipe["negative_share"], recipe["bias"]) == (
        ["stages"], "channel", 1.0, "none",
    )  # fmt: skip


def test_help_teaches(tmp_path: Path) -> None:
    run = icam("--help", cwd=tmp_path)
    assert run.returncode == 0
    assert "icam explain photo.jpg --target top3" in " ".join(run.stdout.split())
    run = icam("explain", "--help", cwd=tmp_path)
    for option in (
        "--model",
        "--weights",
        "--target",
        "--versus",
        "runner-up",
        "281+282+285",
        "--within",
        "--similar-to",
        "--probability",
        "--step",
        "--negate",
        "--task",
        "--out",
        "--readout",
        "--negative-share",
        "--json",
    ):
        assert option in run.stdout
    assert icam("--version", cwd=tmp_path).stdout.startswith("icam 0.")
