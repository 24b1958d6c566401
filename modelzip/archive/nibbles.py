"""Integers of 4 bits, two to a byte: the first in the low half, the last half of an odd number 0.

So INT4 and UINT4 are in an ONNX file, https://onnx.ai/onnx/technical/int4.html. The form "nibbles"
stores them as an array of int8 or uint8 in their own shape, whose neighbours say more about each
other than those of the bytes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TYPES = {"int4": np.dtype(np.int8), "uint4": np.dtype(np.uint8)}


def from_bytes(data: Array, dtype: str, shape: Sequence[int]) -> Array:
    """The integers in so many bytes, int8 of int4 and uint8 of uint4.

    >>> from_bytes(np.uint8([0x2F, 0x07]), "int4", (3,))
    array([-1,  2,  7], dtype=int8)
    """
    halves = np.stack([data << 4, data & 0xF0], axis=1).reshape(-1)  # each in the upper half
    found = halves.view(TYPES[dtype]) >> 4
    return found[: int(np.prod(shape))].reshape(tuple(shape))


def to_bytes(integers: Array) -> Array:
    """The bytes of integers of 4 bits, uint8; of larger ones the low 4 bits.

    >>> to_bytes(np.int8([-1, 2, 7]))
    array([47,  7], dtype=uint8)
    """
    halves = integers.reshape(-1).view(np.uint8) & 0x0F
    if halves.size % 2:
        halves = np.append(halves, np.uint8(0))
    found: Array = halves[0::2] | halves[1::2] << 4
    return found
