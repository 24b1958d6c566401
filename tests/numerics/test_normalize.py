"""Scores of different groups on one scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.normalize import NORMALIZERS

SCORES = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=20)
SCALED = sorted(NORMALIZERS.keys() - {"none"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [1, 2, 5, 2]),
        ("mean", [0.4, 0.8, 2, 0.8]),
        ("max", [0.2, 0.4, 1, 0.4]),
        ("sum", [0.1, 0.2, 0.5, 0.2]),
        ("standard", [0, 0.25, 1, 0.25]),
        ("gaussian", [(x - 2.5) / 1.5 for x in (1, 2, 5, 2)]),
        ("lamp", [1 / 10, 2 / 9, 5 / 5, 2 / 9]),
    ],
)
def test_values_by_hand(name: str, expected: list[float]) -> None:
    found = NORMALIZERS[name](torch.tensor([1.0, 2.0, 5.0, 2.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", SCALED)
@given(values=SCORES, factor=st.floats(1e-3, 1e3))
def test_a_common_factor_does_not_matter(name: str, values: list[float], factor: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    if len(set(values)) > 1 and len(set((scores * factor).tolist())) != len(set(values)):
        return  # rounding made two scores equal
    # differences of almost equal scores are rounding alone
    spread = max(values) - min(values)
    tolerance = 1e-9 if not spread else 1e-9 + 1e-13 * max(values) / spread
    found = NORMALIZERS[name](scores * factor)
    torch.testing.assert_close(found, NORMALIZERS[name](scores), rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@given(values=SCORES, data=st.data())
def test_order_within_a_group_does_not_matter(
    name: str, values: list[float], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(values))))
    scores = torch.tensor(values, dtype=torch.float64)
    found = NORMALIZERS[name](scores[order])
    torch.testing.assert_close(found, NORMALIZERS[name](scores)[order], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@given(values=SCORES)
def test_ranks_are_kept_and_equals_stay_equal(name: str, values: list[float]) -> None:
    scores = torch.tensor([*values, values[0]], dtype=torch.float64)
    found = NORMALIZERS[name](scores)
    assert found[0] == found[-1]
    ranked = found[scores.argsort(stable=True)]
    assert bool((ranked.diff() >= -1e-12).all())


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_scores_stay_finite(name: str, value: float) -> None:
    found = NORMALIZERS[name](torch.full((3,), value))
    assert all(math.isfinite(x) for x in found.tolist())
    assert len(set(found.tolist())) == 1
