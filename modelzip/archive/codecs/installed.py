"""Codecs of packages that are installed with modelzip[archive].

- zstd (zstandard): one frame of RFC 8878 that says its content's size, at level 19, no checksum.
- lz4 (lz4): one block, at level 9 of its thorough mode. A frame would add a head and checksums, of
  which an archive has its own, and could be followed by others; a block decodes into as many bytes
  as are declared and no more.
- snappy (cramjam): one raw stream, which begins with the size.
- lzo (lzallright): blocks of 64 KiB, the last may be shorter; of each the length of its LZO1X-1
  stream in 4 bytes, little-endian, then the stream. LZO1X does not say what it decodes to: blocks
  bound that.
"""

from __future__ import annotations

import importlib
from typing import Any

from modelzip.archive.codecs.codec import Codec
from modelzip.errors import ArchiveError, MissingExtraError

ZSTD_LEVEL = 19
LZ4_LEVEL = 9
LZO_BLOCK = 1 << 16
LZO_WORST = LZO_BLOCK + LZO_BLOCK // 16 + 67  # bytes of a block that is all literals


def _load(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        purpose = f"the codec {name!r}"
        raise MissingExtraError(package, extra="archive", purpose=purpose) from error


def compress_zstd(data: memoryview, level: int) -> bytes:
    """A frame as `ZSTD` writes it, at a level from 1 to 22."""
    zstd = _load("zstandard", "zstd")
    coder = zstd.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return bytes(coder.compress(data))


def _write_zstd(data: memoryview) -> bytes:
    return compress_zstd(data, ZSTD_LEVEL)


def _read_zstd(data: memoryview, size: int) -> bytes:
    zstd = _load("zstandard", "zstd")
    try:
        found = zstd.get_frame_parameters(data).content_size
        if found != size:  # it would allocate what the frame says
            raise ArchiveError(f"its frame says {found} bytes")
        return bytes(zstd.ZstdDecompressor().decompress(data, allow_extra_data=False))
    except zstd.ZstdError as error:
        raise ArchiveError(f"data are damaged ({error})") from error


def _write_lz4(data: memoryview) -> bytes:
    block = _load("lz4.block", "lz4")
    return bytes(
        block.compress(data, mode="high_compression", compression=LZ4_LEVEL, store_size=False)
    )


def _read_lz4(data: memoryview, size: int) -> bytes:
    block = _load("lz4.block", "lz4")
    try:
        return bytes(block.decompress(data, uncompressed_size=size))
    except block.LZ4BlockError as error:
        raise ArchiveError("data are damaged, or of more bytes") from error


def _write_snappy(data: memoryview) -> bytes:
    return bytes(_load("cramjam", "snappy").snappy.compress_raw(data))


def _read_snappy(data: memoryview, size: int) -> bytes:
    cramjam = _load("cramjam", "snappy")
    try:
        found = cramjam.snappy.decompress_raw_len(data)
        if found != size:
            raise ArchiveError(f"its head says {found} bytes")
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as error:
        raise ArchiveError(f"data are damaged ({error})") from error


def _write_lzo(data: memoryview) -> bytes:
    coder = _load("lzallright", "lzo").LZOCompressor()
    out = bytearray()
    for at in range(0, len(data), LZO_BLOCK):
        block = coder.compress(data[at : at + LZO_BLOCK])
        out += len(block).to_bytes(4, "little") + block
    return bytes(out)


def _read_lzo(data: memoryview, size: int) -> bytes:
    lzo = _load("lzallright", "lzo")
    out, at = bytearray(), 0
    while len(out) < size:
        length = int.from_bytes(data[at : at + 4], "little")
        block, at = data[at + 4 : at + 4 + length], at + 4 + length
        expected = min(LZO_BLOCK, size - len(out))
        if length > LZO_WORST or at > len(data):
            raise ArchiveError(f"a block of {length} bytes is over its bound or the end of data")
        try:
            found = lzo.LZOCompressor.decompress(block, expected)
        except lzo.LZOError as error:
            raise ArchiveError(f"data are damaged ({error.args[0]})") from error
        if len(found) != expected:
            raise ArchiveError(f"a block of {expected} bytes is found to be {len(found)}")
        out += found
    if at < len(data):
        raise ArchiveError(f"{len(data) - at} bytes follow the end of data")
    return bytes(out)


ZSTD = Codec("zstd", _write_zstd, _read_zstd, ratio=1 << 15)
LZ4 = Codec("lz4", _write_lz4, _read_lz4, ratio=255, limit=0x7E000000)
SNAPPY = Codec("snappy", _write_snappy, _read_snappy, ratio=22, limit=0xFFFFFFFF)
LZO = Codec("lzo", _write_lzo, _read_lzo, ratio=255)
