"""What every codec of bytes keeps to, and each one's own."""

from __future__ import annotations

import builtins
import bz2
import contextlib
import lzma
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.archive.codecs import NAMES, codec
from modelzip.errors import ArchiveError, MissingExtraError, SettingError

every = pytest.mark.parametrize("name", NAMES)
SAMPLES = [
    b"",
    b"a",
    b"\0" * 100_000,
    bytes(range(256)) * 3,
    b"to be or not to be, that is the question. " * 200,
    np.random.default_rng(0).integers(0, 256, 70_000, np.uint8).tobytes(),
    np.random.default_rng(1).normal(0, 8, 200_000).round().astype(np.int8).tobytes(),
    b"ab" * 70_000,
]


def test_there_are_the_codecs_that_users_know():
    assert set(NAMES) == {
        *("store", "deflate", "zlib", "bzip2", "lzma", "zstd", "lz4", "snappy", "lzo"),
        *("huffman", "lzw"),
    }


@every
@pytest.mark.parametrize("data", SAMPLES, ids=range(len(SAMPLES)))
def test_data_come_back(name, data):
    coded = codec(name).encode(memoryview(data))
    assert isinstance(coded, bytes)
    assert bytes(codec(name).decode(memoryview(coded), len(data))) == data


@every
@settings(deadline=None, max_examples=60)
@given(data=st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(b"ab"), max_size=300)))
def test_any_data_come_back(name, data):
    data = bytes(data)
    assert bytes(codec(name).decode(codec(name).encode(data), len(data))) == data


@every
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_data_are_refused_or_of_the_right_size(name, data):
    original = data.draw(st.binary(max_size=200))
    coded = bytearray(codec(name).encode(original))
    size = len(original)
    for _ in range(data.draw(st.integers(0, 3))):
        change = data.draw(st.sampled_from(["flip", "cut", "grow", "resize"]))
        if change == "flip" and coded:
            coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del coded[data.draw(st.integers(0, len(coded))) :]
        elif change == "grow":
            coded += data.draw(st.binary(max_size=20))
        else:
            size = data.draw(st.integers(0, 400))
    with contextlib.suppress(ArchiveError):
        assert len(codec(name).decode(bytes(coded), size)) == size


@every
@settings(deadline=None, max_examples=100)
@given(junk=st.binary(max_size=100), size=st.integers(0, 1000))
def test_junk_is_refused_or_of_the_right_size(name, junk, size):
    with contextlib.suppress(ArchiveError):
        assert len(codec(name).decode(junk, size)) == size


@every
def test_another_size_and_what_follows_are_refused(name):
    data = b"weights and biases " * 30
    coded = codec(name).encode(data)
    for size in (len(data) - 1, len(data) + 1, 0):
        with pytest.raises(ArchiveError, match=rf"^{name}: "):
            codec(name).decode(coded, size)
    with pytest.raises(ArchiveError, match=rf"^{name}: "):
        codec(name).decode(coded + b"\x01\x02\x03", len(data))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "store"])
def test_a_bomb_is_not_inflated(name):
    tracemalloc = pytest.importorskip("tracemalloc")
    coded = codec(name).encode(b"\0" * 8_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=rf"^{name}: "):
            codec(name).decode(coded, 10)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000  # the dictionary of lzma has 4 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "inflate"),
    [
        ("zlib", zlib.decompress),
        ("deflate", lambda d: zlib.decompress(d, -15)),
        ("bzip2", bz2.decompress),
        (
            "lzma",
            lambda d: lzma.decompress(
                d,
                lzma.FORMAT_RAW,
                filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22}],
            ),
        ),
    ],
)
def test_streams_are_those_of_their_formats(name, inflate):
    for data in SAMPLES:
        assert inflate(codec(name).encode(data)) == data


def test_huffman_is_as_short_as_its_codes_by_hand():
    # a 4 times, b twice, c and d once: codes of 1, 2, 3, 3 bits, so 4 + 4 + 3 + 3 = 14 bits
    coded = codec("huffman").encode(b"aaaabbcd")
    assert len(coded) == 1 + 32 + 2 + 2
    assert coded[0] == 2
    assert coded[33:] == bytes([0x21, 0x33, 0b00001010, 0b11011100])


def test_huffman_limits_its_codes():
    counts = [1, 1]
    while len(counts) < 24:
        counts.append(counts[-1] + counts[-2])
    data = b"".join(bytes([value]) * count for value, count in enumerate(counts))
    coded = codec("huffman").encode(data)
    assert codec("huffman").decode(coded, len(data)) == data


def test_lzw_by_hand():
    # a, b, then ab = 256, then aba = 258, made just before it is used
    codes = [97, 98, 256, 258]
    bits = sum(code << 9 * place for place, code in enumerate(codes))
    assert codec("lzw").encode(b"abababa") == bits.to_bytes(5, "little")
    assert codec("lzw").decode(bits.to_bytes(5, "little"), 7) == b"abababa"


def test_lzw_codes_grow_to_16_bits_and_no_more():
    data = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    assert codec("lzw").decode(codec("lzw").encode(data), len(data)) == data


def test_an_unknown_codec_is_refused():
    with pytest.raises(SettingError, match="there is no codec 'zsdt'; did you mean 'zstd'"):
        codec("zsdt")


@pytest.mark.parametrize(
    ("name", "package"),
    [("zstd", "cramjam"), ("lz4", "cramjam"), ("snappy", "cramjam"), ("lzo", "lzallright")],
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    real = builtins.__import__

    def absent(wanted, *args, **kwargs):
        if wanted == package:
            raise ImportError(wanted)
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    message = rf"the codec '{name}' needs {package}: pip install 'modelzip\[archive\]'"
    with pytest.raises(MissingExtraError, match=message):
        codec(name).encode(b"data")
