"""How tensors are laid out in blobs: small ones together, large ones in rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modelzip.archive.floats import WIDTHS
from modelzip.archive.nodes import INTEGER_TYPES, numpy_type
from modelzip.archive.spans import Span

GROUP = 1 << 22  # bytes of small tensors in a blob, which is read as a whole
PIECE = 1 << 24  # bytes of a large tensor in one: long planes decode faster


class Piece(NamedTuple):
    """`rows` of the coded array of tensor number `tensor`, from row `first` on."""

    tensor: int
    first: int
    rows: int
    size: int


def coded_as(span: Span) -> tuple[str, tuple[int, ...]]:
    """Type and shape that a tensor is coded in: other types, and long rows, as flat ones.

    >>> coded_as(Span("w", "int64", (2, 3), 0, 48))
    ('uint8', (48,))
    """
    if span.dtype not in (*INTEGER_TYPES, *WIDTHS):
        return "uint8", (span.size,)
    count = span.size // numpy_type(span.dtype).itemsize
    shape = span.shape or (1,)
    if not count or span.size // shape[0] > PIECE:
        shape = (count,)
    return span.dtype, shape


def pieces_of(index: int, span: Span) -> list[Piece]:
    """A tensor whole, or in pieces of at most PIECE bytes."""
    _, shape = coded_as(span)
    row = span.size // shape[0] if shape[0] else 0
    most = max(1, PIECE // row) if row else 1
    return [
        Piece(index, first, min(most, shape[0] - first), row * min(most, shape[0] - first))
        for first in range(0, shape[0], most)
    ] or [Piece(index, 0, 0, 0)]


def groups(spans: Iterable[Span]) -> Iterator[list[Piece]]:
    """Pieces of all tensors in their order, as many together as have about GROUP bytes."""
    group: list[Piece] = []
    size = 0
    for index, span in enumerate(spans):
        for piece in pieces_of(index, span):
            if group and size + piece.size > GROUP:
                yield group
                group, size = [], 0
            group.append(piece)
            size += piece.size
    if group:
        yield group


def piece_shape(span: Span, piece: Piece) -> tuple[str, tuple[int, ...]]:
    """Type and shape of what a piece holds."""
    dtype, shape = coded_as(span)
    return dtype, (piece.rows, *shape[1:])


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a coded array."""
    return math.prod(shape) * numpy_type(dtype).itemsize
