from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelzip.archive import floats
from modelzip.errors import ArchiveError

TYPES = pytest.mark.parametrize("dtype", floats.WIDTHS)


def back(bits: np.ndarray, dtype: str) -> np.ndarray:
    return floats.from_planes([plane.tobytes() for plane in floats.to_planes(bits)], dtype)


@TYPES
@settings(deadline=None)
@given(data=st.data())
def test_any_patterns_of_bits_come_back(dtype: str, data: st.DataObject) -> None:
    width = floats.WIDTHS[dtype]
    shape = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)
    bits = data.draw(arrays.arrays(f"<u{width}", shape))
    found = back(bits, dtype)
    assert found.dtype == bits.dtype
    np.testing.assert_array_equal(found, bits.reshape(-1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zeros_infinities_and_payloads_of_nan_come_back(dtype: str) -> None:
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).smallest_subnormal])
    bits = floats.to_bits(values.astype(dtype).tobytes(), dtype).copy()
    bits[4] += 5  # a payload
    assert np.isnan(bits.view(dtype)[4])
    np.testing.assert_array_equal(back(bits, dtype), bits)


@TYPES
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_about_a_chunk_come_back(dtype: str, extra: int) -> None:
    count = 2 * floats.CHUNK + extra
    data = np.random.default_rng(0).bytes(count * floats.WIDTHS[dtype])
    bits = floats.to_bits(data, dtype)
    assert back(bits, dtype).tobytes() == data


def test_patterns_that_are_not_contiguous_come_back() -> None:
    bits = np.arange(40, dtype="<u4").reshape(5, 8)[::2, ::3]
    np.testing.assert_array_equal(back(bits, "float32"), bits.reshape(-1))


def test_planes_are_sign_and_mantissa_below_the_exponent() -> None:
    bits = floats.to_bits(np.float32([-1.5, 2]).tobytes(), "float32")  # 0xBFC00000, 0x40000000
    assert floats.to_planes(bits).tolist() == [[1, 0], [0, 0], [128, 0], [127, 128]]


@pytest.mark.parametrize(
    "planes", [[b"12", b"34", b"56"], [b"12", b"34", b"5", b"78"], [], [b""] * 5]
)
def test_planes_of_wrong_number_or_size_are_refused(planes: list[bytes]) -> None:
    with pytest.raises(ArchiveError, match="float32 needs 4 planes of one size, got"):
        floats.from_planes(planes, "float32")


def test_other_types_are_refused() -> None:
    with pytest.raises(ArchiveError, match="'int8' is no type of floats; there are: float16, bfl"):
        floats.from_planes([b"1"], "int8")
