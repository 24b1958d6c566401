"""Ties, resolved."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modelzip.core.channels.ties import Ties


def label(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30))))
def test_each_channel_finds_the_smallest_it_is_tied_to(
    count: int, pairs: list[tuple[int, int]]
) -> None:
    pairs = [(a, b) for a, b in pairs if max(a, b) <= count]
    ties = Ties(count)
    for a, b in pairs:
        ties.tie(label(a), label(b))
    smallest = list(range(count + 1))
    for _ in range(count):  # by hand: pass minima along until nothing changes
        for a, b in pairs:
            smallest[a] = smallest[b] = min(smallest[a], smallest[b])
    assert ties.resolve().root.tolist() == smallest


def test_ties_are_broadcast_and_skip_zeros() -> None:
    ties = Ties(5)
    ties.tie(label(1, 0).view(2, 1), label(2, 3))
    ties.tie(label(4, 5), label(0, 0))
    assert ties.resolve().root.tolist() == [0, 1, 1, 1, 4, 5]


def test_a_fixed_axis_holds_all_but_whole_units() -> None:
    rows = label(1, 2, 3, 4).view(2, 2)
    ties = Ties(4)
    ties.fix(rows, [1], "fixed")
    assert ties.resolve().stays.tolist() == [-1, 0, 0, 0, 0]
    ties.tie(label(1), label(2))
    assert ties.resolve().stays.tolist() == [-1, -1, -1, 0, 0]
    ties.tie(label(3), label(4))
    assert ties.resolve().stays.tolist() == [-1] * 5


def test_the_latest_reason_is_given() -> None:
    ties = Ties(2)
    ties.bar(label(1), "first")
    ties.bar(label(2), "second")
    ties.tie(label(1), label(2))
    units = ties.resolve()
    assert [units.reasons[i] for i in units.stays[1:]] == ["second", "second"]


def test_a_split_ties_across_its_shorter_axis() -> None:
    ties = Ties(6)
    ties.split(label(1, 2, 3, 4, 5, 6).view(2, 3), (0, 1))
    assert ties.resolve().root.tolist() == [0, 1, 2, 3, 1, 2, 3]


def test_a_split_into_whole_units_ties_nothing() -> None:
    ties = Ties(6)
    heads = label(1, 2, 3, 4, 5, 6).view(2, 3)
    ties.tie(heads[:, :1], heads)
    ties.split(heads, (0, 1))
    assert ties.resolve().root.tolist() == [0, 1, 1, 1, 4, 4, 4]


def test_owners_are_those_that_lay_a_unit_out() -> None:
    ties = Ties(3)
    ties.tie(label(1), label(2))
    ties.lay_out(label(2), "attention")
    assert ties.resolve().owners == {1: {"attention"}}
