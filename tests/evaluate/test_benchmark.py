"""Metrics by name on a method's map, and the command that measures many photographs."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from integrative_cam import explain, get_method
from integrative_cam.cli._options import weights_by_model
from integrative_cam.errors import InputError, RecipeError
from integrative_cam.evaluate import _faithfulness as faithfulness
from integrative_cam.evaluate import _localisation as localisation
from integrative_cam.evaluate import _simplicity as simplicity
from integrative_cam.evaluate import (
    class_dependence,
    faithfulness_correlation,
    grid_pointing,
    infidelity,
    mask_of_boxes,
    max_sensitivity,
    planted_patch,
    randomisation,
    single_cell,
)
from integrative_cam.evaluate._benchmark import LOCALISATION, METRICS, Regions, evaluate
from integrative_cam.models import read_image

torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
    nn.Linear(8 * 36, 4),
).eval()  # fmt: skip
IMAGES = torch.randn(3, 3, 16, 16)


def test_every_metric_is_its_function_on_the_methods_map() -> None:
    hirescam, recipe = get_method("hirescam"), get_method("hirescam").recipe
    companions = torch.stack([IMAGES.flip(0), -IMAGES, IMAGES.flip(-1)], 1)
    found = evaluate(MODEL, IMAGES, hirescam, tuple(METRICS), steps=4, seed=3, cells=4, companions=companions)
    explanation = explain(MODEL, IMAGES, recipe=recipe)
    maps, signed, target = explanation.map, explanation.signed_map, explanation.target
    insertion = faithfulness.insertion(MODEL, IMAGES, maps, target, 4)
    deletion = faithfulness.deletion(MODEL, IMAGES, maps, target, 4)
    again = explain(MODEL, IMAGES * maps[:, None], target, recipe).map
    coherency, complexity = simplicity.coherency(maps, again), simplicity.complexity(maps)
    drop = faithfulness.average_drop(MODEL, IMAGES, maps, target)
    generator = torch.Generator().manual_seed(3)
    imputed = faithfulness.road_combined(MODEL, IMAGES, maps, target, noise=0.01, generator=generator)
    generator.manual_seed(3)
    imputed_cells = faithfulness.road_combined(MODEL, IMAGES, maps, target, noise=0.01, generator=generator, cells=4)
    insertion_cells = faithfulness.insertion(MODEL, IMAGES, maps, target, 4, cells=4)
    deletion_cells = faithfulness.deletion(MODEL, IMAGES, maps, target, 4, cells=4)
    expected: dict[str, Tensor] = {
        "insertion": insertion,
        "deletion": deletion,
        "ins-del": insertion - deletion,
        "srg": faithfulness.srg(MODEL, IMAGES, maps, target, 4),
        "insertion-cells": insertion_cells,
        "deletion-cells": deletion_cells,
        "ins-del-cells": insertion_cells - deletion_cells,
        "srg-cells": faithfulness.srg(MODEL, IMAGES, maps, target, 4, cells=4),
        "single-cell": single_cell(MODEL, IMAGES, signed, target, 4),
        "faithfulness-correlation": faithfulness_correlation(MODEL, IMAGES, signed, target, 4, seed=3),
        "drop": drop,
        "increase": faithfulness.increase(MODEL, IMAGES, maps, target),
        "road": imputed,
        "road-cells": imputed_cells,
        "coherency": coherency,
        "complexity": complexity,
        "adcc": simplicity.adcc(drop, coherency, complexity),
        "arcc": simplicity.arcc(imputed, coherency, complexity),
        "area": simplicity.area(maps),
        "variation": simplicity.total_variation(maps),
        "randomisation": randomisation(MODEL, IMAGES, hirescam, target, 0.5, seed=3),
        "class-dependence": class_dependence(MODEL, IMAGES, hirescam, target),
        "class-dependence-second": class_dependence(MODEL, IMAGES, hirescam, target, "second"),
        "grid-pointing": grid_pointing(MODEL, IMAGES, companions, hirescam, target),
        "planted-patch": planted_patch(MODEL, IMAGES, hirescam),
        "planted-patch-pointing": planted_patch(MODEL, IMAGES, hirescam, localisation.pointing),
        "infidelity": infidelity(MODEL, IMAGES, hirescam, target, seed=3),
        "sensitivity": max_sensitivity(MODEL, IMAGES, hirescam, target, seed=3),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)


def test_methods_share_what_the_network_answers() -> None:
    """One class, one run of the network; another class, another one."""
    images, runs = IMAGES[:1], 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += not torch.is_grad_enabled()

    hook, answers = MODEL.register_forward_hook(count), {}
    metrics = ("single-cell", "faithfulness-correlation")
    alone = [evaluate(MODEL, images, get_method(name), metrics, target=1, cells=4) for name in ("random", "center")]
    apart, runs = runs, 0
    for name, expected in zip(("random", "center"), alone, strict=True):
        found = evaluate(MODEL, images, get_method(name), metrics, target=1, cells=4, answers=answers)
        assert found == expected
    assert 0 < 2 * runs <= apart + 2
    other = evaluate(MODEL, images, get_method("random"), metrics, target=2, cells=4, answers=answers)
    assert other == evaluate(MODEL, images, get_method("random"), metrics, target=2, cells=4)
    hook.remove()


def test_a_label_that_excludes_no_other_has_its_sigmoid_as_probability() -> None:
    """With one step, deletion is the mean of the image's probability and that of zeros."""
    image, target, integrative = IMAGES[:1], 2, get_method("integrative")
    with torch.no_grad():
        logits = MODEL(torch.cat([image, 0 * image])).double()
    labels = evaluate(MODEL, image, integrative, ["deletion"], steps=1, target=target, task="multi-label")
    assert labels["deletion"].item() == pytest.approx(logits.sigmoid()[:, target].mean().item(), rel=1e-6)
    classes = evaluate(MODEL, image, integrative, ["deletion"], steps=1, target=target)
    assert classes["deletion"].item() == pytest.approx(logits.softmax(1)[:, target].mean().item(), rel=1e-6)


