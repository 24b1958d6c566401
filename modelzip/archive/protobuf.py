"""The fields of a protobuf message in memory, within bounds and without its schema.

https://protobuf.dev/programming-guides/encoding: a message is a run of fields, each a tag (number
and wire type) and a value; a message inside a message is a value with a length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from modelzip.errors import ArchiveError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}
VARINT_BYTES = 10


class Field(NamedTuple):
    """A field: its payload is bytes `start` to `end`; `value` is the number that a varint is."""

    number: int
    wire: int
    start: int
    end: int
    value: int


def fields(view: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message at bytes `start` to `end`. ArchiveError, with a byte, if damaged.

    >>> [field[:] for field in fields(memoryview(b"\\x08\\x96\\x01\\x12\\x02hi"), 0, 7)]
    [(1, 0, 1, 3, 150), (2, 2, 5, 7, 0)]
    """
    while start < end:
        at = start
        tag, start = varint(view, start, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        if wire == VARINT:
            value, stop = varint(view, start, end)
        elif wire == LENGTH:
            size, start = varint(view, start, end)
            stop = start + size
        elif wire in FIXED:
            stop = start + FIXED[wire]
        else:
            raise ArchiveError(f"byte {at} has wire type {wire}, which no ONNX file uses")
        if not 0 < number < 1 << 29:
            raise ArchiveError(f"byte {at} has field number {number}")
        if stop > end:
            raise ArchiveError(f"the field at byte {at} ends {stop - end} bytes past its message")
        yield Field(number, wire, start, stop, value)
        start = stop


def varint(view: memoryview, start: int, end: int) -> tuple[int, int]:
    """The unsigned number of at most 64 bits at byte `start`, and where the next byte is.

    >>> varint(memoryview(b"\\x96\\x01"), 0, 2)
    (150, 2)
    """
    value = 0
    for at in range(start, min(end, start + VARINT_BYTES)):
        value |= (view[at] & 0x7F) << 7 * (at - start)
        if view[at] < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + 1
    raise ArchiveError(f"the number at byte {start} does not end")
