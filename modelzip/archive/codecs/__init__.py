"""Codecs of bytes by name.

Each has `encode(data)` and `decode(data, size)`; its format is described in the module it is from.

>>> data = codec("huffman").encode(b"archive")
>>> codec("huffman").decode(data, 7)
b'archive'
"""

from __future__ import annotations

from modelzip.archive.codecs.codec import Codec
from modelzip.archive.codecs.huffman import HUFFMAN
from modelzip.archive.codecs.installed import LZ4, LZO, SNAPPY, ZSTD
from modelzip.archive.codecs.lzw import LZW
from modelzip.archive.codecs.standard import BZIP2, DEFLATE, LZMA, STORE, ZLIB
from modelzip.errors import SettingError, did_you_mean

_CODECS = {
    each.name: each
    for each in (STORE, DEFLATE, ZLIB, BZIP2, LZMA, ZSTD, LZ4, SNAPPY, LZO, HUFFMAN, LZW)
}
NAMES = tuple(_CODECS)


def codec(name: str) -> Codec:
    """The codec of a name. SettingError if there is none.

    >>> codec("zlib").decode(codec("zlib").encode(bytes(1000)), 1000) == bytes(1000)
    True
    """
    if name not in _CODECS:
        raise SettingError(f"there is no codec {name!r}{did_you_mean(name, NAMES)}")
    return _CODECS[name]
