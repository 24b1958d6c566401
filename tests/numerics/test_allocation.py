from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.errors import SettingError
from modelzip.numerics.allocation import allocate


@st.composite
def _tables(draw):
    rows, choices = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    numbers = st.integers(1, 1000)
    costs = [[draw(numbers) / 1000 for _ in range(choices)] for _ in range(rows)]
    sizes = [[draw(numbers) for _ in range(choices)] for _ in range(rows)]
    return costs, sizes


@given(_tables(), st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_no_other_choice_within_the_budget_costs_less(tables, share):
    costs, sizes = tables
    smallest, largest = sum(map(min, sizes)), sum(map(max, sizes))
    budget = 1.001 * smallest + share * (largest - smallest)
    chosen = allocate(costs, sizes, budget=budget)
    cost = sum(row[i] for row, i in zip(costs, chosen, strict=True))
    assert sum(row[i] for row, i in zip(sizes, chosen, strict=True)) <= budget * (1 + 1e-9)
    every = itertools.product(range(len(costs[0])), repeat=len(costs))
    counted = budget * (1 - len(costs) / 2**16)  # each size may be rounded up by a unit
    least = min(
        sum(row[i] for row, i in zip(costs, picks, strict=True))
        for picks in every
        if picks == tuple(chosen)
        or sum(row[i] for row, i in zip(sizes, picks, strict=True)) <= counted
    )
    assert cost == pytest.approx(least, rel=1e-9)


def test_costs_of_very_different_size_are_told_apart():
    # the first row's cheap choices differ by 1e-9 of what its worst one costs
    costs = [[1e6, 2e-3, 1e-3], [1e6, 2e-3, 1e-4]]
    assert allocate(costs, [[1, 2, 3], [1, 2, 3]], budget=5.01) == [1, 2]


def test_a_budget_below_the_smallest_choice_is_refused():
    with pytest.raises(SettingError, match="the smallest choice takes 7 bytes, over 6"):
        allocate([[1.0], [1.0]], [[3], [4]], budget=6)
