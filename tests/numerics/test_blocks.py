"""Weights cut into blocks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.blocks import join, split

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4)


@given(shapes, st.none() | st.integers(1, 50))
def test_joining_gives_back_what_was_split(shape: list[int], block_size: int | None) -> None:
    weight = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    blocks = split(weight, block_size)
    assert blocks.shape[0] == shape[0]
    assert blocks.shape[2] <= (block_size or weight[0].numel())
    assert torch.equal(join(blocks, weight.shape), weight)
    assert int((blocks == 0).sum()) == blocks.numel() - weight.numel()


def test_blocks_run_along_the_inputs_of_an_output() -> None:
    weight = torch.arange(8).view(2, 2, 2, 1)
    assert split(weight, 3).tolist() == [[[0, 1, 2], [3, 0, 0]], [[4, 5, 6], [7, 0, 0]]]


def test_no_size_and_a_large_one_make_each_output_one_block() -> None:
    weight = torch.arange(6).view(2, 3)
    for block_size in (None, 3, 100):
        assert split(weight, block_size).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
