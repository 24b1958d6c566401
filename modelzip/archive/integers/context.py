"""Context coding of integers: each as long as its neighbours in the tensor make it unlikely.

Made for quantized weights: what a weight is like is learnt from the mean magnitudes of its row
and column and from the taps before it in its kernel. Tensors may share what is learnt: an `Encoder`
takes them one after another, and a `Decoder` has to be given them all in the same order.

Parameters are `model`, the version, here 1; `limit`, one of 7, 15, 31, 63, 127; and, where not 0,
`center`, `shift`, `escapes` and `width`. The bytes are little-endian; no integers are no bytes:

1. `escapes` integers of `width` bytes with a sign;
2. for each block the lowest `shift` bits of its integers, each from the highest bit on, in bytes
   from their highest bit on, with 0 bits to the end of the last byte;
3. words of 32 bits, of all blocks.

A tensor is rows of columns of taps: [O, I, ...taps] where the taps (the axes from the third on)
are 64 or fewer, and have rows of the last axis; else [..., columns] of one tap; and with one column
of one tap where there is but one axis, or one row of one tap. A block is as many rows as have
2**18 integers or fewer, but one at least, and the last block is what is left.

An integer is (c << shift) + (its lowest bits) - (1 << shift >> 1) + center. kernels.py says how the
words give c, from -limit to limit, or that it is an escape, which stands for the next from part 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modelzip.archive.integers.encoded import Encoded
from modelzip.archive.integers.forms import (
    BUCKETS,
    LIMITS,
    Form,
    View,
    choose_form,
    pack_bits,
    packed_size,
    read_form,
    unpack_bits,
    view_of,
    width_of,
)
from modelzip.errors import ArchiveError

MOST_PER_BYTE = 1 << 14  # integers: the likeliest symbol takes 0.00066 bits


class Encoder:
    """Encodes tensors of one group in turn, each with what was learnt from those before.

    `limit` is the greatest magnitude to expect in the group, to learn from all alike; greater ones
    can be coded, as escapes. By default each tensor has the limit that it needs.

    >>> encoder, decoder = Encoder(), Decoder()
    >>> for values in (np.array([[1, -2], [0, 3]], np.int8), np.array([7, 300], np.int16)):
    ...     encoded = encoder.encode(values)
    ...     decoder.decode(encoded.data, encoded.params, values.shape, values.dtype).tolist()
    [[1, -2], [0, 3]]
    [7, 300]
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and not 1 <= limit <= LIMITS[-1]:
            raise ArchiveError(f"context: limit must be from 1 to {LIMITS[-1]}, got {limit}")
        self._limit = limit
        self._models: dict[int, _Model] = {}

    def encode(self, values: NDArray[Any]) -> Encoded:
        """Integers from -2**31 to 2**31 - 1, of any shape."""
        view = view_of(values.shape)
        form = choose_form(values, self._limit)
        if not values.size:
            return Encoded(form.params(), b"")
        model = _model(self._models, form.limit)
        escapes, remainders, words = [], [], []
        rows = np.reshape(values, (view.rows, -1))
        means = _Means(form.limit, view.columns)
        for block in view.blocks():
            coarse = rows[block].ravel().astype(np.int64) - form.center + form.half
            if form.shift:
                remainders.append(pack_bits(coarse, form.shift))
                coarse >>= form.shift
            outside = abs(coarse) > form.limit
            escapes.append(coarse[outside])
            coarse[outside] = form.limit + 1
            words.append(model.encode(coarse.astype(np.int16), view, means))
        escaped = np.concatenate([np.empty(0, np.int64), *escapes])
        if escaped.size:
            form = form._replace(escapes=escaped.size, width=width_of(int(abs(escaped).max())))
        parts = [escaped.astype(f"<i{form.width or 1}").tobytes(), *remainders, *words]
        return Encoded(form.params(), b"".join(parts))


