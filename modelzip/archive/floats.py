"""Floats as planes of bytes, which compress apart and not together.

A float's bits are turned left by one, so that its sign becomes the lowest bit and its exponent
starts with the highest. Plane k has byte k of each turned pattern, the lowest first: so the last
plane of float32 and bfloat16 is the exponent alone, which compresses; mantissas hardly do.

Only patterns of bits are moved: every NaN, zero and infinity comes back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import ArchiveError

Bits = NDArray[Any]
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
CHUNK = 1 << 14  # stays in the nearest cache


def to_bits(data: bytes | memoryview, dtype: str) -> Bits:
    """Little-endian floats of a type in WIDTHS as unsigned integers, not copied.

    >>> to_bits(np.float32([1, -2]).tobytes(), "float32").tolist()
    [1065353216, 3221225472]
    """
    return np.frombuffer(data, f"<u{_width(dtype)}")


def to_planes(bits: Bits) -> NDArray[np.uint8]:
    """The planes [width, size] of patterns of bits.

    >>> to_planes(to_bits(np.float32([1, -2]).tobytes(), "float32")).tolist()
    [[0, 1], [0, 0], [0, 0], [127, 128]]
    """
    flat = bits.reshape(-1)
    width = flat.itemsize
    planes = np.empty((width, flat.size), np.uint8)
    for at in range(0, flat.size, CHUNK):
        part = flat[at : at + CHUNK]
        turned = np.ascontiguousarray((part << 1) | (part >> (8 * width - 1)), f"<u{width}")
        planes[:, at : at + CHUNK] = turned.view(np.uint8).reshape(-1, width).T
    return planes


def from_planes(planes: Sequence[bytes | memoryview], dtype: str) -> Bits:
    """The patterns of bits of floats of a type in WIDTHS. ArchiveError if planes are not theirs.

    >>> planes = to_planes(to_bits(np.float16([1, -2]).tobytes(), "float16"))
    >>> from_planes([plane.tobytes() for plane in planes], "float16").view("<f2").tolist()
    [1.0, -2.0]
    """
    width = _width(dtype)
    if len(planes) != width or len({len(plane) for plane in planes}) > 1:
        sizes = [len(plane) for plane in planes][:9]
        raise ArchiveError(f"{dtype} needs {width} planes of one size, got {sizes} bytes")
    columns = [np.frombuffer(plane, np.uint8) for plane in planes]
    bits = np.empty(columns[0].size, f"<u{width}")
    turned = np.empty((min(CHUNK, bits.size), width), np.uint8)
    for at in range(0, bits.size, CHUNK):
        out = bits[at : at + CHUNK]
        for index, column in enumerate(columns):
            turned[: out.size, index] = column[at : at + CHUNK]
        pattern = turned[: out.size].reshape(-1).view(f"<u{width}")
        np.bitwise_or(pattern >> 1, pattern << (8 * width - 1), out=out)
    return bits


def _width(dtype: str) -> int:
    if dtype not in WIDTHS:
        raise ArchiveError(f"{dtype!r} is no type of floats; there are: {', '.join(WIDTHS)}")
    return WIDTHS[dtype]
