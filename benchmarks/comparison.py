"""What integrative-cam, pytorch-grad-cam, torchcam and captum can do, each cell tried: the table of docs/comparison.md.

    python benchmarks/comparison.py            # prints the table and its notes
    python benchmarks/comparison.py --why      # and, per row, what stood in the way
    python benchmarks/comparison.py --write    # puts them into the page

tests/test_comparison.py tries every row again and compares the answers with the page.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import libraries as lib
import torch
import tries

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
BEGIN, END = "<!-- printed by python benchmarks/comparison.py -->", "<!-- end -->"
Try = Callable[[str], str]

SECTIONS: Mapping[str, Mapping[str, Try]] = {
    "Maps": {
        "Grad-CAM as in its paper": tries.papers_map,
        "Grad-CAM++ as in its paper, eq. 19, for gradients of any size": tries.plus_plus,
        "a layer that speaks for the class everywhere is not drawn blank": tries.constant,
        "evidence against, as negative values": tries.signed,
        "an image's map is the same alone and in a batch": tries.neighbours,
        "map of the images' size": tries.input_size,
        "biases are part of the map": tries.bias_in_map,
        "the score splits into parts that add up to it": tries.splits,
        "map in a loss: gradients reach the weights": tries.differentiable,
        "CAM methods, controls aside": tries.method_count,
        "attribution other than CAM: integrated gradients, LRP, ...": tries.other_attribution,
        "concepts, factorised features": tries.concepts,
        "windows at several scales (SESS)": tries.windows,
        "influence of training examples": tries.influence,
        "smoothing by augmented images or principal components": tries.smoothing,
    },
    "Layers": {
        "layers found, none named": tries.automatic,
        "several layers in one map": tries.several_layers,
        "prediction and map from one run of the network": tries.shared_pass,
        "activations that are functions": tries.functions,
        "each call of a module that is called twice": tries.called_twice,
        "a convolution with an in-place ReLU behind it": tries.in_place,
        "tokens of a vision transformer": tries.transformer,
    },
    "What is explained": {
        "each image's own top class, without asking": tries.own_class,
        "any scalar of the output": tries.own_score,
        "outputs that are tuples, without a wrapper": tries.returns(lambda output: (output, output.sum(1))),
        "outputs that are dicts, without a wrapper": tries.returns(lambda output: {"logits": output}),
        "signals (1-D)": tries.dimensions(1),
        "volumes (3-D)": tries.dimensions(3),
        "several inputs": tries.several_inputs,
        "each input's part of the score": tries.shares,
        "text": tries.text,
    },
    "Where it is called": {
        "frozen parameters": tries.frozen,
        "inside of `no_grad`": tries.within(torch.no_grad),
        "inside of `inference_mode`": tries.within(torch.inference_mode),
        "inside of `autocast`": tries.autocast,
        "networks in bfloat16": tries.half,
        "networks compiled by `torch.compile`": tries.compiled,
        "two threads, one network": tries.threads,
    },
    "What stays behind": {
        "training mode: evaluation's map, mode and statistics as before": tries.training_mode,
        "accumulated gradients are left alone": tries.accumulated,
        "no hooks, also after an error": tries.hooks,
        "every error of the network reaches the caller": tries.errors,
    },
    "Around it": {
        "drop and increase": tries.measures("drop", "classificationmetric"),
        "insertion and deletion": tries.measures("deletion"),
        "ROAD": tries.measures("road"),
        "infidelity and max-sensitivity": tries.measures("infidelity"),
        "localisation in boxes and masks": tries.measures("pointing"),
        "randomised weights": tries.measures("randomisation"),
        "confidence intervals": tries.measures("interval", "bootstrap"),
        "results saved and read back": tries.saved,
        "folders and data sets": tries.data_sets,
        "command": tries.command,
        "web page, in the package": tries.web_page,
    },
}
ROWS: Mapping[str, Try] = {name: row for section in SECTIONS.values() for name, row in section.items()}


def answers(name: str) -> list[str]:
    """A row's verdict for each library, each in the same state of the random numbers."""
    found = []
    for library in lib.LIBRARIES:
        lib.reasons.clear()
        with torch.random.fork_rng(devices=[]), lib.quiet():
            torch.manual_seed(0)
            found.append(ROWS[name](library))
        if lib.reasons:
            found[-1] += f"\t{lib.reasons[-1]}"
    return found


def table(tried: Mapping[str, Sequence[str]]) -> str:
    """The verdicts as Markdown: a table, and the notes that its numbers stand for."""
    notes: list[str] = []
    lines = []
    for section, rows in SECTIONS.items():
        lines += [f"| **{section}** |" + " |" * len(lib.LIBRARIES)]
        lines += [f"| {name} | {' | '.join(_cell(each, notes) for each in tried[name])} |" for name in rows]
    versions = [f"{each} {metadata.version(each)}" for each in lib.LIBRARIES]
    head = [f"| | {' | '.join(versions)} |", "|---" * (len(versions) + 1) + "|"]
    under = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    foot = f"torch {torch.__version__}, Python {platform.python_version()}; {len(tried)} rows."
    return "\n".join([*head, *lines, "", *under, "", foot])


def _cell(verdict: str, notes: list[str]) -> str:
    answer, _, note = verdict.partition(": ")
    if not note:
        return answer
    if note not in notes:
        notes.append(note)
    return f"{answer} ({notes.index(note) + 1})"


def read(page: str) -> dict[str, list[str]]:
    """The verdicts that a page tells, with the notes that its numbers stand for."""
    own = page.split(BEGIN)[1].split(END)[0]
    lines = own.strip().splitlines()
    notes = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
    found = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("|") and name in ROWS:
            parts = [cell.rstrip(")").partition(" (") for cell in cells]
            found[name] = [f"{answer}: {notes[number]}" if number else answer for answer, _, number in parts]
    return found


def main() -> None:
    """Try all rows, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--why", action="store_true", help="what stood in the way, on standard error")
    parser.add_argument("--write", action="store_true", help="put the table into docs/comparison.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tried = {name: answers(name) for name in ROWS}
    if arguments.why:
        for name, found in tried.items():
            for library, each in zip(lib.LIBRARIES, found, strict=True):
                print(f"{name} | {library} | {each}", file=sys.stderr)
    shown = table({name: [each.partition("\t")[0] for each in found] for name, found in tried.items()})
    print(shown)
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{shown}\n\n{END}{after}")


if __name__ == "__main__":
    main()
