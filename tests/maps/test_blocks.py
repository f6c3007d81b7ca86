"""Blocks change nothing but the time: any size of block, any layout in memory, any precision."""

from __future__ import annotations

import networks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from integrative_cam import explain
from integrative_cam._maps import blocks


def moments(values: Tensor, factor: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    assert len(values) == len(factor) == len(rho)
    return (values * factor).sum(1) * rho[:, None], values.square().sum((1, 2))


@networks.examples(40)
@given(
    st.tuples(*[st.integers(1, 5)] * 4), st.integers(1, 60), st.booleans(), st.sampled_from([torch.half, torch.double])
)
def test_any_block_gives_the_same(shape: tuple[int, ...], size: int, channels_last: bool, dtype: torch.dtype) -> None:
    # Small integers: sums are exact in every order.
    generator = torch.Generator().manual_seed(size)
    values = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    factor = torch.randint(-3, 4, shape[:2], generator=generator).to(dtype)
    rho = torch.arange(1.0, shape[0] + 1)
    if channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        at, total = blocks.sum_over_blocks(moments, (values, factor), rho)
    expected = torch.einsum("bchw,bc,b->bhw", values.double(), factor.double(), rho.double())
    assert at.dtype == total.dtype == (torch.float32 if dtype == torch.half else torch.float64)
    assert at.double().tolist() == expected.flatten(1).tolist()
    assert total.double().tolist() == values.double().square().sum((1, 2, 3)).tolist()


def test_an_explanation_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 7, 3), torch.nn.ReLU(), torch.nn.Conv2d(7, 5, 3), torch.nn.LeakyReLU(),
        torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 4),
    ).double()  # fmt: skip
    images = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    whole = explain(model, images)
    monkeypatch.setattr(blocks, "BLOCK", 100)
    torch.testing.assert_close(explain(model, images).map, whole.map)
    torch.testing.assert_close(explain(model, images).weights, whole.weights)
