"""The table of docs/comparison.md: every cell is tried again on the library that it speaks of."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchcam", reason="needs Python 3.11")
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
try:
    import comparison
    import libraries
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

PAGE = (ROOT / "docs" / "comparison.md").read_text()
TOLD = comparison.read(PAGE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a peer's, of an object half made
@pytest.mark.parametrize("row", comparison.ROWS)
def test_the_page_tells_what_is_so(row: str) -> None:
    before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert [found.partition("\t")[0] for found in comparison.answers(row)] == TOLD[row]
    assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))


def test_the_page_has_every_row_as_printed() -> None:
    assert list(TOLD) == list(comparison.ROWS)
    assert comparison.table(TOLD).rsplit("\n", 1)[0].split("\n", 1)[1] in PAGE


def test_the_peers_are_those_that_were_tried() -> None:
    for library in libraries.LIBRARIES[1:]:
        assert f" {library} {metadata.version(library)} |" in PAGE


# The judges themselves


def test_a_wrong_map_is_not_right() -> None:
    wanted = libraries.expected()
    assert libraries.right(lambda: 3 * wanted + 1)
    assert not libraries.right(lambda: wanted.flip(2))
    assert not libraries.right(lambda: wanted[:1])
    assert not libraries.right(lambda: torch.full_like(wanted, torch.nan))
    assert not libraries.right(lambda: None)
    assert libraries.reasons


def test_a_change_of_the_model_is_seen() -> None:
    model = libraries.small()
    before = libraries.state_of(model)
    assert libraries.state_of(model) == before
    with model[1].register_forward_hook(lambda *_: None):
        assert libraries.state_of(model) != before
    assert libraries.state_of(model.train()) != before
    model.eval()[0].weight.grad = torch.zeros_like(model[0].weight)
    assert libraries.state_of(model) != before


def test_the_expected_map_by_hand() -> None:
    """Two channels, two positions: slopes (1, 3) and (-2, 0), values (4, 2) and (1, 5)."""
    slopes = torch.tensor([[[1.0, 3.0], [-2.0, 0.0]]])
    found = libraries.paper(
        lambda x: x, lambda a: (a * slopes).sum((1, 2))[:, None], torch.tensor([[[4.0, 2.0], [1.0, 5.0]]]), lambda o: o
    )
    # Means of slopes: 2 and -1.
    assert found.tolist() == [[7.0, -1.0]]
