from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelzip.archive.palette import MOST, SAMPLE, Palette, find_palette, from_palette
from modelzip.errors import ArchiveError

WIDTHS = pytest.mark.parametrize("width", [2, 4, 8])


def found(bits: np.ndarray) -> Palette:
    palette = find_palette(bits)
    assert palette is not None
    np.testing.assert_array_equal(from_palette(palette), bits.reshape(-1))
    return palette


@WIDTHS
@settings(deadline=None)
@given(data=st.data())
def test_any_few_patterns_of_bits_come_back(width: int, data: st.DataObject) -> None:
    kinds = data.draw(arrays.arrays(f"<u{width}", st.integers(1, 6)))
    picks = data.draw(arrays.arrays("u1", st.integers(100, 130)))
    palette = found(kinds[picks % len(kinds)])
    assert len(palette.table) <= len(kinds)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_integers_are_in_the_order_of_values_about_zero(dtype: str) -> None:
    values = np.array([-np.inf, -2, -1, -0.0, 0.0, 1, 3, np.inf, np.nan] * 20, dtype)
    palette = found(values.view(f"u{values.itemsize}"))
    assert palette.integers[:9].tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert palette.integers.dtype == np.int8


def test_values_without_a_zero_are_centred_between_negative_and_positive() -> None:
    values = np.float32([-3, -1, 2, 5] * 20)
    assert found(values.view("u4")).integers[:4].tolist() == [-2, -1, 0, 1]


@WIDTHS
def test_values_that_a_sample_misses_are_in_the_table(width: int) -> None:
    bits = np.zeros(5 * SAMPLE, f"<u{width}")
    bits[7], bits[SAMPLE + 11] = 500, 3
    assert found(bits).table.tolist() == [0, 3, 500]


@WIDTHS
def test_at_most_so_many_values_are_a_palette(width: int) -> None:
    bits = np.arange(MOST * 64).astype(f"<u{width}") % MOST
    if width > 2:  # 12 bits of 16 are more than three quarters with the table
        assert found(bits).integers.max() == MOST - 1
    else:
        assert found(bits // 16 * 16).integers.max() == MOST // 16 - 1
    assert find_palette(bits + np.arange(MOST * 64).astype(bits.dtype) // 999) is None


def test_palettes_that_gain_nothing_are_none() -> None:
    assert find_palette(np.arange(300, dtype="u4")) is None
    assert find_palette(np.arange(0, dtype="u4")) is None
    assert find_palette(np.random.default_rng(0).integers(0, 1 << 32, 10**5, "u4")) is None


@settings(deadline=None, max_examples=200)
@given(
    arrays.arrays(st.sampled_from(["u2", "u4", "u8"]), st.integers(0, 5)),
    arrays.arrays(st.sampled_from(["i1", "i2", "i4"]), st.integers(0, 5)),
)
def test_any_table_and_integers_are_values_or_refused(
    table: np.ndarray, integers: np.ndarray
) -> None:
    try:
        bits = from_palette(Palette(table, integers))
    except ArchiveError:
        return
    assert set(bits.tolist()) <= set(table.tolist())


def test_palettes_that_cannot_be_are_refused() -> None:
    table = np.float32([-1, 0, 2]).view("u4")
    one = np.zeros(1, np.int8)
    for wrong in (table[:0], table[[1, 0]], table[[1, 1]]):
        with pytest.raises(ArchiveError, match="a palette has 1 to 4096 values in order; this has"):
            from_palette(Palette(wrong, one))
    for integer in (-2, 2):
        with pytest.raises(ArchiveError, match=r"its integers are .*; the palette has -1 to 1"):
            from_palette(Palette(table, one + np.int8(integer)))
