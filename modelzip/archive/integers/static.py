"""Static entropy coding: each integer as long as its frequency in the tensor says.

The bytes are a table (see table.py), then words of 32 bits, then the escaped values, all
little-endian; no integers are no bytes. If bit 7 of the table's first byte is set, the integers
are divided by 256 and rounded down, and the remainders are at the end, a byte each.

With f the frequencies of the table's entries and c their sums up to each entry, words are a stack:
x starts as the last two, the last being the upper half.
An integer is the entry s with c[s] <= x mod 2**24 < c[s] + f[s], and then x becomes
f[s] * (x >> 24) + x mod 2**24 - c[s], and while it is under 2**32 and there are words, x * 2**32
plus the next; in the end x is 0 and no words are left. (So words are as `constriction`'s AnsCoder
has them. It is asymmetric numeral systems, Duda 2013, https://arxiv.org/abs/1311.2540.)
A table of one entry has no words. An entry that escapes is the next of the escaped values.

The coder is told frequencies as floats which are integers that sum to 2**24 less one each, so
that it only adds, multiplies by one and truncates integers: the same table on any CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modelzip.archive.integers.encoded import Encoded
from modelzip.archive.integers.table import Table, make_table, read_table
from modelzip.errors import ArchiveError, MissingExtraError

CHUNK = 1 << 18
WINDOW = 1 << 15  # integers beyond it escape, and of few integers those beyond FEW_WINDOW times
FEW_WINDOW = 4  # their number: a table would be longer
LIMIT = 1 << 31
MANY = 1 << 11  # beyond so many integers, the lowest bits may be noise


def encode(values: NDArray[Any]) -> Encoded:
    """Integers from -2**31 to 2**31 - 1 as bytes, each as long as its frequency says.

    >>> encoded = encode(np.array([3, -1, 3, 3], np.int8))
    >>> decode(encoded.data, encoded.params, (2, 2), np.int8).tolist()
    [[3, -1], [3, 3]]
    """
    flat = np.ravel(values)
    if not flat.size:
        return Encoded({}, b"")
    low, high = int(flat.min()), int(flat.max())
    if low < -LIMIT or high >= LIMIT:
        raise ArchiveError(f"static codes integers of 32 bits with a sign, got {low} to {high}")
    table, bits = _make_table(flat, low, high)
    remainders = b""
    if high - low > MANY:
        upper = flat >> 8
        coarse, fewer = _make_table(upper, low >> 8, high >> 8)
        if fewer + 8 * flat.size < bits:
            table, remainders = replace(coarse, mark=True), (flat & 255).astype(np.uint8).tobytes()
            flat = upper
    words, escaped = _encode(flat, table)
    return Encoded({}, b"".join([table.write(), words, escaped, remainders]))


def decode(
    data: bytes | memoryview,
    params: Mapping[str, Any],
    shape: Sequence[int],
    dtype: DTypeLike,
) -> NDArray[Any]:
    """The integers that were encoded. ArchiveError if they cannot be had from `data`."""
    if params:
        raise ArchiveError(f"static has no parameters, got {', '.join(sorted(params))[:100]}")
    out = np.empty(math.prod(shape), dtype)
    view = memoryview(data).cast("B")
    if not out.size or not len(view):
        if out.size or len(view):
            raise ArchiveError(f"static: {len(view)} bytes cannot be {out.size} integers")
        return out.reshape(shape)
    try:
        table, start = read_table(view)
        last = len(view) - out.size * table.mark
        end = last - table.escapes * table.width
        if end < start or (end - start) % 4:
            raise ArchiveError(f"{len(view)} bytes do not end where a word does")
        escaped = np.frombuffer(view[end:last], f"<i{table.width or 1}")
        _check(table, escaped, out)
        _decode(np.frombuffer(view[start:end], "<u4").astype(np.uint32), escaped, table, out)
        if table.mark:
            np.left_shift(out, 8, out=out)
            out |= np.frombuffer(view[last:], np.uint8)
    except ArchiveError as error:
        raise ArchiveError(f"static: {error}") from error
    return out.reshape(shape)


def _make_table(flat: NDArray[Any], low: int, high: int) -> tuple[Table, float]:
    counts, start = _count(flat, low, high)
    span = max(high, -1 - low)
    width = next(width for width in (1, 2, 4) if span < 1 << 8 * width - 1)
    return make_table(counts, start, flat.size - int(counts.sum()), width=width)


def _count(flat: NDArray[Any], low: int, high: int) -> tuple[NDArray[np.int64], int]:
    """How often each integer from the second result on occurs, within the window."""
    window = min(WINDOW, FEW_WINDOW * flat.size + 128)
    low, high = max(low, -window), min(high, window - 1)
    counts = np.zeros(max(high - low + 1, 0), np.int64)
    for at in range(0, flat.size, CHUNK):
        part = flat[at : at + CHUNK].astype(np.int64)
        part = part[(part >= low) & (part <= high)] - low
        counts += np.bincount(part, minlength=len(counts))
    return counts, low


def _encode(flat: NDArray[Any], table: Table) -> tuple[bytes, bytes]:
    coder, model = _coder(np.empty(0, np.uint32)), _model(table)
    escaped = []
    for at in reversed(range(0, flat.size, CHUNK)):
        part = flat[at : at + CHUNK].astype(np.int64)
        symbols = part - table.low
        outside = (symbols < 0) | (symbols >= table.size)
        if table.width:
            escaped.append(part[outside].astype(f"<i{table.width}").tobytes())
            symbols[outside] = table.size
        if model is not None:
            coder.encode_reverse(symbols.astype(np.int32), model)
    return coder.get_compressed().astype("<u4").tobytes(), b"".join(reversed(escaped))


def _decode(
    words: NDArray[np.uint32], escaped: NDArray[Any], table: Table, out: NDArray[Any]
) -> None:
    model = _model(table)
    try:
        coder = _coder(words)
    except ValueError as error:
        raise ArchiveError("the last of its words is 0, which is never written") from error
    used = 0
    for at in range(0, out.size, CHUNK):
        part = out[at : at + CHUNK]
        symbols = coder.decode(model, part.size) if model is not None else np.zeros(part.size, int)
        np.add(symbols, table.low, out=part, casting="unsafe")
        if table.width:
            places = np.flatnonzero(symbols == table.size)
            if used + places.size > escaped.size:
                raise ArchiveError(f"more than its {escaped.size} escaped values are needed")
            part[places] = escaped[used : used + places.size]
            used += places.size
    if used < escaped.size or not coder.is_empty():
        raise ArchiveError(f"data is left after {out.size} integers, or was missing")


def _check(table: Table, escaped: NDArray[Any], out: NDArray[Any]) -> None:
    """ArchiveError if integers could be decoded that are not of the type that is asked for."""
    if table.mark and out.dtype.itemsize == 1:
        raise ArchiveError(f"{out.dtype} has no remainders of a byte")
    bounds, shift = np.iinfo(out.dtype), 8 * table.mark
    low, high = max(int(bounds.min), -LIMIT) >> shift, min(int(bounds.max), LIMIT - 1) >> shift
    found = [table.low, table.low + table.size - 1] if table.size else []
    if escaped.size:
        found += [int(escaped.min()), int(escaped.max())]
    if found and not low <= min(found) <= max(found) <= high:
        raise ArchiveError(f"its integers {min(found)} to {max(found)} are not {low} to {high}")


def _model(table: Table) -> Any:
    """The frequencies as the coder takes them; None for a table of one entry."""
    if len(table.ranks) == 1:
        return None
    spare = (table.frequencies() - 1).astype(np.float64)
    return _constriction().stream.model.Categorical(spare, perfect=False)


def _coder(words: NDArray[np.uint32]) -> Any:
    return _constriction().stream.stack.AnsCoder(words)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise MissingExtraError(
            "constriction", extra="archive", purpose="static coding of integers"
        ) from error
    return constriction
