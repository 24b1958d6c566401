from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelzip.archive.integers import sparse
from modelzip.archive.integers.sparse import Bitmap, Csr, ZeroRuns
from modelzip.errors import ArchiveError

FORMS = pytest.mark.parametrize("name", sparse.FORMS)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
DTYPES = st.sampled_from(["int8", "int16", "int32"])
ANY = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES, fill=st.just(0)))
STREAM = arrays.arrays(st.sampled_from(["uint8", "int8", "int64", "uint64"]), st.integers(0, 12))


def back(name: str, array: np.ndarray) -> np.ndarray:
    make, restore, _ = sparse.FORMS[name]
    return restore(make(array), array.shape)


@FORMS
@settings(deadline=None)
@given(array=ANY)
def test_any_array_comes_back(name: str, array: np.ndarray) -> None:
    found = back(name, array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@FORMS
@pytest.mark.parametrize("gap", [254, 255, 256, 509, 510, 511, 70_000])
def test_long_gaps_come_back(name: str, gap: int) -> None:
    array = np.zeros((2, gap + 2), np.int16)
    array[0, gap] = array[1, 0] = -300
    array[1, gap + 1] = 7
    np.testing.assert_array_equal(back(name, array), array)


def test_streams_of_a_known_array() -> None:
    array = np.zeros((3, 300), np.int8)
    array[0, 1], array[0, 2], array[2, 255] = 5, -6, 7
    runs, bitmap, csr = (sparse.FORMS[name][0](array) for name in ("zero_runs", "bitmap", "csr"))
    assert runs.gaps.tolist() == [1, 0, 255, 255, 255, 855 - 3 - 3 * 255]
    assert bitmap.bits[:2].tolist() == [0b110, 0]
    assert bitmap.bits.size == 113
    assert csr.counts.tolist() == [2, 0, 1]
    assert csr.gaps.tolist() == [1, 0, 255]
    for streams in (runs, bitmap, csr):
        assert streams.values.tolist() == [5, -6, 7]


def test_streams_are_as_narrow_as_they_can_be() -> None:
    array = np.zeros((2, 70_000), np.int8)
    array[0, 300] = array[1] = 1
    streams = sparse.to_csr(array)
    assert (streams.counts.dtype, streams.gaps.dtype) == (np.uint32, np.uint16)


@FORMS
@settings(deadline=None, max_examples=200)
@given(data=st.data(), shape=SHAPES)
def test_any_streams_are_an_array_or_refused(
    name: str, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    _, restore, kind = sparse.FORMS[name]
    streams = kind(*(data.draw(STREAM) for _ in kind._fields))
    try:
        found = restore(streams, shape)
    except ArchiveError:
        return
    assert found.shape == shape


def refused(name: str, streams: object, text: str) -> None:
    with pytest.raises(ArchiveError, match=text):
        sparse.FORMS[name][1](streams, (2, 3))


def test_zero_runs_that_do_not_fit_are_refused() -> None:
    one = np.array([1])
    refused("zero_runs", ZeroRuns(np.array([5, 0]), np.array([1, 1])), "place 6 is beyond the 6")
    refused("zero_runs", ZeroRuns(one, one[:0]), "zero runs: there are 1 gaps that end, and 0 are")
    refused("zero_runs", ZeroRuns(np.zeros(7, int), one), "7 gaps are more than the 6 that can")
    refused("zero_runs", ZeroRuns(np.array([-1]), one), "are -1 to -1, not 0 to 255")
    refused("zero_runs", ZeroRuns(np.array([0.5]), one), "are float64 of 1 axes")


def test_bitmaps_that_do_not_fit_are_refused() -> None:
    one = np.array([1])
    refused("bitmap", Bitmap(np.array([1, 1]), one), "bitmap: there are 2 bytes of bits, and 1 are")
    refused("bitmap", Bitmap(np.array([3]), one), "bitmap: there are 2 bits that are 1, and 1 are")
    refused("bitmap", Bitmap(np.array([64]), one), "bitmap: place 6 is beyond the 6 integers")
    refused("bitmap", Bitmap(np.array([256]), one), "are 256 to 256, not 0 to 255")


def test_rows_that_do_not_fit_are_refused() -> None:
    one, two = np.array([1]), np.array([1, 1])
    refused("csr", Csr(one, one, one), "csr: there are 1 counts, and 2 are needed")
    refused("csr", Csr(two, one, two), "csr: there are 1 gaps, and 2 are needed")
    refused("csr", Csr(two, one, one), "csr: there are 2 values by its counts, and 1 are needed")
    refused("csr", Csr(np.array([2, 0]), np.array([2, 0]), two), "column 3 is beyond a row of 3")
    refused("csr", Csr(np.array([4, 0]), two, two), "counts of sparse integers are 0 to 4, not 0")
