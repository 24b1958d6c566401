"""Integers with many zeros as streams of their own, for other codecs to code further.

Each form keeps the integers that are not zero, in order (row by row), and says where they are:

- zero_runs: `gaps`, bytes: the zeros before each of them; 255 is 255 zeros and no value after.
- bitmap: `bits`, bytes: one bit an integer, 1 if it is not zero, the lowest bit of a byte first;
  the last byte is filled with 0.
- csr: `counts`, how many each row has, and `gaps`, the zeros before each within its row. A row is
  what shares the first index; fewer than two dimensions are one row.

Zeros at the end are not said: the size is known. Streams are unsigned integers of as few bytes as
their largest needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import ArchiveError

Array = NDArray[Any]
LONG = 255


class ZeroRuns(NamedTuple):
    gaps: Array
    values: Array


class Bitmap(NamedTuple):
    bits: Array
    values: Array


class Csr(NamedTuple):
    counts: Array
    gaps: Array
    values: Array


def to_zero_runs(array: Array) -> ZeroRuns:
    """Gaps and values.

    >>> to_zero_runs(np.array([0, 0, 5, -1, 0], np.int8))
    ZeroRuns(gaps=array([2, 0], dtype=uint8), values=array([ 5, -1], dtype=int8))
    """
    flat, places = _places(array)
    zeros = np.diff(places, prepend=-1) - 1
    long = zeros // LONG
    gaps = np.full(places.size + int(long.sum()), LONG, np.uint8)
    gaps[np.cumsum(long + 1) - 1] = zeros % LONG
    return ZeroRuns(gaps, flat[places])


def from_zero_runs(streams: ZeroRuns, shape: Sequence[int]) -> Array:
    """The array again. ArchiveError if the streams do not fit it or each other."""
    gaps = _stream("gaps", streams.gaps, most=math.prod(shape), at_most=LONG)
    ends = gaps < LONG
    _require("zero runs", "gaps that end", int(ends.sum()), len(streams.values))
    places = np.cumsum(gaps + ends, dtype=np.int64)[ends] - 1
    return _scatter("zero runs", places, streams.values, shape)


def to_bitmap(array: Array) -> Bitmap:
    """Bits and values.

    >>> to_bitmap(np.array([0, 0, 5, -1, 0], np.int8))
    Bitmap(bits=array([12], dtype=uint8), values=array([ 5, -1], dtype=int8))
    """
    flat, places = _places(array)
    return Bitmap(np.packbits(flat != 0, bitorder="little"), flat[places])


def from_bitmap(streams: Bitmap, shape: Sequence[int]) -> Array:
    """The array again. ArchiveError if the streams do not fit it or each other."""
    size = math.prod(shape)
    _require("bitmap", "bytes of bits", len(streams.bits), (size + 7) // 8)
    packed = _stream("bits", streams.bits, most=size, at_most=255).astype(np.uint8)
    bits = np.unpackbits(packed, bitorder="little")
    places = np.flatnonzero(bits)
    _require("bitmap", "bits that are 1", len(places), len(streams.values))
    return _scatter("bitmap", places, streams.values, shape)


def to_csr(array: Array) -> Csr:
    """Counts of rows, gaps within rows, and values.

    >>> to_csr(np.array([[0, 0, 7], [0, 0, 0], [5, 0, -1]], np.int8))  # doctest: +ELLIPSIS
    Csr(counts=array([1, 0, 2], dtype=uint8), gaps=array([2, 0, 1], dtype=uint8), values=...)
    """
    flat, places = _places(array)
    rows, columns = _rows(array.shape)
    row = places // max(columns, 1)
    gaps = np.diff(places, prepend=-1) - 1
    first = np.diff(row, prepend=-1) > 0
    gaps[first] = (places - row * columns)[first]
    return Csr(_narrow(np.bincount(row, minlength=rows)), _narrow(gaps), flat[places])


def from_csr(streams: Csr, shape: Sequence[int]) -> Array:
    """The array again. ArchiveError if the streams do not fit it or each other."""
    rows, columns = _rows(shape)
    _require("csr", "counts", len(streams.counts), rows)
    counts = _stream("counts", streams.counts, most=rows, at_most=columns)
    total = int(counts.sum())
    _require("csr", "values by its counts", total, len(streams.values))
    _require("csr", "gaps", len(streams.gaps), total)
    gaps = _stream("gaps", streams.gaps, most=total, at_most=columns)
    row = np.repeat(np.arange(rows), counts)
    ends = np.cumsum(gaps + 1)  # as if no row ended
    before = np.append(0, ends)[np.cumsum(counts) - counts]  # what earlier rows have in that
    column = ends - 1 - before[row]
    if total and int(column.max()) >= columns:
        raise ArchiveError(f"csr: column {column.max()} is beyond a row of {columns}")
    return _scatter("csr", row * columns + column, streams.values, shape)


Form = tuple[Callable[[Array], Any], Callable[[Any, Sequence[int]], Array], type[Any]]
FORMS: dict[str, Form] = {
    "zero_runs": (to_zero_runs, from_zero_runs, ZeroRuns),
    "bitmap": (to_bitmap, from_bitmap, Bitmap),
    "csr": (to_csr, from_csr, Csr),
}


def _places(array: Array) -> tuple[Array, NDArray[np.int64]]:
    flat = np.ravel(array)
    return flat, np.flatnonzero(flat).astype(np.int64)


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _narrow(stream: NDArray[np.int64]) -> Array:
    return stream.astype(np.min_scalar_type(int(stream.max(initial=0))))


def _stream(name: str, stream: Array, *, most: int, at_most: int) -> NDArray[np.int64]:
    """A stream of at most `most` numbers from 0 to `at_most`, or ArchiveError."""
    if stream.dtype.kind not in "iu" or stream.ndim != 1:
        raise ArchiveError(f"{name} of sparse integers are {stream.dtype} of {stream.ndim} axes")
    if len(stream) > most:
        raise ArchiveError(f"{len(stream)} {name} are more than the {most} that can be needed")
    if len(stream) and not 0 <= int(stream.min()) <= int(stream.max()) <= at_most:
        raise ArchiveError(
            f"{name} of sparse integers are {stream.min()} to {stream.max()}, not 0 to {at_most}"
        )
    return stream.astype(np.int64)


def _require(form: str, what: str, found: int, needed: int) -> None:
    if found != needed:
        raise ArchiveError(f"{form}: there are {found} {what}, and {needed} are needed")


def _scatter(form: str, places: NDArray[np.int64], values: Array, shape: Sequence[int]) -> Array:
    """`values` at increasing places, zeros elsewhere."""
    size = math.prod(shape)
    if len(places) and int(places[-1]) >= size:
        raise ArchiveError(f"{form}: place {places[-1]} is beyond the {size} integers")
    array = np.zeros(size, values.dtype)
    array[places] = values
    return array.reshape(shape)
