"""Codecs of the standard library.

- store: the bytes themselves.
- deflate, zlib: RFC 1951 and RFC 1950, at level 9 with the larger hash table.
- bzip2: one stream, in blocks of 900 kB.
- lzma: a byte a of 0 to 2, then raw LZMA2 with lp = pb = a, lc = 4 - a, and a window of as many
  bytes as are coded, but at least 4 KiB and at most 8 MiB. a says that what repeats begins at
  multiples of 2**a bytes: 85 instead of 93 % for the float32 weights of a ResNet-56. Raw, because
  an xz container adds 60 bytes and lets damaged data ask for a window of up to 4 GiB.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from modelzip.archive.codecs.codec import Codec
from modelzip.errors import ArchiveError

LEVEL = 9
MEMORY = 9  # the most zlib takes: 256 kB for its hash table
LEAST_WINDOW, MOST_WINDOW = 1 << 12, 1 << 23
ALIGNMENTS = (0, 1, 2)
SAMPLE = 1 << 16  # bytes of which the alignment is judged


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


def _read_stream(decoder: _Decoder, data: memoryview, size: int) -> bytes:
    """At most size + 1 bytes: one too many says that the stream goes on without decoding it."""
    try:
        found = decoder.decompress(data, min(size + 1, sys.maxsize))
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise ArchiveError(f"data are damaged ({error})") from error
    if len(found) <= size and not decoder.eof:
        raise ArchiveError(f"data end early, after {len(found)} bytes are found")
    if decoder.unused_data:
        raise ArchiveError(f"{len(decoder.unused_data)} bytes follow the end of data")
    return found


def _deflate(window: int) -> Callable[[memoryview], bytes]:
    def compress(data: memoryview) -> bytes:
        coder = zlib.compressobj(LEVEL, zlib.DEFLATED, window, MEMORY)
        return coder.compress(data) + coder.flush()

    return compress


def _inflate(window: int) -> Callable[[memoryview, int], bytes]:
    return lambda data, size: _read_stream(zlib.decompressobj(window), data, size)


def _filters(alignment: int, size: int) -> list[dict[str, Any]]:
    window = max(LEAST_WINDOW, min(size, MOST_WINDOW))
    return [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": LEVEL,
            "dict_size": window,
            "lc": 4 - alignment,
            "lp": alignment,
            "pb": alignment,
        }
    ]


def _lzma2(data: memoryview, alignment: int) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(alignment, len(data)))


def _write_lzma(data: memoryview) -> bytes:
    start = max(0, len(data) - SAMPLE) // 8 * 4  # the middle, at a multiple of 4
    sample = data[start : start + SAMPLE]
    best = min(ALIGNMENTS, key=lambda alignment: len(_lzma2(sample, alignment)))
    return bytes([best]) + _lzma2(data, best)


def _read_lzma(data: memoryview, size: int) -> bytes:
    if data[0] not in ALIGNMENTS:
        raise ArchiveError(f"alignment {data[0]} is none of {', '.join(map(str, ALIGNMENTS))}")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(data[0], size))
    return _read_stream(decoder, data[1:], size)


def _read_stored(data: memoryview, size: int) -> bytes:
    return bytes(data[: size + 1])


STORE = Codec("store", bytes, _read_stored)
DEFLATE = Codec("deflate", _deflate(-zlib.MAX_WBITS), _inflate(-zlib.MAX_WBITS))
ZLIB = Codec("zlib", _deflate(zlib.MAX_WBITS), _inflate(zlib.MAX_WBITS))
BZIP2 = Codec(
    "bzip2",
    lambda data: bz2.compress(data, LEVEL),
    lambda data, size: _read_stream(bz2.BZ2Decompressor(), data, size),
)
LZMA = Codec("lzma", _write_lzma, _read_lzma)
