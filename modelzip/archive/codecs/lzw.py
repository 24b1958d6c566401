"""LZW codes of bytes, of 8 to 16 bits.

As in GIF and Unix's compress, a code under 256 is that byte, and others are strings that came
before: once code number i + 1 is known, 256 + i is the string of code number i and the first byte
of the next string. Code number i, from 0 on, is thus at most 255 + i (the last of which ends in
its own first byte), and is written in as many bits as that number has. After code number 65280,
whose bound fills 16 bits, all begins anew with a code of number 0 and no strings.
Codes are joined with the highest bit first; the last byte is filled up with zeros.

So there are neither codes that clear nor one that ends: widths follow from positions alone, and
the size says how many bytes there are. Welch 1984, https://doi.org/10.1109/MC.1984.1659158.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.codecs.bits import WIDEST, BitWriter, read
from modelzip.archive.codecs.codec import Codec
from modelzip.errors import ArchiveError

CODES = (1 << WIDEST) - 255  # until all begins anew


def _widths(count: int) -> NDArray[np.int64]:
    """The bits of so many codes, or of those until all begins anew."""
    most = 255 + np.arange(min(count, CODES))
    return np.searchsorted(1 << np.arange(WIDEST), most, side="right")


def _encode(data: memoryview) -> bytes:
    writer, widths = BitWriter(), _widths(len(data))
    for codes in _codes(data):
        writer.write(np.array(codes, np.int64), widths[: len(codes)])
    return bytes(writer.data)


def _codes(data: memoryview) -> Iterator[list[int]]:
    """The codes until all begins anew, again and again."""
    codes: list[int] = []
    known: dict[int, int] = {}  # by the code of a string and a byte, the code of both
    current = -1
    for byte in data:
        if current < 0:
            current = byte
            continue
        both = current << 8 | byte
        code = known.get(both)
        if code is not None:
            current = code
            continue
        codes.append(current)
        known[both] = 255 + len(codes)
        current = byte
        if len(codes) == CODES:
            yield codes
            codes, known = [], {}
    if current >= 0:
        yield [*codes, current]


def _decode(data: memoryview, size: int) -> bytes:
    widths = _widths(len(data))
    ends = np.cumsum(widths)
    out, at, count = bytearray(), 0, CODES
    while count == CODES:
        first = at // 8
        part = data[first : first + int(ends[-1]) // 8 + 2]
        count = int(np.searchsorted(ends, 8 * len(data) - at, side="right"))
        codes = read(part, at % 8 + ends[:count] - widths[:count], widths[:count])
        _append(out, codes.tolist(), size)
        at += int(ends[count - 1]) if count else 0
    _check_end(data, at)
    return bytes(out)


def _append(out: bytearray, codes: list[int], size: int) -> None:
    """Adds the strings of codes since all began anew."""
    starts: list[int] = []  # of each code's string, which with the byte after it is the next entry
    for code in codes:
        start = len(out)
        if code < 256:
            out.append(code)
        else:
            entry = code - 256
            if entry >= len(starts):
                raise ArchiveError(f"code {code} comes before its string")
            end = starts[entry + 1] + 1 if entry + 1 < len(starts) else start + 1
            out += out[starts[entry] : end]
            if end > start:  # the byte after it is the first of this string
                out.append(out[start])
        starts.append(start)
        if len(out) > size:
            raise ArchiveError("more bytes than declared are found")


def _check_end(data: memoryview, end: int) -> None:
    left = 8 * len(data) - end
    if left >= 8 or (left and data[-1] & (1 << left) - 1):
        raise ArchiveError(f"{left} bits are left over and not zeros")


LZW = Codec("lzw", _encode, _decode)
