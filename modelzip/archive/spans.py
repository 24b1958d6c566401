"""Where the tensors of a file lie in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ITEM_BITS = {
    **dict.fromkeys(("int4", "uint4"), 4),
    **dict.fromkeys(("bool", "int8", "uint8"), 8),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("int32", "uint32", "float32"), 32),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64),
    "complex128": 128,
}
MAX_DIMS = 64
MOST_VALUES = 1 << 59  # of 16 bytes: what sizes of 64 bits can count, zeros aside


@dataclass(frozen=True)
class Span:
    """A tensor's bytes in a file: little-endian, row by row, `size` of them from `offset` on.

    `dtype` is a name of numpy's, "bfloat16", "int4" or "uint4". Types of other widths are "uint8",
    and so are bytes that are not as many as type and shape ask for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def span(name: str, dtype: str | None, shape: Sequence[int], *, offset: int, size: int) -> Span:
    """A Span of the type and shape that a file declares, or of plain bytes if they do not fit.

    >>> span("w", "float32", [2, 3], offset=40, size=24)
    Span(name='w', dtype='float32', shape=(2, 3), offset=40, size=24)
    >>> span("w", None, [2, 3], offset=40, size=3)
    Span(name='w', dtype='uint8', shape=(3,), offset=40, size=3)
    """
    fits = dtype is not None and byte_size(dtype, shape) == size
    fits = fits and is_countable(shape)
    if dtype is None or not fits:
        dtype, shape = "uint8", (size,)
    name = name.encode(errors="replace").decode()  # no half of a surrogate pair
    return Span(name, dtype, tuple(shape), offset, size)


def byte_size(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; the last may be half full.

    >>> byte_size("int4", [3, 3])
    5
    """
    return -(-math.prod(shape) * ITEM_BITS[dtype] // 8)


def is_countable(shape: Sequence[int]) -> bool:
    """Whether arrays of `shape` can be: numpy and torch multiply sides even if another is 0.

    >>> is_countable([0, 1 << 40]), is_countable([0, 1 << 40, 1 << 40])
    (True, False)
    """
    return len(shape) <= MAX_DIMS and math.prod(max(side, 1) for side in shape) <= MOST_VALUES
