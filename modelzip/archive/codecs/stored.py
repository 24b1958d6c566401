"""Bytes stored as they are, or by engines that others keep.

- store: the bytes.
- deflate, zlib: RFC 1951 and 1950, level 9.
- bzip2: a bzip2 stream, level 9.
- lzma: LZMA2 without a container, with a dictionary of 4 MB, lc 3, lp 0, pb 0.
- zstd: a Zstandard frame, RFC 8878, level 19.
- lz4: an LZ4 block; snappy: Snappy's raw format; both without a container.
- lzo: for each 65536 bytes of data, a little-endian uint32 and so many bytes of LZO1X.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from modelzip.errors import ArchiveError, MissingExtraError

Data = bytes | memoryview
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 22, "lc": 3, "lp": 0, "pb": 0}]
_LZO_CHUNK = 1 << 16  # so that what a damaged one inflates to stays small


class _Engine(Protocol):
    """A decompressor of the standard library: it stops when it has given what is asked for."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Data, length: int, /) -> bytes: ...


@dataclass(frozen=True)
class Store:
    """The bytes themselves."""

    name: str = "store"

    def encode(self, data: Data) -> bytes:
        return bytes(data)

    def decode(self, data: Data, size: int) -> Data:
        _require(self.name, len(data), size)
        return data


@dataclass(frozen=True)
class Streamed:
    """An engine of the standard library."""

    name: str
    compress: Callable[[Data], bytes]
    engine: Callable[[], _Engine]
    errors: tuple[type[Exception], ...]

    def encode(self, data: Data) -> bytes:
        return self.compress(data)

    def decode(self, data: Data, size: int) -> bytes:
        engine = self.engine()
        try:
            found = engine.decompress(data, size + 1)
            if len(found) == size and not engine.eof:  # the end of the stream is still to come
                found += engine.decompress(getattr(engine, "unconsumed_tail", b""), 1)
        except self.errors as error:
            raise ArchiveError(f"{self.name}: the data are damaged ({error})") from error
        _require(self.name, len(found), size)
        if not engine.eof:
            raise ArchiveError(f"{self.name}: the data end before their stream does")
        if engine.unused_data:
            raise ArchiveError(f"{self.name}: {len(engine.unused_data)} bytes follow the stream")
        return found


@dataclass(frozen=True)
class Block:
    """A format of cramjam's, decoded into a buffer of the size that was declared."""

    name: str
    compress: Callable[[ModuleType, Data], Any]
    into: Callable[[ModuleType, Data, bytearray], int]

    def encode(self, data: Data) -> bytes:
        return bytes(self.compress(_cramjam(self.name), bytes(data)))

    def decode(self, data: Data, size: int) -> bytes:
        engine = _cramjam(self.name)
        out = bytearray(size)
        try:
            found = self.into(engine, bytes(data), out)
        except Exception as error:  # it raises several kinds, one for each format
            raise ArchiveError(
                f"{self.name}: the data are damaged, or not {size} bytes ({error})"
            ) from error
        _require(self.name, found, size)
        return bytes(out)


@dataclass(frozen=True)
class Lzo:
    """LZO1X of small chunks."""

    name: str = "lzo"

    def encode(self, data: Data) -> bytes:
        engine = _lzo()
        parts = []
        for at in range(0, len(data), _LZO_CHUNK):
            coded = engine.LZOCompressor().compress(bytes(data[at : at + _LZO_CHUNK]))
            parts += [len(coded).to_bytes(4, "little"), coded]
        return b"".join(parts)

    def decode(self, data: Data, size: int) -> bytes:
        engine = _lzo()
        parts, at = [], 0
        for start in range(0, size, _LZO_CHUNK):
            length = int.from_bytes(data[at : at + 4], "little")
            coded = bytes(data[at + 4 : at + 4 + length])
            expected = min(_LZO_CHUNK, size - start)
            if len(coded) < length or length > 2 * _LZO_CHUNK or not length:
                raise ArchiveError(f"lzo: a chunk of {length} bytes is not whole at byte {at}")
            try:
                parts.append(engine.LZOCompressor.decompress(coded, expected))
            except Exception as error:  # its own kinds
                raise ArchiveError(f"lzo: the data are damaged at byte {at} ({error})") from error
            _require(self.name, len(parts[-1]), expected)
            at += 4 + length
        if at < len(data):
            raise ArchiveError(f"lzo: {len(data) - at} bytes follow the last chunk")
        return b"".join(parts)


def _require(name: str, found: int, size: int) -> None:
    if found != size:
        more = "more than " if found > size else ""
        count = size if more else found
        raise ArchiveError(f"{name}: the data hold {more}{count} bytes, and {size} are declared")


def _cramjam(name: str) -> ModuleType:
    try:
        import cramjam
    except ImportError as error:
        raise MissingExtraError(
            "cramjam", extra="archive", purpose=f"the codec {name!r}"
        ) from error
    module: ModuleType = cramjam
    return module


def _lzo() -> ModuleType:
    try:
        import lzallright
    except ImportError as error:
        raise MissingExtraError("lzallright", extra="archive", purpose="the codec 'lzo'") from error
    module: ModuleType = lzallright
    return module


def _deflated(data: Data, bits: int) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, bits, 9)
    return engine.compress(data) + engine.flush()


CODECS = (
    Store(),
    Streamed(
        "deflate",
        lambda d: _deflated(d, -15),
        lambda: zlib.decompressobj(-15),
        (zlib.error, EOFError),
    ),
    Streamed(
        "zlib", lambda d: _deflated(d, 15), lambda: zlib.decompressobj(15), (zlib.error, EOFError)
    ),
    Streamed("bzip2", bz2.compress, bz2.BZ2Decompressor, (OSError, ValueError, EOFError)),
    Streamed(
        "lzma",
        lambda d: lzma.compress(d, format=lzma.FORMAT_RAW, filters=_FILTERS),
        lambda: lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS),
        (lzma.LZMAError, EOFError),
    ),
    Block(
        "zstd",
        lambda engine, data: engine.zstd.compress(data, 19),
        lambda engine, data, out: engine.zstd.decompress_into(data, out),
    ),
    Block(
        "lz4",
        lambda engine, data: engine.lz4.compress_block(data, store_size=False),
        lambda engine, data, out: engine.lz4.decompress_block_into(data, out),
    ),
    Block(
        "snappy",
        lambda engine, data: engine.snappy.compress_raw(data),
        lambda engine, data, out: engine.snappy.decompress_raw_into(data, out),
    ),
    Lzo(),
)