class Decoder:
    """Decodes the tensors of one group in the order in which they were encoded.

    After an ArchiveError, what it has learnt is of no more use.
    """

    def __init__(self) -> None:
        self._models: dict[int, _Model] = {}

    def decode(
        self,
        data: bytes | memoryview,
        params: Mapping[str, Any],
        shape: Sequence[int],
        dtype: DTypeLike,
    ) -> NDArray[Any]:
        """The integers that were encoded. ArchiveError if they cannot be had from `data`."""
        try:
            return self._decode(memoryview(data).cast("B"), read_form(params), shape, dtype)
        except ArchiveError as error:
            raise ArchiveError(f"context: {error}") from error

    def _decode(
        self, data: memoryview, form: Form, shape: Sequence[int], dtype: DTypeLike
    ) -> NDArray[Any]:
        if np.dtype(dtype).kind not in "iu":
            raise ArchiveError(f"must be decoded to integers, got {np.dtype(dtype)}")
        size, view = math.prod(shape), view_of(shape)
        if size > MOST_PER_BYTE * len(data) or (data and not size):
            raise ArchiveError(f"{len(data)} bytes cannot be {size} integers")
        if not size:
            return np.empty(shape, dtype)
        escapes, remainders, words = _split(data, form, view)
        out = np.empty((view.rows, view.columns * view.taps), dtype)
        model = _model(self._models, form.limit)
        means = _Means(form.limit, view.columns)
        at = bits_at = used = 0
        for block in view.blocks():
            part = out[block]
            coarse, at = model.decode(words, at, part.size, view, means)
            places = np.flatnonzero(coarse > form.limit)
            if used + places.size > escapes.size:
                raise ArchiveError(f"more than its {escapes.size} escaped integers are needed")
            if form.escapes or form.shift or form.center:
                coarse = coarse.astype(np.int64)
                coarse[places] = escapes[used : used + places.size]
                used += places.size
                coarse <<= form.shift
                if form.shift:
                    end = bits_at + packed_size(part.size, form.shift)
                    coarse += unpack_bits(remainders[bits_at:end], form.shift, part.size)
                    bits_at = end
                coarse += form.center - form.half
            _store(coarse, part)
        if used < escapes.size or at != words.size:
            raise ArchiveError(f"data is left after {size} integers")
        return out.reshape(shape)


class _Model:
    """What is learnt of symbols, for one limit."""

    def __init__(self, limit: int) -> None:
        from modelzip.archive.integers import kernels  # imports numba: only where it is used

        self._kernels = kernels
        bits = BUCKETS[limit]
        self.limit = limit
        self.bits = np.array([0, *bits, 0])
        self.bases = np.cumsum([0, 1, *(1 << n for n in bits)])
        self.buckets = np.repeat(np.arange(9), [1, *(1 << n for n in bits), 1])
        self.tables = kernels.make_tables(self.bits)
        self.counts = np.zeros(len(self.tables), np.int64)

    def encode(self, values: NDArray[np.int16], view: View, means: _Means) -> bytes:
        records = np.empty(3 * values.size, np.uint32)
        made, _, _ = self._code(True, values, records[:1], 0, records, view, means)
        words = np.empty(made + 2, np.uint32)
        return words[self._kernels.put_words(records, made, words) :].astype("<u4").tobytes()

    def decode(
        self, words: NDArray[np.uint32], at: int, size: int, view: View, means: _Means
    ) -> tuple[NDArray[np.int16], int]:
        values = np.empty(size, np.int16)
        at, state, wrong = self._code(False, values, words, at, words[:0], view, means)
        if wrong or at > words.size or state != self._kernels.START:
            raise ArchiveError(f"its {words.size} words are damaged or cut off")
        return values, at

    def _code(
        self,
        encoding: bool,
        values: NDArray[np.int16],
        words: NDArray[np.uint32],
        at: int,
        records: NDArray[np.uint32],
        view: View,
        means: _Means,
    ) -> Any:
        return self._kernels.code_rows(
            encoding,
            values,
            words,
            at,
            records,
            view.taps,
            view.width,
            self.buckets,
            self.bases,
            self.bits,
            self.tables,
            self.counts,
            means.columns,
            means.rows,
        )


class _Means:
    """Mean magnitudes in a tensor so far, of 256."""

    def __init__(self, limit: int, columns: int) -> None:
        start = 51 * limit + 8
        self.columns = np.full(columns, start)
        self.rows = np.array([start, 0])


def _model(models: dict[int, _Model], limit: int) -> _Model:
    if limit not in models:
        models[limit] = _Model(limit)
    return models[limit]


def _split(
    data: memoryview, form: Form, view: View
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint32]]:
    """The three parts: escaped integers, lowest bits, words."""
    sizes = [(block.stop - block.start) * view.columns * view.taps for block in view.blocks()]
    first = form.escapes * form.width
    second = first + sum(packed_size(size, form.shift) for size in sizes)
    words = len(data) - second
    if words < 8 or words % 4:
        raise ArchiveError(f"{len(data)} bytes are not {second} and whole words")
    return (
        np.frombuffer(data[:first], f"<i{form.width or 1}"),
        np.frombuffer(data[first:second], np.uint8),
        np.frombuffer(data[second:], "<u4").astype(np.uint32),
    )


def _store(values: NDArray[Any], out: NDArray[Any]) -> None:
    bounds = np.iinfo(out.dtype)
    low, high = int(values.min()), int(values.max())
    if low < bounds.min or high > bounds.max:
        raise ArchiveError(f"its integers {low} to {high} are not of type {out.dtype}")
    out[...] = values.reshape(out.shape)