def test_localisation_is_of_the_target_in_the_regions() -> None:
    target = torch.tensor([3, 0, 1])
    boxes = tuple(torch.tensor([[2.0, 3, 2.0 + size, 12]]) for size in (3, 6, 11))
    masks = torch.stack([mask_of_boxes(each, (16, 16)) for each in boxes])
    layercam, regions = get_method("layercam"), Regions(masks, boxes)
    found = evaluate(MODEL, IMAGES, layercam, tuple(LOCALISATION), target=target, regions=regions)
    maps = explain(MODEL, IMAGES, target, layercam.recipe).map
    expected: dict[str, Tensor] = {
        "pointing": localisation.pointing(maps, masks),
        "energy": localisation.energy(maps, masks),
        "top-share": localisation.top_share(maps, masks),
        "best-iou": localisation.best_iou(maps, masks),
        "maxboxacc": localisation.box_hits(maps, boxes),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)
    with pytest.raises(InputError, match="regions must say where the explained class is"):
        evaluate(MODEL, IMAGES, get_method("layercam"), ["energy"])
    with pytest.raises(InputError, match="companions must be three images per image for grid-pointing"):
        evaluate(MODEL, IMAGES, get_method("layercam"), ["grid-pointing"])
    with pytest.raises(InputError, match="regions must have boxes for maxboxacc"):
        evaluate(MODEL, IMAGES, get_method("layercam"), ["maxboxacc"], regions=Regions(masks))


def test_a_target_that_is_no_class_has_no_probability() -> None:
    with pytest.raises(InputError, match="target must be None, a class index or one per image"):
        evaluate(MODEL, IMAGES, get_method("gradcam"), ["insertion"], target=lambda output: output[0] - output[1])


def test_unknown_metrics() -> None:
    with pytest.raises(RecipeError, match=r"metric must be one of .* but got 'deletoin'. Did you mean 'deletion'"):
        evaluate(MODEL, IMAGES, get_method("gradcam"), ["insertion", "deletoin"])
    with pytest.raises(RecipeError, match="at least one of insertion"):
        evaluate(MODEL, IMAGES, get_method("gradcam"), [])


