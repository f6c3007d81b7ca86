"""The table of docs/comparison.md: what integrative-cam, pytorch-grad-cam, torchcam and captum can do, each cell tried.

    python benchmarks/comparison.py            # prints the table and its notes
    python benchmarks/comparison.py --why      # and, for each row, why something failed
    python benchmarks/comparison.py --write    # puts them into the page

tests/project/test_comparison.py tries every row again and compares the answers with the page.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import capability_checks
import libraries as lib
import torch

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
BEGIN, END = "<!-- printed by python benchmarks/comparison.py -->", "<!-- end -->"
Try = Callable[[str], str]

SECTIONS: Mapping[str, Mapping[str, Try]] = {
    "Maps": {
        "Grad-CAM as in its paper": capability_checks.papers_map,
        "Grad-CAM++ as in its paper, eq. 19, for gradients of any size": capability_checks.plus_plus,
        "a layer with equal evidence everywhere is not drawn blank": capability_checks.constant,
        "evidence against the class, as negative values": capability_checks.signed,
        "an image's map is the same alone and in a batch": capability_checks.neighbours,
        "map of the images' size": capability_checks.input_size,
        "biases are part of the map": capability_checks.bias_in_map,
        "the score splits into parts that add up to it": capability_checks.splits,
        "map in a loss: gradients reach the weights": capability_checks.differentiable,
        "number of CAM methods, without controls": capability_checks.method_count,
        "attribution other than CAM: integrated gradients, LRP, ...": capability_checks.other_attribution,
        "concepts, factorised features": capability_checks.concepts,
        "windows at several scales (SESS)": capability_checks.windows,
        "influence of training examples": capability_checks.influence,
        "smoothing by augmented images or principal components": capability_checks.smoothing,
    },
    "Layers": {
        "layers are found without naming them": capability_checks.automatic,
        "several layers in one map": capability_checks.several_layers,
        "prediction and map from one forward pass": capability_checks.shared_pass,
        "activations that are functions": capability_checks.functions,
        "each call of a module that is called twice": capability_checks.called_twice,
        "a convolution with an in-place ReLU behind it": capability_checks.in_place,
        "tokens of a vision transformer": capability_checks.transformer,
    },
    "What is explained": {
        "each image's own top class, by default": capability_checks.own_class,
        "any scalar of the output": capability_checks.own_score,
        "outputs that are tuples, without a wrapper": capability_checks.returns(lambda output: (output, output.sum(1))),
        "outputs that are dicts, without a wrapper": capability_checks.returns(lambda output: {"logits": output}),
        "signals (1-D)": capability_checks.dimensions(1),
        "volumes (3-D)": capability_checks.dimensions(3),
        "several inputs": capability_checks.several_inputs,
        "each input's part of the score": capability_checks.shares,
        "text": capability_checks.text,
    },
    "Context of the call": {
        "frozen parameters": capability_checks.frozen,
        "inside `no_grad`": capability_checks.within(torch.no_grad),
        "inside `inference_mode`": capability_checks.within(torch.inference_mode),
        "inside `autocast`": capability_checks.autocast,
        "networks in bfloat16": capability_checks.half,
        "networks compiled by `torch.compile`": capability_checks.compiled,
        "two threads on one network": capability_checks.threads,
    },
    "State after the call": {
        "in training mode: evaluation mode's map; mode and statistics unchanged": capability_checks.training_mode,
        "accumulated gradients unchanged": capability_checks.accumulated,
        "no hooks left, also after an error": capability_checks.hooks,
        "every error of the network reaches the caller": capability_checks.errors,
    },
    "Tools": {
        "drop and increase": capability_checks.measures("drop", "classificationmetric"),
        "insertion and deletion": capability_checks.measures("deletion"),
        "ROAD": capability_checks.measures("road"),
        "infidelity and max-sensitivity": capability_checks.measures("infidelity"),
        "localisation in boxes and masks": capability_checks.measures("pointing"),
        "randomised weights": capability_checks.measures("randomisation"),
        "confidence intervals": capability_checks.measures("interval", "bootstrap"),
        "results saved and read back": capability_checks.saved,
        "folders and data sets": capability_checks.data_sets,
        "command": capability_checks.command,
        "web page, in the package": capability_checks.web_page,
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
    parser.add_argument("--why", action="store_true", help="also print why something failed, on standard error")
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
