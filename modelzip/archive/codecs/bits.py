"""Integers of up to 16 bits each, one after another in bytes, the highest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDEST = 16
_REACH = 3  # bytes that hold any 16 bits


class BitWriter:
    """Joins integers of given widths; the last byte is filled up with zeros.

    >>> writer = BitWriter()
    >>> writer.write(np.array([1, 2, 255]), np.array([1, 3, 8]))
    >>> [f"{byte:08b}" for byte in writer.data]
    ['10101111', '11110000']
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._used = 0  # bits

    def write(self, values: NDArray[Any], widths: NDArray[Any]) -> None:
        """Appends integers, each less than 2 to the power of its width of up to 16."""
        ends = self._used % 8 + np.cumsum(widths, dtype=np.int64)
        if not ends.size:
            return
        starts = ends - widths
        placed = values.astype(np.int64) << 8 * _REACH - widths - starts % 8
        at, count = starts >> 3, int(ends[-1] + 7) >> 3
        found = np.zeros(count + _REACH, np.uint8)
        for k in range(_REACH):  # a byte's bits are of different integers, so their sum joins them
            part = placed >> 8 * (_REACH - 1 - k) & 255
            found += np.bincount(at + k, part, len(found)).astype(np.uint8)
        if self._used % 8:
            found[0] |= self.data.pop()
        self.data += found[:count].tobytes()
        self._used += int(ends[-1] - self._used % 8)


def spread(data: memoryview) -> NDArray[np.int32]:
    """From each byte on 24 bits as an integer; what is beyond the end is 0."""
    padded = np.zeros(len(data) + _REACH - 1, np.int32)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]


def read(data: memoryview, starts: NDArray[Any], widths: NDArray[Any]) -> NDArray[Any]:
    """The integers of given widths that start at given bits of `data`.

    >>> read(memoryview(bytes([0b10101111, 0b11110000])), np.array([1, 4]), np.array([3, 8]))
    array([  2, 255])
    """
    words = spread(data)[starts >> 3]
    found: NDArray[Any] = words >> 8 * _REACH - widths - starts % 8 & (1 << widths) - 1
    return found
