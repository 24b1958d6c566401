from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelzip.archive.integers import static
from modelzip.archive.integers.table import read_table
from modelzip.errors import ArchiveError, MissingExtraError

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
DTYPES = st.sampled_from(["int8", "uint8", "int16", "uint16", "int32"])


def bell(spread: float, count: int, limit: int) -> np.ndarray:
    drawn = np.rint(np.random.default_rng(0).normal(0, spread, count))
    return np.clip(drawn, -limit, limit).astype(np.int16)


def entropy(values: np.ndarray) -> float:
    """Bits per value of a code that knows every frequency."""
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum())


def unpack(encoded: static.Encoded, like: np.ndarray) -> np.ndarray:
    return static.decode(encoded.data, encoded.params, like.shape, like.dtype)


def refused(data: bytes, count: int, text: str, dtype: str = "int8") -> None:
    with pytest.raises(ArchiveError, match=text):
        static.decode(data, {}, (count,), dtype)


@settings(deadline=None)
@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)))
def test_any_integers_come_back(values: np.ndarray) -> None:
    found = unpack(static.encode(values), values)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
def test_extremes_come_back_beside_many_small_ones(dtype: str) -> None:
    bounds = np.iinfo(dtype)
    values = np.zeros(3000, dtype)
    values[::7] = 3
    values[1], values[2000], values[2500] = bounds.min, bounds.max, bounds.max
    np.testing.assert_array_equal(unpack(static.encode(values), values), values)


def test_values_of_several_chunks_come_back() -> None:
    values = bell(2, 3 * static.CHUNK + 5, 127)
    values[:: static.CHUNK // 3] = 30_000
    np.testing.assert_array_equal(unpack(static.encode(values), values), values)


@pytest.mark.parametrize(("spread", "limit"), [(30, 127), (2, 7), (0.4, 3)])
def test_size_is_within_two_hundredths_of_a_bit_of_the_entropy(spread: float, limit: int) -> None:
    values = bell(spread, 100_000, limit)
    assert 8 * len(static.encode(values).data) / values.size < entropy(values) + 0.02


def test_wide_integers_take_what_their_distribution_says() -> None:
    values = bell(1000, 100_000, 32_767)
    ideal = np.log2(1000 * np.sqrt(2 * np.pi * np.e))  # of the normal distribution
    assert 8 * len(static.encode(values).data) / values.size < ideal + 0.02


def test_a_tensor_of_one_value_takes_a_few_bytes() -> None:
    assert len(static.encode(np.full(10**6, -7, np.int8)).data) < 6


def test_no_integers_are_no_bytes() -> None:
    assert static.encode(np.empty((0, 3), np.int8)) == ({}, b"")


def test_words_are_decoded_by_the_arithmetic_that_the_docstring_gives() -> None:
    values = bell(3, 500, 12)
    values[[3, 77]] = 900
    data = static.encode(values).data
    table, start = read_table(memoryview(data))
    sizes = [int(size) for size in table.frequencies()]
    assert sum(sizes) == 1 << 24
    starts = np.cumsum([0, *sizes]).tolist()
    words = np.frombuffer(data[start : len(data) - table.escapes * table.width], "<u4").tolist()
    escaped = iter(np.frombuffer(data[len(data) - table.escapes * table.width :], "<i2").tolist())
    state = words.pop() << 32 | words.pop()
    found = []
    for _ in values:
        slot = state % (1 << 24)
        entry = next(i for i in range(len(sizes)) if starts[i] <= slot < starts[i + 1])
        found.append(next(escaped) if entry == table.size else table.low + entry)
        state = sizes[entry] * (state >> 24) + slot - starts[entry]
        while state < 1 << 32 and words:
            state = state << 32 | words.pop()
    assert state == 0
    assert found == values.tolist()


def test_bytes_of_version_one_are_still_read() -> None:
    data = bytes.fromhex("100583011165313ffffffffffffffffffffffffffffffd002a1880d7a7661900")
    found = static.decode(data, {}, (16,), np.int8)
    assert found.tolist() == [0, 1, -1, 0, 2, 0, 0, -3, 0, 1, 0, 0, -1, 0, 127, 0]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_bytes_are_refused_or_decode_to_other_integers(data: st.DataObject) -> None:
    values = bell(data.draw(st.sampled_from([0.3, 3, 300])), 400, 3000)
    whole = bytearray(static.encode(values).data)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for damaged in (bytes(whole), cut):
        try:
            found = static.decode(damaged, {}, values.shape, values.dtype)
        except ArchiveError:
            continue
        assert found.shape == values.shape


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 50), DTYPES)
def test_random_bytes_are_refused_or_decode_to_integers(data: bytes, n: int, dtype: str) -> None:
    try:
        found = static.decode(data, {}, (n,), dtype)
    except ArchiveError:
        return
    assert found.shape == (n,)


def test_every_cut_is_found() -> None:
    values = bell(3, 200, 12)
    values[50] = 3000
    data = static.encode(values).data
    for size in range(len(data)):
        with pytest.raises(ArchiveError):
            static.decode(data[:size], {}, values.shape, values.dtype)


def test_bytes_that_cannot_be_right_are_refused_by_what_is_wrong() -> None:
    data = static.encode(bell(3, 200, 12)).data
    refused(b"", 3, "0 bytes cannot be 3 integers")
    refused(b"123", 0, "3 bytes cannot be 0 integers")
    refused(data[:-1], 200, "do not end where a word does")
    refused(data[:-4] + bytes(4), 200, "the last of its words is 0")
    refused(data, 199, "data is left after 199 integers, or was missing")
    refused(b"\x00\x00\x81\x80\x04", 3, "its table has 65537 entries, and at most 65536")
    refused(b"\x00\x00\x02\x00", 3, "its table is cut short or damaged")
    refused(b"\x10\x00\x01\x80", 3, "all entries of its table are absent")
    refused(b"\x00\x00\x01\x40", 3, "the ranks of its table are not from 0 to at most 511")
    refused(b"\x00\xfe\x01\x02\xc0", 3, "its integers 127 to 128 are not -128 to 127")
    refused(b"\x80\x00\x01\x80abc", 3, "int8 has no remainders of a byte")
    with pytest.raises(ArchiveError, match="static has no parameters, got low"):
        static.decode(data, {"low": 3}, (200,), np.int8)


def test_more_escapes_than_escaped_values_are_refused() -> None:
    data = b"\x20\x00\x00\x00\x80"  # all escape, and none is there
    refused(data, 3, "more than its 0 escaped values are needed")
    refused(b"\x40\x00\x00\x01\x80\x00\x7f", 1, "its integers 32512 to 32512 are not -128 to 127")


def test_integers_beyond_32_bits_are_refused() -> None:
    with pytest.raises(ArchiveError, match="integers of 32 bits with a sign, got 0 to 2147483648"):
        static.encode(np.array([0, 1 << 31]))


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"needs constriction: pip install .*\[archive\]"):
        static.encode(np.arange(5))
