from __future__ import annotations

import bz2
import lzma
import zlib
from pathlib import Path

import numpy as np
import pytest

from modelzip.archive.codecs import codec
from modelzip.errors import ArchiveError

TEXT = b"weights and biases, " * 500


def refused(name, data, size, text):
    with pytest.raises(ArchiveError, match=rf"^{name}: {text}, in {len(data)} bytes that are"):
        codec(name).decode(data, size)


@pytest.mark.parametrize(
    ("name", "inflate"),
    [
        ("store", bytes),
        ("zlib", zlib.decompress),
        ("deflate", lambda data: zlib.decompress(data, -15)),
        ("bzip2", bz2.decompress),
    ],
)
def test_streams_are_those_of_their_formats(name, inflate):
    assert inflate(codec(name).encode(TEXT)) == TEXT


@pytest.mark.parametrize("alignment", [0, 1, 2])
def test_lzma_reads_what_its_format_says(alignment):
    kind = {"id": lzma.FILTER_LZMA2, "lc": 4 - alignment, "lp": alignment, "pb": alignment}
    coded = lzma.compress(TEXT, lzma.FORMAT_RAW, filters=[{**kind, "dict_size": len(TEXT)}])
    assert codec("lzma").decode(bytes([alignment]) + coded, len(TEXT)) == TEXT


@pytest.mark.parametrize(("dtype", "alignments"), [("float16", {1, 2}), ("float32", {2})])
def test_lzma_finds_how_values_are_aligned(dtype, alignments):
    drawn = np.random.default_rng(0).normal(0, 1, 100_000)
    assert codec("lzma").encode(drawn.astype(dtype).data)[0] in alignments


def test_lzma_finds_that_text_is_not_aligned():
    assert codec("lzma").encode(Path(__file__).read_bytes())[0] == 0


def test_lzma_refuses_another_alignment():
    refused("lzma", b"\x03\x00", 1, "alignment 3 is none of 0, 1, 2")


@pytest.mark.parametrize("name", ["deflate", "zlib", "bzip2", "lzma"])
def test_what_is_wrong_with_a_stream_is_said(name):
    coded = codec(name).encode(TEXT)
    size = len(TEXT)
    refused(name, coded, size - 1, "more bytes than declared are found")
    refused(name, coded, size + 1, rf"only {size} bytes are found")
    refused(name, coded[:-1], size, r"data end early, after \d+ bytes are found")
    refused(name, coded + b"abc", size, "3 bytes follow the end of data")
    refused(name, coded[:1] + b"\xff" * 30, size, r"data are damaged \(.*\)")
