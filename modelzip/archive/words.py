"""Integers of few values that an ONNX file keeps as digits of words, `modelzip/export/packing.py`.

Integers v from -top to top or one more: `length` of them are in a row of `planes` words, where word
p is the sum over i of base**i * digit, with digit number p of v + top in that base. The form
"words" stores them as an array of int8 [rows, length]; top is (base**planes - 1) // 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import ArchiveError

Array = NDArray[Any]


class Packing(NamedTuple):
    """How many integers a row of words has, of how many digits in which base."""

    base: int
    length: int
    planes: int

    @property
    def top(self) -> int:
        """What is stored as 0 is less than 0 by this much."""
        return int(self.base**self.planes - 1) // 2


PACKINGS = {  # by type and the axes after the first
    ("uint8", (1,)): Packing(3, 5, 1),
    ("int32", (1,)): Packing(7, 11, 1),
    ("uint8", (1, 5)): Packing(2, 8, 5),
    ("uint8", (1, 3)): Packing(4, 4, 3),
    ("uint8", (1, 7)): Packing(2, 8, 7),
}


def from_words(words: Array, packing: Packing) -> Array:
    """The integers in so many words, int8 [rows, length].

    >>> from_words(np.uint8([[2 + 3 * 0 + 9 * 1]]), Packing(3, 5, 1))
    array([[ 1, -1,  0, -1, -1]], dtype=int8)
    """
    powers = packing.base ** np.arange(packing.length)
    left = words.reshape(len(words), 1, packing.planes).astype(np.int64)
    digits = left // powers[:, None] % packing.base
    values = (digits * packing.base ** np.arange(packing.planes)).sum(2)
    found: Array = (values - packing.top).astype(np.int8)
    return found


def to_words(integers: Array, packing: Packing, dtype: str, shape: tuple[int, ...]) -> Array:
    """The words of integers [rows, length]. ArchiveError where one is out of range."""
    values = integers.astype(np.int64) + packing.top
    if values.size and not 0 <= values.min() <= values.max() < packing.base**packing.planes:
        raise ArchiveError(f"{packing.base**packing.planes} values are packed, and there are more")
    places = packing.base ** np.arange(packing.planes)
    digits = values[:, :, None] // places % packing.base
    words: Array = (digits * (packing.base ** np.arange(packing.length))[:, None]).sum(1)
    return words.astype(dtype).reshape(shape)


def find_packing(words: Array) -> Packing | None:
    """How `words` are packed, if they can be, to the bit."""
    packing = PACKINGS.get((words.dtype.name, words.shape[1:]))
    if packing is None or not words.size:
        return None
    if not 0 <= int(words.min()) <= int(words.max()) < packing.base**packing.length:
        return None
    return packing
