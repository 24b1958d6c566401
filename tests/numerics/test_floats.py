"""What narrow floats lose, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.floats import largest_magnitude, misfit, underflow_count

anything = st.lists(st.floats(width=32), max_size=20)


@given(anything)
def test_float16_counts_agree_with_numpy(items: list[float]) -> None:
    values = np.array(items, dtype=np.float32)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    tensor = torch.from_numpy(values)
    assert underflow_count(tensor, torch.float16) == int(((values != 0) & (narrow == 0)).sum())


@given(anything)
def test_largest_magnitude_is_the_largest_finite_one(items: list[float]) -> None:
    expected = max((abs(v) for v in items if math.isfinite(v)), default=0.0)
    assert largest_magnitude(torch.tensor(items)) == pytest.approx(expected)


def test_bfloat16_reaches_as_far_as_float32() -> None:
    values = torch.tensor([1e38, 65504.0 * 2, 2e-38, -3e38])
    assert not any(misfit(abs(float(v)), torch.bfloat16) for v in values)
    assert underflow_count(values, torch.bfloat16) == 0
    assert underflow_count(torch.tensor([1e-45]), torch.bfloat16) == 1


@given(st.floats(0, 2**100, width=32))
def test_what_fits_float16_keeps_three_digits(peak: float) -> None:
    narrow = float(torch.tensor(peak, dtype=torch.float32).half())
    if not misfit(peak, torch.float16):
        assert narrow == pytest.approx(peak, rel=2**-11)
    elif peak > 1:
        assert narrow >= 65504


def test_misfit_says_both_numbers() -> None:
    assert misfit(1e5, torch.float16) == "reaches 1e+05, float16 holds 65504"
    assert misfit(2e-6, torch.float16) == "is at most 2e-06, float16 loses digits below 6.1e-05"
    assert misfit(0.0, torch.float16) == ""
