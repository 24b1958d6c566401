from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelzip.archive.integers import lanes
from modelzip.archive.integers.table import read_table
from modelzip.errors import ArchiveError

DTYPES = st.sampled_from(["int8", "uint8"])


def bell(count: int, spread: float = 3) -> np.ndarray:
    drawn = np.rint(np.random.default_rng(0).normal(0, spread, count))
    return np.clip(drawn, -127, 127).astype(np.int8)


def unpack(data: bytes, like: np.ndarray) -> np.ndarray:
    return lanes.decode(data, {}, like.shape, like.dtype)


def refused(data: bytes, count: int, text: str, dtype: str = "int8") -> None:
    with pytest.raises(ArchiveError, match=text):
        lanes.decode(data, {}, (count,), dtype)


@settings(deadline=None)
@given(DTYPES.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_side=0))))
def test_any_integers_come_back(values: np.ndarray) -> None:
    found = unpack(lanes.encode(values).data, values)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("count", [2047, 2048, 2049, 2 * lanes.GROUP - 1, 2 * lanes.GROUP + 1])
def test_sizes_about_a_row_and_a_group_come_back(count: int) -> None:
    for values in (bell(count), np.resize(np.arange(256, dtype=np.uint8), count)):
        np.testing.assert_array_equal(unpack(lanes.encode(values).data, values), values)


def test_compiled_decoding_finds_what_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    values = bell(40 * lanes.PER_LANE + 3)
    data = lanes.encode(values).data
    monkeypatch.setattr(lanes, "LONG", 1)
    monkeypatch.setattr(lanes, "_take", None)  # numpy's, which may not be called
    np.testing.assert_array_equal(unpack(data, values), values)
    refused(data[:-2], values.size, "words are needed")
    refused(data + b"xx", values.size, "data is left")


def test_the_most_lanes_are_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MOST_LANES", 64)
    values = bell(lanes.PER_LANE * 2 * lanes.MOST_LANES, 0.5)
    data = lanes.encode(values).data
    np.testing.assert_array_equal(unpack(data, values), values)
    shares = np.bincount(values - values.min()) / values.size
    shares = shares[shares > 0]
    entropy = float(-(shares * np.log2(shares)).sum())
    assert 8 * len(data) / values.size < entropy + 24 / (2 * lanes.PER_LANE) + 0.005


def test_one_value_takes_little_more_than_the_states() -> None:
    assert len(lanes.encode(np.full(4096, -7, np.int8)).data) == 4 + 4 * 4
    assert lanes.encode(np.empty((0, 3), np.int8)) == ({}, b"")


def test_words_are_decoded_by_the_arithmetic_that_the_docstring_gives() -> None:
    values = bell(5000)
    data = lanes.encode(values).data
    table, start = read_table(memoryview(data))
    sizes = table.frequencies(14).tolist()
    assert sum(sizes) == 1 << 14
    starts = np.cumsum([0, *sizes]).tolist()
    states = np.frombuffer(data[start : start + 16], "<u4").tolist()
    words = iter(np.frombuffer(data[start + 16 :], "<u2").tolist())
    found = []
    for index in range(values.size):
        state = states[index % 4]
        slot = state % (1 << 14)
        entry = next(i for i in range(len(sizes)) if starts[i] <= slot < starts[i + 1])
        found.append(table.low + entry)
        state = sizes[entry] * (state >> 14) + slot - starts[entry]
        states[index % 4] = state << 16 | next(words) if state < 1 << 16 else state
    assert next(words, None) is None
    assert states == [1 << 16] * 4
    assert found == values.tolist()


def test_bytes_of_version_one_are_still_read() -> None:
    found = lanes.decode(bytes.fromhex("1405067b655025570d00dce7"), {}, (2, 5), np.int8)
    assert found.tolist() == [[0, 1, -1, 0, 2], [0, 0, -3, 0, 1]]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_bytes_are_refused_or_decode_to_other_integers(data: st.DataObject) -> None:
    values = bell(data.draw(st.sampled_from([2500, 20000])))  # of few lanes, and of many
    long = data.draw(st.sampled_from([1, lanes.LONG]))  # by numba, and by numpy
    whole = bytearray(lanes.encode(values).data)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "LONG", long)
        for damaged in (bytes(whole), cut):
            try:
                found = unpack(damaged, values)
            except ArchiveError:
                continue
            assert found.shape == values.shape


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 50), DTYPES)
def test_random_bytes_are_refused_or_decode_to_integers(data: bytes, n: int, dtype: str) -> None:
    try:
        found = lanes.decode(data, {}, (n,), dtype)
    except ArchiveError:
        return
    assert found.shape == (n,)


def test_bytes_that_cannot_be_right_are_refused_by_what_is_wrong() -> None:
    values = bell(3000)
    data = lanes.encode(values).data
    refused(b"", 3, "lanes: 0 bytes cannot be 3 integers")
    refused(b"123", 0, "lanes: 3 bytes cannot be 0 integers")
    refused(data[:-1], 3000, "do not end where a word does")
    refused(data[:-2], 3000, "more than its .* words are needed")
    refused(data, 2999, "data is left after 2999 integers, or was wrong")
    refused(data, 3000, "its table of -12 to 9 is not one of uint8", "uint8")
    refused(data, 3000, "only integers of one byte are coded so, not int16", "int16")
    with pytest.raises(ArchiveError, match="lanes has no parameters, got low"):
        lanes.decode(data, {"low": 3}, (3000,), np.int8)
    with pytest.raises(ArchiveError, match="lanes codes integers of one byte, got int16"):
        lanes.encode(np.arange(3, dtype=np.int16))