FACTORY = """
import torch
from torch import nn
from integrative_cam.models import Network, Preprocessing

def small():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return Network("small", nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5)), Preprocessing(40, (32, 32)))
"""


@pytest.fixture
def dataset(tmp_path: Path, photographs: Path) -> Path:
    """Photographs in a tree, with a list of some of them and a network beside it."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, place in {"chelsea.png": "a.png", "coffee.png": "b.png", "astronaut.png": "deep/c.png"}.items():
        shutil.copy(photographs / name, tmp_path / "photos" / place)
    shutil.copy(photographs / "rocket.jpg", tmp_path / "photos" / "d.JPG")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "list.csv").write_text("file,label\nphotos/b.png,3\nphotos/deep/c.png,1\n")
    (tmp_path / "net.py").write_text(FACTORY)
    return tmp_path


METRIC_NAMES = ("--metrics", "ins-del,drop")


def command(*arguments: str, metrics: tuple[str, ...] = METRIC_NAMES) -> list[str]:
    shared = ["--model", "net.py:small", "--methods", "integrative,gradcam", *metrics, "--steps", "2"]
    return [str(Path(sys.executable).with_name("icam")), "evaluate", *arguments, *shared]


def run(cwd: Path, *arguments: str, metrics: tuple[str, ...] = METRIC_NAMES) -> subprocess.CompletedProcess[str]:
    called = command(*arguments, metrics=metrics)
    return subprocess.run(called, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_folder(dataset: Path) -> None:
    done = run(dataset, "photos", "--out", "results")
    assert done.returncode == 0, done.stderr
    assert "net.py:small, n = 4" in done.stdout
    assert "integrative minus it" in done.stdout
    frame = polars.read_parquet(dataset / "results" / "results.parquet")
    assert frame.columns == ["model", "image", "object", "target", "method", "metric", "value"]
    assert sorted(frame["image"].unique()) == ["a.png", "b.png", "d.JPG", "deep/c.png"]
    assert len(frame) == 4 * 2 * 2
    with (dataset / "results" / "results.csv").open() as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == frame["value"].to_list()
    manifest = json.loads((dataset / "results" / "manifest.json").read_text())
    assert manifest["methods"] == ["integrative", "gradcam"]
    assert (manifest["target"], manifest["regions"]) == ("top1", None)
    assert "Mean rank: " in done.stdout
    plots = [f"{metric}-{kind}.{suffix}" for metric in ("drop", "ins-del") for kind in ("difference", "mean")
             for suffix in ("png", "svg")]  # fmt: skip
    assert sorted(path.name for path in (dataset / "results" / "plots").iterdir()) == plots
    page = (dataset / "results" / "report.html").read_text()
    # Four photographs, each with the photograph and two maps.
    assert page.count("data:image/jpeg;base64,") == 12
    assert "integrative and other methods on photos" in page
    assert manifest["torch"] == torch.__version__


def test_list_limit_and_weights(dataset: Path) -> None:
    done = run(dataset, "list.csv", "--out", "listed")
    assert done.returncode == 0, done.stderr
    assert polars.read_csv(dataset / "listed" / "results.csv")["image"].unique().sort().to_list() == [
        "photos/b.png", "photos/deep/c.png",
    ]  # fmt: skip
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    state = namespace["small"]().model.state_dict()  # type: ignore[operator]
    save_file({name: 2 * value for name, value in state.items()}, dataset / "w.safetensors")
    done = run(dataset, "photos", "--limit", "2", "--out", "other", "--weights", "net.py:small=w.safetensors")
    assert done.returncode == 0, done.stderr
    other = polars.read_csv(dataset / "other" / "results.csv")
    assert sorted(other["image"].unique()) == ["a.png", "d.JPG"]


def test_killed_run_goes_on_where_it_stopped(dataset: Path) -> None:
    """Killed once the first photograph is done: two processes measure the others, each once, with the same results."""
    whole = run(dataset, "photos", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(command("photos", "--out", "killed"), cwd=dataset, stderr=subprocess.DEVNULL)
    parts = dataset / "killed" / "parts"
    for _ in range(600):
        if list(parts.rglob("*.json")):
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    first = next(iter(sorted(parts.rglob("*.json"))))
    stamp = first.stat().st_mtime_ns
    done = run(dataset, "photos", "--out", "killed", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == stamp
    one, other = (polars.read_csv(dataset / name / "results.csv") for name in ("whole", "killed"))
    assert one.equals(other)


def test_a_process_that_dies_ends_the_command(dataset: Path) -> None:
    """It said nothing and waited for ever."""
    (dataset / "deadly.py").write_text("import os\n\ndef deadly():\n    os._exit(1)\n")
    arguments = [*command("photos", "--out", "out", "--processes", "2"), "--model", "deadly.py:deadly"]
    done = subprocess.run(arguments, cwd=dataset, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "A process that measured died" in done.stderr


def test_labels(dataset: Path) -> None:
    """The label's map is measured for the label, not for the top class; a photograph without one is reported."""
    (dataset / "list.csv").write_text("file,label\nphotos/b.png,3\nphotos/deep/c.png,\n")
    done = run(dataset, "list.csv", "--out", "labelled", "--target", "label")
    assert done.returncode == 1
    assert "c.png: has no label" in done.stderr
    frame = polars.read_csv(dataset / "labelled" / "results.csv")
    assert set(frame["target"]) == {3}
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    network = namespace["small"]()  # type: ignore[operator]
    network.model.eval()
    tensor = network.preprocessing(read_image(dataset / "photos" / "b.png")).tensor
    assert network.model(tensor).argmax().item() != 3
    expected = evaluate(network.model, tensor, get_method("gradcam"), ["ins-del"], 2, target=3)["ins-del"].item()
    chosen = frame.filter((polars.col("method") == "gradcam") & (polars.col("metric") == "ins-del"))
    assert chosen["value"].to_list() == [pytest.approx(expected, abs=1e-6)]


