"""What earlier calls left on disk: explanations, the results of a run, records for the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import harness
import torch
from torch import nn

with harness.instrumented("safetensors"):
    from PIL import Image

    from integrative_cam import Explanation, explain
    from integrative_cam.methods._registry import get_method
    from integrative_cam.models import Network, Preprocessing
    from integrative_cam.reports import cases_of_explanations, read_truth
    from integrative_cam.run import Results
    from integrative_cam.run._decode import Sample
    from integrative_cam.run._table import as_parquet, rows_of

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
FOUND = explain(MODEL, torch.rand(1, 3, 8, 8))
SAVED = FOUND.save(harness.WORK / "saved")
RUN, REPORT = harness.WORK / "run", harness.WORK / "report"
RECORD = {
    "image": "cat.png", "size": [8, 8], "seen": [0, 0, 8, 8], "model": "m", "task": "classification", "classes": 5,
    "method": "integrative", "named": "cat 50.0%", "target": {"index": 1, "label": "cat", "classes": [1]},
    "probability": 0.5,
    "top": [{"index": 1, "label": "cat", "probability": 0.5}, {"index": 2, "label": "b", "probability": 0.1}],
    "score": 1.0, "parts": {"input": 1.0, "bias": 0.0, "remainder": 0.5}, "area_above_half": 0.1, "guarded": 0,
    "layers": [layer.summary for layer in FOUND.layers], "recipe": None, "notes": [],
}  # fmt: skip


def shard() -> tuple[bytes, dict[str, Any]]:
    """A shard of a run with one row, and the record of its part."""
    network = Network("m", MODEL, Preprocessing(8, (8, 8)))
    samples = [Sample("cat.png", torch.zeros(3, 8, 8).numpy(), 8, 8, None)]
    rows = rows_of(get_method("integrative")(MODEL, torch.rand(1, 3, 8, 8)), 1, samples, network, 0.5)
    about = {"layers": [[layer.name, layer.kind] for layer in FOUND.layers]}
    about |= {"bias_layers": [layer.name for layer in FOUND.bias_layers], "images": 1, "halvings": 0, "failures": []}
    content = as_parquet(rows, about)
    failure = {"key": "b.png", "kind": "image", "reason": "broken"}
    part = {
        "name": "0000000-0000.parquet",
        "bytes": len(content),
        "images": 1,
        "rows": 1,
        "failures": [failure],
        "halvings": 0,
    }
    record = {"part": 0, "shards": [part], "failures": [], "decoder_deaths": 0, "unfinished": "", "fatal": False}
    return content, record


SHARD, PART = shard()
MANIFEST = {"format": 1, "recipe": json.loads((SAVED / "manifest.json").read_text())["recipe"]}


def attempt(data: bytes) -> None:
    """Alter one of the files and read all."""
    choices = harness.chosen(data)
    [explanation, results, report][choices.ConsumeIntInRange(0, 2)](choices)


def explanation(choices: Any) -> None:
    """`Explanation.load`."""
    folder = harness.WORK / "altered"
    shutil.copytree(SAVED, folder, dirs_exist_ok=True)
    _alter(folder / choices.PickValueInList(["manifest.json", "arrays.safetensors"]), choices)
    found = Explanation.load(folder)
    repr(found), found.weights, found.completeness.remainder


def results(choices: Any) -> None:
    """`Results` and all of its rows."""
    files = {
        "manifest.json": json.dumps(MANIFEST).encode(),
        "done/0000000.json": json.dumps(PART).encode(),
        "shards/0000000-0000.parquet": SHARD,
    }
    for place, content in files.items():
        (RUN / place).parent.mkdir(parents=True, exist_ok=True)
        (RUN / place).write_bytes(content)
    _alter(RUN / choices.PickValueInList(list(files)), choices)
    found = Results(str(RUN))
    found.failures, found.layers, found.table()
    for row in range(min(len(found), 3)):
        found[row].map.mean()


def report(choices: Any) -> None:
    """The cases of `icam report`."""
    folder = REPORT / "cat"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "overlay.png")
    shutil.copytree(SAVED, folder / "explanation", dirs_exist_ok=True)
    (folder / "record.json").write_text(json.dumps(RECORD))
    _alter(folder / choices.PickValueInList(["record.json", "overlay.png", "explanation/arrays.safetensors"]), choices)
    cases_of_explanations(REPORT, read_truth(None))


def _alter(file: Path, choices: Any) -> None:
    if file.suffix == ".json" and choices.ConsumeIntInRange(0, 3):
        file.write_bytes(harness.altered(json.loads(file.read_text()), choices))
    else:
        file.write_bytes(harness.spoiled(file.read_bytes(), choices))


if __name__ == "__main__":
    harness.fuzz(attempt, harness.noise(8, 4, 16, 64, 256))
