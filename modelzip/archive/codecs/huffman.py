"""Canonical Huffman codes of bytes, each of at most 12 bits.

Data begin with the lengths of the 256 bytes' codes, in nibbles, the high one of a byte first: 1 to
12 is a length, and 0 with the next two nibbles n says that n + 1 bytes have no code. A nibble is
left over if their number is odd, and 0. Lengths are of a complete code: 2**-length sum to 1. (A
byte that is alone is joined by one that does not occur.)

Codes are numbered by length and, among equals, by byte: the first is all zeros, each next is one
more, shifted to its length (as in RFC 1951, 3.2.2). They follow from the next byte on, the highest
bit first, then a bit that is 1, and zeros that fill up the last byte.

Lengths are the best there are under the bound, by package-merge: Larmore and Hirschberg 1990,
https://doi.org/10.1145/79147.79150.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.codecs.bits import BitWriter, spread
from modelzip.archive.codecs.codec import Codec
from modelzip.errors import ArchiveError

LONGEST = 12
PART = 1 << 11  # bytes that are coded at a time: of more, arrays leave the cache
STRIDE = 3  # of decoding, in powers of two


def code_lengths(counts: Sequence[int]) -> NDArray[np.int64]:
    """For how often each byte occurs the length of its code; 0 if it has none.

    >>> code_lengths([5, 1, 2, 0]).tolist()
    [1, 2, 2, 0]
    """
    lengths = np.zeros(len(counts), np.int64)
    leaves: list[tuple[int, tuple[int, ...]]] = sorted(
        (count, (symbol,)) for symbol, count in enumerate(counts) if count
    )
    if len(leaves) == 1:
        symbol = leaves[0][1][0]
        lengths[[symbol, symbol ^ 1]] = 1
        return lengths
    row = leaves
    for _ in range(LONGEST - 1):
        pairs = zip(row[::2], row[1::2], strict=False)
        row = sorted(leaves + [(a[0] + b[0], a[1] + b[1]) for a, b in pairs])
    for _, symbols in row[: 2 * len(leaves) - 2]:
        np.add.at(lengths, list(symbols), 1)
    return lengths


def _codes(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The code of each byte. Of a complete code, each begins where the last ends."""
    order = np.lexsort((np.arange(len(lengths)), lengths))
    spans = np.where(lengths > 0, 1 << LONGEST - lengths, 0)[order]
    codes = np.zeros_like(lengths)
    codes[order] = np.cumsum(spans) - spans >> LONGEST - lengths[order]
    return codes


def _write_lengths(lengths: NDArray[np.int64]) -> bytes:
    nibbles: list[int] = []
    at = 0
    while at < 256:
        if lengths[at]:
            nibbles.append(int(lengths[at]))
            at += 1
            continue
        later = np.flatnonzero(lengths[at:])
        run = int(later[0]) if later.size else 256 - at
        nibbles += [0, run - 1 >> 4, run - 1 & 15]
        at += run
    return bytes.fromhex("".join(f"{nibble:x}" for nibble in nibbles) + "0" * (len(nibbles) % 2))


def _read_lengths(data: memoryview) -> tuple[NDArray[np.int64], int]:
    """The lengths of all codes, and how many bytes said them."""
    nibbles = iter(bytes(data[:256]).hex())  # no lengths take more
    lengths: list[int] = []
    used = 0
    try:
        while len(lengths) < 256:
            length = int(next(nibbles), 16)
            run = 0 if length else int(next(nibbles) + next(nibbles), 16) + 1
            lengths += [0] * run if run else [length]
            used += 3 if run else 1
        padding = next(nibbles) if used % 2 else "0"
    except StopIteration:
        raise ArchiveError("data end within the lengths of codes") from None
    found = np.array(lengths, np.int64)
    spans = np.where(found > 0, 1 << LONGEST - np.minimum(found, LONGEST), 0)
    complete = len(lengths) == 256 and max(lengths) <= LONGEST and spans.sum() == 1 << LONGEST
    if not complete or padding != "0":
        raise ArchiveError("the lengths of codes are not those of a complete code")
    return found, (used + 1) // 2


def _encode(data: memoryview) -> bytes:
    flat = np.frombuffer(data, np.uint8)
    counts = np.zeros(256, np.int64)
    for part in _parts(flat):
        counts += np.bincount(part, minlength=256)
    lengths = code_lengths(counts.tolist())
    codes = _codes(lengths)
    writer = BitWriter()
    for part in _parts(flat):
        writer.write(codes[part], lengths[part])
    writer.write(np.array([1]), np.array([1]))
    return _write_lengths(lengths) + bytes(writer.data)


def _decode(data: memoryview, size: int) -> bytes:
    lengths, used = _read_lengths(data)
    order = np.lexsort((np.arange(256), lengths))
    spans = np.where(lengths > 0, 1 << LONGEST - lengths, 0)[order]
    symbols = np.repeat(order, spans).astype(np.uint8)  # by the 12 bits that begin with a code
    widths = lengths[symbols]
    data = data[used:]
    found: list[NDArray[np.uint8]] = []
    count, at = 0, 0  # bytes that are found, and the bit that is next
    for start in range(0, len(data), PART):
        if count > size:
            break
        windows = _windows(data[start : start + PART + 2])[: 8 * PART]
        places, at = _walk(np.take(widths, windows), at)
        codes = windows[places]
        found.append(symbols[codes])
        ends = 8 * start + places + widths[codes]
        if count < size <= count + len(places):
            _check_end(data, int(ends[size - count - 1]))
        count += len(places)
    return np.concatenate(found)[:size].tobytes() if found else b""


def _windows(data: memoryview) -> NDArray[np.int32]:
    """From each bit on, 12 bits as an integer."""
    shifts = 24 - LONGEST - np.arange(8, dtype=np.int32)
    return (spread(data)[:, None] >> shifts & (1 << LONGEST) - 1).ravel()


def _walk(widths: NDArray[Any], at: int) -> tuple[NDArray[Any], int]:
    """Where codes begin if the first is at bit `at`, and how far the last is beyond the bits.

    `widths` are of the codes that would begin at each bit. By doubling, a stride is eight codes
    long, so that few strides are walked, and codes between are found all at once.
    """
    last = len(widths)
    after = np.arange(last + LONGEST, dtype=np.intp)
    after[:last] += widths
    strides = [after]
    for _ in range(STRIDE):
        strides.append(np.take(strides[-1], strides[-1]))
    walk, jumps = [], strides.pop().data  # a list of all would take longer to make
    while at < last:
        walk.append(at)
        at = jumps[at]
    places = np.array(walk, np.int64)[:, None]
    for stride in reversed(strides):
        places = np.stack([places, np.take(stride, places)], axis=-1).reshape(len(places), -1)
    flat = places.ravel()
    return flat[flat < last], at - last


def _check_end(data: memoryview, end: int) -> None:
    """ArchiveError unless bit `end` is the last that is 1, and in the last byte."""
    if 8 * len(data) - end not in range(1, 9) or data[-1] << end % 8 & 255 != 128:
        raise ArchiveError(f"codes end at bit {end} and not at the last that is 1")


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[at : at + PART] for at in range(0, len(flat), PART))


HUFFMAN = Codec("huffman", _encode, _decode, ratio=8)