BOXES = """<annotation><object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>
</bndbox></object><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>451</xmax><ymax>300</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def voc(dataset: Path) -> Path:
    """Two cats of 451 x 300 pixels: a dog in the left half of one, cropped away from the other; its network beside."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (dataset / "voc" / folder).mkdir(parents=True)
    for name, corners in {"a": (100, 1, 195, 300), "b": (1, 1, 20, 300)}.items():
        shutil.copy(dataset / "photos" / "a.png", dataset / "voc" / "JPEGImages" / f"{name}.png")
        (dataset / "voc" / "Annotations" / f"{name}.xml").write_text(BOXES.format("dog", *corners))
    mask = Image.new("L", (451, 300))
    mask.paste(12, (99, 0, 195, 300))
    mask.save(dataset / "voc" / "SegmentationClass" / "a.png")
    net = (dataset / "net.py").read_text()
    (dataset / "net.py").write_text(net.replace("(32, 32)))", '(32, 32)), ("left", "dog", "cat", "c", "d"))'))
    return dataset


WHERE = ("--metrics", "pointing,energy,maxboxacc,drop")


def test_objects(voc: Path) -> None:
    """One dog is measured; the other is cropped away and both cats fill the view. Masks say the same as boxes."""
    done = run(voc, "voc", "--out", "boxes", metrics=WHERE)
    assert done.returncode == 0, done.stderr
    assert "Left out: 2 x cat covers half of the view or more" in done.stdout
    assert "Left out: 1 x dog is cropped away" in done.stdout
    frame = polars.read_csv(voc / "boxes" / "results.csv")
    assert frame.select("image", "object", "target").unique().rows() == [("a.png", "dog", 1)]
    measured = {method: set(group["metric"]) for (method,), group in frame.group_by("method")}
    where = {"pointing", "energy", "maxboxacc"}
    assert measured == {
        "integrative": {*where, "drop"},
        "gradcam": {*where, "drop"},
        **dict.fromkeys(("center", "uniform", "random"), where),
    }
    # Scaled to 60 x 40 and cropped from (14, 4) to 32 x 32: the box, 13.2 to 25.9 wide, holds 12 columns' centres.
    uniform = frame.filter((polars.col("method") == "uniform") & (polars.col("metric") == "energy"))["value"].item()
    assert uniform == pytest.approx(12 / 32)
    masks = run(voc, "voc", "--out", "masks", "--regions", "masks", metrics=("--metrics", "energy"))
    assert masks.returncode == 0, masks.stderr
    other = polars.read_csv(voc / "masks" / "results.csv")
    key = polars.col("metric") == "energy"
    assert other["value"].to_list() == pytest.approx(frame.filter(key)["value"].to_list(), abs=1e-6)


