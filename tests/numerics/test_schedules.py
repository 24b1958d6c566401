"""The cubic schedule against its formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.schedules import cubic_sparsity


@given(st.integers(-5, 40), st.integers(0, 10), st.integers(1, 20), st.floats(0.01, 0.99))
def test_rises_from_zero_to_final(step: int, first: int, length: int, final: float) -> None:
    last = first + length
    now = cubic_sparsity(step, first=first, last=last, final=final)
    after = cubic_sparsity(step + 1, first=first, last=last, final=final)
    assert 0 <= now <= after <= final
    assert (now == final) == (step >= last) or now == pytest.approx(final)
    assert step > first or now == 0


def test_is_equation_one_of_zhu_and_gupta() -> None:
    t, t0, span, final = 7, 3, 10, 0.9  # s_t = s_f + (s_i - s_f) * (1 - (t - t0) / span) ** 3
    expected = final + (0 - final) * (1 - (t - t0) / span) ** 3
    assert cubic_sparsity(t, first=t0, last=t0 + span, final=final) == pytest.approx(expected)
