"""Codecs of bytes, by name: the smallest are tried where none is asked for."""

from __future__ import annotations

from typing import Protocol

from modelzip.archive.codecs import huffman, lzw, stored
from modelzip.errors import SettingError, did_you_mean


class ByteCodec(Protocol):
    """Bytes to fewer bytes, and back.

    `decode` gives exactly `size` bytes, or ArchiveError, whatever it is given, and allocates not
    much more than these.
    """

    @property
    def name(self) -> str: ...
    def encode(self, data: bytes | memoryview) -> bytes: ...
    def decode(self, data: bytes | memoryview, size: int) -> bytes | memoryview: ...


_CODECS: dict[str, ByteCodec] = {
    each.name: each for each in (*stored.CODECS, huffman.Huffman(), lzw.Lzw())
}
NAMES = tuple(_CODECS)


def codec(name: str) -> ByteCodec:
    """The codec called `name`. SettingError if there is none.

    >>> codec("zlib").decode(codec("zlib").encode(b"weights"), 7)
    b'weights'
    """
    if name not in _CODECS:
        near = did_you_mean(name, NAMES)
        raise SettingError(f"there is no codec {name!r}{near}; there are {', '.join(NAMES)}")
    return _CODECS[name]