def test_nothing_to_measure(voc: Path) -> None:
    (voc / "voc" / "Annotations" / "a.xml").unlink()
    done = run(voc, "voc", "--out", "none", metrics=WHERE)
    assert done.returncode == 0, done.stderr
    assert "Left out: 1 x dog is cropped away" in done.stdout
    assert "Nothing could be measured" in done.stdout
    assert not (voc / "none" / "report.html").exists()


def test_bad_photographs_are_reported_and_the_others_measured(dataset: Path) -> None:
    (dataset / "photos" / "bad.png").write_text("no image")
    done = run(dataset, "photos", "--out", "results")
    assert done.returncode == 1
    assert "bad.png: not an image that can be read" in done.stderr
    assert "n = 4" in done.stdout
    assert "Traceback" not in done.stderr


def test_weights_of_the_only_network_need_no_name(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.pth"
    odd.touch()
    assert weights_by_model(["w.pth"], ["resnet18"]) == {"resnet18": Path("w.pth")}
    assert weights_by_model([str(odd)], ["resnet18"]) == {"resnet18": odd}
    assert weights_by_model(["x.py:f=w.pth"], ["x.py:f"]) == {"x.py:f": Path("w.pth")}
    assert weights_by_model(["b=2.pth", "a=1.pth"], ["a", "b"]) == {"a": Path("1.pth"), "b": Path("2.pth")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--out", "x"), "nowhere: no such folder or CSV file"),
        (("empty", "--out", "x"), "empty: holds no image"),
        (("other.csv", "--out", "x"), "other.csv: needs a column `file`, but has name"),
        (("photos", "--out", "photos"), "photos exists and holds no evaluation"),
        (
            ("photos", "--out", "begun"),
            "begun holds the results of another command: steps was 7, now 2. Repeat that command",
        ),
        (
            ("photos", "--out", "begun", "--weights", "net.py:small=w.pth"),
            'begun holds the results of another command: models was {"net.py:small": ""}, '
            'now {"net.py:small": "w.pth"}; steps was 7, now 2.',
        ),
        (
            ("photos", "--out", "x", "--model", "net.py:other", "--weights", "w.safetensors"),
            "--weights w.safetensors: must be MODEL=FILE for several networks, such as net.py:other=w.safetensors.",
        ),
        (
            ("photos", "--out", "x", "--weights", "smal=w.safetensors"),
            "--weights smal=w.safetensors: smal is not among the networks, net.py:small.",
        ),
        (("photos", "--out", "x", "--target", "label"), "icam: target label: photos has no labels"),
        (("photos", "--out", "x", "--target", "object"), "icam: target object: photos has no boxes or masks"),
        (("photos", "--out", "x", "--target", "top"), "icam: target must be one of top1, label, object"),
        (("photos", "--out", "x", "--regions", "masks"), "icam: regions needs to know where the explained class is"),
        (
            ("photos", "--out", "x", "--reference", "layercam"),
            "icam: reference layercam is not among the methods, integrative, gradcam.",
        ),
    ],
)
def test_errors(dataset: Path, arguments: tuple[str, ...], message: str) -> None:
    (dataset / "empty").mkdir()
    (dataset / "other.csv").write_text("name\nx\n")
    if "begun" in arguments:
        assert run(dataset, "list.csv", "--out", "begun").returncode == 0
        manifest = dataset / "begun" / "manifest.json"
        changed = {**json.loads(manifest.read_text()), "dataset": "photos", "steps": 7}
        manifest.write_text(json.dumps(changed))
    done = run(dataset, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("icam: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (dataset / "x").exists()
