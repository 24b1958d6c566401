"""Samples as bytes, all of a chunk together or one by one.

What is coded together is: the bytes before the codec, 8, where they do not follow from the shape;
step and start of `Scale`, float32, of int8 or uint8; then the codec's. Before the codec are the
lengths of rows that differ, 4 bytes each, and the filtered numbers. All is little-endian.

A chunk whose samples are coded one by one begins with 8 bytes for each: the size of its code and
the CRC-32; then the CRC-32 of all these; then the codes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.codecs import codec as codec_named
from modelzip.archive.codecs.codec import Codec
from modelzip.archive.codecs.installed import compress_zstd
from modelzip.data.packed import filters, loss, pictures
from modelzip.data.packed.form import MAX_CHUNK, Form
from modelzip.errors import ArchiveError, SettingError

ZSTD_LEVEL = 1  # after filters it is within a hundredth of level 19, 100 times as fast
_SIZE = struct.Struct("<Q")
_SCALE = struct.Struct("<ff")
_PLACE = 8  # bytes of a sample in the table of a chunk
Array = NDArray[Any]


class Items(NamedTuple):
    """Samples: values [N, *shape], or of rows that differ their lengths and values [1, total]."""

    values: Array
    lengths: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.values if self.lengths is None else self.lengths)

    def one(self, index: int) -> Array:
        """Values of a sample."""
        if self.lengths is None:
            found: Array = self.values[index]
            return found
        start = int(self.lengths[:index].sum(dtype=np.int64))
        return self.values[0, start : start + int(self.lengths[index])]


def encode(items: Items, form: Form, *, level: int | None = None) -> bytes:
    """The bytes of a chunk. `level` is of zstd, 1 where there is none."""
    if not form.single:
        return _encode_together(items, form, level)
    codes = [_encode_one(items.one(i), form, level) for i in range(len(items))]
    table = np.array([(len(c), zlib.crc32(c)) for c in codes], "<u4").tobytes()
    return b"".join([table, zlib.crc32(table).to_bytes(4, "little"), *codes])


def decode(data: memoryview, form: Form, count: int, *, first: int) -> Items:
    """The samples of a chunk that are coded together; `first` is the number of the first.

    ArchiveError if data are not those of `count` samples.
    """
    sized = form.shape is None or "sparse" in form.filters
    head = _SIZE.size * sized + _SCALE.size * (form.narrow in ("int8", "uint8"))
    if len(data) < head:
        raise ArchiveError(f"{len(data)} bytes are fewer than its head has")
    size = _SIZE.unpack_from(data)[0] if sized else _raw_bytes(form, count)
    scale = loss.Scale()
    if form.narrow in ("int8", "uint8"):
        scale = loss.Scale(*_SCALE.unpack_from(data, _SIZE.size * sized))
    if size > 2 * MAX_CHUNK:
        raise ArchiveError(f"it claims {size} bytes, and at most {2 * MAX_CHUNK} are read at once")
    raw = codec_named(form.codec).decode(data[head:], size)
    lengths, shape = None, (count, *(form.shape or ()))
    if form.shape is None:
        lengths = np.frombuffer(raw[: 4 * count], "<u4")
        if len(lengths) < count:
            raise ArchiveError(f"{len(raw)} bytes are fewer than the lengths of {count} rows")
        shape = (1, int(lengths.sum(dtype=np.int64)))
        raw = raw[4 * count :]
        if shape[1] * form.stored.itemsize > MAX_CHUNK:
            raise ArchiveError(f"it claims {shape[1]} numbers")
    kept = filters.undo(raw, form.filters, shape, form.stored)
    return Items(loss.widen(kept, form, scale, first), lengths)


def decode_one(code: memoryview, form: Form, *, number: int) -> Items:
    """The sample of a code. ArchiveError if it is none."""
    if form.codec not in pictures.CODECS:
        return decode(code, form, 1, first=number)
    image = pictures.decode(code, form)[None]
    if form.bits is not None:
        image = loss.widen(image.copy(), form, loss.Scale(), number)
    return Items(image)


def table_bytes(count: int) -> int:
    """Bytes at the start of a chunk whose `count` samples are coded one by one."""
    return _PLACE * count + 4


def read_table(
    data: memoryview, count: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where `count` codes begin in a chunk, with the end of the last, and their CRC-32s.

    ArchiveError if the table is damaged, or of codes that do not fill the chunk's `size` bytes.
    """
    if len(data) < table_bytes(count):
        raise ArchiveError("it is cut short within its table")
    table, crc = data[:-4], int.from_bytes(data[-4:], "little")
    if zlib.crc32(table) != crc:
        raise ArchiveError("the CRC-32 of its table is wrong")
    found = np.frombuffer(table, "<u4").reshape(-1, 2).astype(np.int64)
    ends = len(data) + np.cumsum(found[:, 0])
    if ends[-1] != size:
        raise ArchiveError(f"its codes end at byte {ends[-1]} of {size}")
    return np.concatenate([[len(data)], ends]), found[:, 1]


def check_level(level: int | None, form: Form) -> None:
    """SettingError unless there is such a level."""
    if level is None:
        return
    if form.codec != "zstd" or type(level) is not int or not 1 <= level <= 22:
        raise SettingError(f"level is of zstd, from 1 to 22, got {level!r} for {form.codec!r}")


def _encode_one(sample: Array, form: Form, level: int | None) -> bytes:
    if form.codec in pictures.CODECS:
        return pictures.encode(loss.narrow(sample, form)[0], form)
    lengths = np.array([sample.size], np.uint32) if form.shape is None else None
    return _encode_together(Items(sample[None], lengths), form, level)


def _encode_together(items: Items, form: Form, level: int | None) -> bytes:
    kept, scale = loss.narrow(items.values, form)
    lengths = b"" if items.lengths is None else items.lengths.astype("<u4").tobytes()
    raw = lengths + filters.apply(kept.astype(form.stored, copy=False), form.filters)
    sized = form.shape is None or "sparse" in form.filters
    head = _SIZE.pack(len(raw)) if sized else b""
    if form.narrow in ("int8", "uint8"):
        head += _SCALE.pack(*scale)
    return head + _coder(form.codec, level).encode(raw)


def _coder(name: str, level: int | None) -> Codec:
    found = codec_named(name)
    if name != "zstd":
        return found
    return Codec(name, lambda data: compress_zstd(data, level or ZSTD_LEVEL), found.expand)


def _raw_bytes(form: Form, count: int) -> int:
    items = form.item_bytes // np.dtype(form.dtype).itemsize
    return count * items * form.stored.itemsize
