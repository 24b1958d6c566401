from __future__ import annotations

import cramjam
import lz4.block
import lzallright
import numpy as np
import pytest
import zstandard

from modelzip.archive.codecs import codec
from modelzip.errors import ArchiveError

TEXT = b"weights and biases, " * 10_000
SIZE = len(TEXT)


def refused(name, data, size, text):
    with pytest.raises(ArchiveError, match=rf"^{name}: {text}, in {len(data)} bytes that are"):
        codec(name).decode(data, size)


@pytest.mark.parametrize(
    ("name", "inflate"),
    [
        ("zstd", lambda data: zstandard.ZstdDecompressor().decompress(data)),
        ("lz4", lambda data: lz4.block.decompress(data, uncompressed_size=SIZE)),
        ("snappy", lambda data: bytes(cramjam.snappy.decompress_raw(data))),
    ],
)
def test_streams_are_those_of_their_formats(name, inflate):
    assert inflate(codec(name).encode(TEXT)) == TEXT


def test_lzo_has_blocks_with_their_lengths():
    coded, found = codec("lzo").encode(TEXT), b""
    while coded:
        length = int.from_bytes(coded[:4], "little")
        block = lzallright.LZOCompressor.decompress(coded[4 : 4 + length])
        assert len(block) == min(65536, SIZE - len(found))
        found, coded = found + block, coded[4 + length :]
    assert found == TEXT


def test_zstd_refuses_a_frame_of_another_size_and_damage():
    coded = codec("zstd").encode(TEXT)
    refused("zstd", coded, SIZE + 1, f"its frame says {SIZE} bytes")
    refused("zstd", coded[:-1], SIZE, r"data are damaged \(.*\)")
    skippable = b"\x50\x2a\x4d\x18" + bytes(4)
    refused("zstd", coded + skippable, SIZE, r"data are damaged \(.*8 bytes of unused data.*\)")


def test_zstd_refuses_a_frame_that_does_not_say_its_size():
    coded = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    refused("zstd", coded, SIZE, r"its frame says \d+ bytes")


def test_lz4_refuses_damage():
    coded = codec("lz4").encode(TEXT)
    refused("lz4", coded[:-1], SIZE, "data are damaged, or of more bytes")
    refused("lz4", coded, SIZE - 1, "data are damaged, or of more bytes")
    refused("lz4", coded, SIZE + 1, f"only {SIZE} bytes are found")


def test_lz4_refuses_more_than_a_block_can_have():
    limit = 0x7E000000
    message = f"lz4 codes at most {limit} bytes, got {limit + 1}; cut them in parts, or use another"
    with pytest.raises(ArchiveError, match=message):
        codec("lz4").encode(np.zeros(limit + 1, np.uint8).data)  # pages that are never touched
    refused("lz4", b"abc", limit + 1, f"at most {limit} bytes can be coded")


def test_snappy_refuses_another_size_and_damage():
    coded = codec("snappy").encode(TEXT)
    refused("snappy", coded, SIZE + 1, f"its head says {SIZE} bytes")
    refused("snappy", coded[:-1], SIZE, r"data are damaged \(.*\)")


def test_a_size_beyond_what_a_format_can_reach_is_refused():
    refused("snappy", b"\xff\xff\xff\xff\x0f", 0xFFFFFFFF, "a byte stands for at most 22")


def test_lzo_refuses_blocks_of_other_sizes_and_damage():
    coded = codec("lzo").encode(b"some weights")
    worst = (69_700).to_bytes(4, "little") + bytes(69_700)
    refused("lzo", worst, 12, "a block of 69700 bytes is over its bound or the end of data")
    refused("lzo", coded[:-1], 12, r"a block of \d+ bytes is over its bound or the end of data")
    refused("lzo", coded + b"abc", 12, "3 bytes follow the end of data")
    refused("lzo", coded, 13, "a block of 13 bytes is found to be 12")
    damaged = b"\x04\x00\x00\x00" + b"\xff" * 4
    refused("lzo", damaged, 12, r"data are damaged \(.*\)")
