"""Masks against plain Python: counts, order, ties, groups and blocks."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.masks import (
    block_norms,
    block_sums,
    expand_blocks,
    magnitude_mask,
    nm_mask,
    score_mask,
)

values = st.lists(
    st.floats(-8, 8, width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=40
)


@given(values, st.floats(0, 1))
def test_magnitude_mask_drops_the_first_of_the_sorted(items: list[float], sparsity: float) -> None:
    count = round(sparsity * len(items))
    ranked = sorted(range(len(items)), key=lambda i: (abs(items[i]), i))
    mask = magnitude_mask(torch.tensor(items), sparsity)
    assert [i for i, keep in enumerate(mask.tolist()) if not keep] == sorted(ranked[:count])


@given(values, st.floats(0, 1), st.floats(0, 1), st.randoms(use_true_random=False))
def test_held_entries_go_first(items: list[float], a: float, b: float, random: object) -> None:
    weight, changed = torch.tensor(items), torch.tensor(items[::-1])
    first = magnitude_mask(weight, min(a, b))
    second = magnitude_mask(changed, max(a, b), held=first)
    assert not bool((second & ~first).any())
    assert int((~second).sum()) == round(max(a, b) * len(items))


def test_magnitude_mask_keeps_the_shape() -> None:
    mask = magnitude_mask(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), 0.5)
    assert mask.tolist() == [[False, True], [True, False]]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.data())
def test_nm_mask_keeps_n_of_every_m(
    rows: int, groups: int, group: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, group))
    size = rows * groups * group
    items = data.draw(st.lists(st.floats(-4, 4, width=32), min_size=size, max_size=size))
    mask = nm_mask(torch.tensor(items).reshape(rows, -1), keep=keep, group=group)
    for start in range(0, size, group):
        kept = mask.flatten()[start : start + group].tolist()
        assert sum(kept) == keep
        lost = [abs(v) for v, k in zip(items[start : start + group], kept, strict=True) if not k]
        left = [abs(v) for v, k in zip(items[start : start + group], kept, strict=True) if k]
        assert max(lost, default=0) <= min(left)


def test_nm_mask_of_a_kernel_groups_its_inputs_at_each_tap() -> None:
    weight = torch.zeros(1, 2, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 2.0])
    weight[0, :, 0, 1] = torch.tensor([4.0, 3.0])
    mask = nm_mask(weight, keep=1, group=2)
    assert mask[0, :, 0, 0].tolist() == [False, True]
    assert mask[0, :, 0, 1].tolist() == [True, False]


def test_nm_mask_drops_the_first_of_equals() -> None:
    assert nm_mask(torch.ones(1, 4), keep=1, group=4).tolist() == [[False, False, False, True]]


def test_block_norms_are_those_of_each_tap() -> None:
    weight = torch.arange(16.0).reshape(4, 2, 2)
    norms = block_norms(weight, rows=2, columns=2)
    by_hand = math.sqrt(sum(float(weight[o, i, 1]) ** 2 for o in (2, 3) for i in (0, 1)))
    assert norms.shape == (2, 1, 2)
    assert math.isclose(float(norms[1, 0, 1]), by_hand, rel_tol=1e-6)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_expand_blocks_repeats_each_entry(a: int, b: int, rows: int, columns: int) -> None:
    mask = torch.rand(a, b, 2, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = expand_blocks(mask, rows=rows, columns=columns)
    assert whole.shape == (a * rows, b * columns, 2)
    for i in range(a * rows):
        for j in range(b * columns):
            assert whole[i, j].tolist() == mask[i // rows, j // columns].tolist()


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_score_mask_drops_the_lowest_even_below_zero(items: list[float], sparsity: float) -> None:
    order = sorted(range(len(items)), key=lambda i: items[i])  # stable, as the mask's ties
    mask = score_mask(torch.tensor(items), sparsity)
    gone = round(sparsity * len(items))
    assert [i for i in range(len(items)) if not mask[i]] == sorted(order[:gone])


def test_signed_nm_mask_drops_the_most_negative() -> None:
    scores = torch.tensor([[-5.0, 1.0, -2.0, 3.0]])
    mask = nm_mask(scores, keep=2, group=4, signed=True)
    assert mask.tolist() == [[False, True, False, True]]


def test_block_sums_are_those_of_each_tap() -> None:
    scores = torch.tensor([[[1.0, -2.0], [3.0, 4.0]], [[-5.0, 6.0], [7.0, 8.0]]])
    assert block_sums(scores, rows=2, columns=1).tolist() == [[[-4.0, 4.0], [10.0, 12.0]]]
