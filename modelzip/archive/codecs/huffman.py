"""Canonical Huffman codes, Huffman 1952, https://doi.org/10.1109/JRPROC.1952.273898.

The data are a byte that says how many bits of the last one are not used; 32 bytes with a bit for
each byte value that occurs, the lowest first; the length of its code for each of these, four bits
each, the lower half of a byte first; then the codes, the highest bit first, and zeros to the end of
the byte. Codes of one length are consecutive numbers in the order of byte values, and shorter codes
are smaller (RFC 1951, section 3.2.2). A single value has a code of one bit. No data are no bytes.
"""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import ArchiveError

_LONGEST = 15
_CHUNK = 1 << 16  # bytes at once
_VALUES = 256


class Huffman:
    """Byte values as codes of whole bits, by how often they occur."""

    name: Final = "huffman"

    def encode(self, data: bytes | memoryview) -> bytes:
        """A table of code lengths, and the codes of `data`."""
        values = np.frombuffer(data, np.uint8)
        if not values.size:
            return b""
        lengths = _code_lengths(np.bincount(values, minlength=_VALUES))
        codes = _canonical(lengths)
        shifts = np.arange(_LONGEST - 1, -1, -1)
        bits = ((codes << _LONGEST - lengths)[:, None] >> shifts & 1).astype(np.uint8)
        used = shifts[::-1] < lengths[:, None]
        parts, rest = [_table(lengths)], np.empty(0, np.uint8)
        for at in range(0, values.size, _CHUNK):
            part = values[at : at + _CHUNK]
            stream = np.concatenate([rest, bits[part][used[part]]])
            whole = len(stream) - len(stream) % 8
            parts.append(np.packbits(stream[:whole]).tobytes())
            rest = stream[whole:]
        return b"".join([bytes([-len(rest) % 8]), *parts, np.packbits(rest).tobytes()])

    def decode(self, data: bytes | memoryview, size: int) -> bytes:
        """The `size` bytes of these codes. ArchiveError if they are others."""
        if not size and not len(data):
            return b""
        if not len(data) or data[0] > 7:
            raise ArchiveError(f"huffman: {len(data)} bytes hold no {size} bytes")
        lengths, start = _read_table(data)
        symbol_at, length_at = _lookup(lengths)
        out = np.empty(size, np.uint8)
        coded = np.frombuffer(data, np.uint8)[start:]
        made = position = 0  # bytes out, bits in
        while made < size:
            first = position // 8
            length = min(_CHUNK, 2 * (size - made) + 8)  # a code has less than two bytes
            part = coded[first : first + length]
            windows = _windows(part, coded[first + length : first + length + 2])
            steps = length_at[windows].tolist()
            places = _follow(steps, position - 8 * first, size - made)
            if not places:
                raise ArchiveError(f"huffman: the data end after {made} of {size} bytes")
            out[made : made + len(places)] = symbol_at[windows[places]]
            made += len(places)
            position = 8 * first + places[-1] + steps[places[-1]]
        if position != 8 * coded.size - data[0]:
            raise ArchiveError(f"huffman: the data do not end after the {size} bytes declared")
        return out.tobytes()


def _code_lengths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The length of each value's code, 0 for what does not occur and at most 15."""
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]] = [
            (int(n), value, (value,)) for value, n in enumerate(counts) if n
        ]
        heapq.heapify(heap)
        lengths = np.zeros(_VALUES, np.int64)
        if len(heap) == 1:
            lengths[heap[0][1]] = 1
        while len(heap) > 1:
            a, b = heapq.heappop(heap), heapq.heappop(heap)
            merged = a[2] + b[2]
            lengths[list(merged)] += 1
            heapq.heappush(heap, (a[0] + b[0], min(a[1], b[1]), merged))
        if lengths.max() <= _LONGEST:
            return lengths
        counts = np.where(counts > 0, counts // 2 + 1, 0)  # rare values count for more


def _canonical(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The code of each value. ArchiveError if there cannot be codes of these lengths."""
    codes = np.zeros(_VALUES, np.int64)
    code = 0
    for length in range(1, _LONGEST + 1):
        members = np.flatnonzero(lengths == length)
        codes[members] = code + np.arange(members.size)
        code += members.size
        if code > 1 << length:
            raise ArchiveError("huffman: its table has more codes than there can be")
        code <<= 1
    return codes


def _table(lengths: NDArray[np.int64]) -> bytes:
    occurring = lengths > 0
    halves = lengths[occurring].astype(np.uint8)
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    packed = halves[::2] | halves[1::2] << 4
    return np.packbits(occurring, bitorder="little").tobytes() + packed.tobytes()


def _read_table(data: bytes | memoryview) -> tuple[NDArray[np.int64], int]:
    raw = np.frombuffer(data, np.uint8)[1:]
    bitmap = _VALUES // 8
    occurring = np.flatnonzero(np.unpackbits(raw[:bitmap], bitorder="little"))
    end = bitmap + (occurring.size + 1) // 2
    if raw.size <= end or not occurring.size:
        raise ArchiveError(f"huffman: {raw.size} bytes hold no table and codes")
    halves = np.stack([raw[bitmap:end] & 15, raw[bitmap:end] >> 4], 1).reshape(-1)
    lengths = np.zeros(_VALUES, np.int64)
    lengths[occurring] = halves[: occurring.size]
    if not lengths[occurring].all() or halves[occurring.size :].any():
        raise ArchiveError("huffman: its table has a code of no bits")
    return lengths, 1 + end


def _lookup(lengths: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """For each 15 bits the value whose code they begin with, and its length; 0 if there is none."""
    codes = _canonical(lengths)
    symbol_at = np.zeros(1 << _LONGEST, np.uint8)
    length_at = np.zeros(1 << _LONGEST, np.int64)
    for value in np.flatnonzero(lengths).tolist():
        spare = _LONGEST - int(lengths[value])
        first = int(codes[value]) << spare
        symbol_at[first : first + (1 << spare)] = value
        length_at[first : first + (1 << spare)] = lengths[value]
    return symbol_at, length_at


def _windows(part: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The 15 bits from each bit of `part` on, zeros after the end."""
    padded = np.zeros(part.size + 2, np.int64)
    padded[: part.size] = part
    padded[part.size : part.size + after.size] = after
    joined = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    shifts = np.arange(24 - _LONGEST, 24 - _LONGEST - 8, -1)
    windows: NDArray[np.int64] = (joined[:, None] >> shifts & (1 << _LONGEST) - 1).reshape(-1)
    return windows


def _follow(steps: list[int], position: int, most: int) -> list[int]:
    """The bits where at most `most` codes start, each `steps` after the last."""
    places: list[int] = []
    end = len(steps)
    while position < end and len(places) < most:
        step = steps[position]
        if not step:
            raise ArchiveError(f"huffman: no code begins at bit {position} of its part")
        places.append(position)
        position += step
    return places
