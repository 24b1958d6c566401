"""What every codec of bytes keeps to."""

from __future__ import annotations

import contextlib
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.archive.codecs import NAMES, codec
from modelzip.errors import ArchiveError, MissingExtraError, SettingError

every = pytest.mark.parametrize("name", NAMES)
SAMPLES = {
    "one byte": b"a",
    "every byte": bytes(range(256)) * 3,
    "zeros": bytes(1_000_000),
    "text": b"to be or not to be, that is the question. " * 2000,
    "noise": np.random.default_rng(0).bytes(200_000),
    "weights": np.random.default_rng(1).normal(0, 8, 1_000_000).round().astype(np.int8).tobytes(),
    "sparse": np.random.default_rng(2).binomial(3, 0.01, 300_000).astype(np.int8).tobytes(),
    "floats": np.random.default_rng(3).normal(0, 1, 50_000).astype(np.float32).tobytes(),
    "pairs": b"ab" * 70_000,
    "runs": b"".join(bytes([value]) * (300 * value) for value in range(40)),
}
CONTENT = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(b"ab"), max_size=300).map(bytes),
    st.tuples(st.binary(min_size=1, max_size=3), st.integers(1, 2000)).map(lambda p: p[0] * p[1]),
    st.text(max_size=100).map(str.encode),
)


def test_there_are_the_codecs_that_users_know():
    known = "store deflate zlib bzip2 lzma zstd lz4 snappy lzo huffman lzw"
    assert set(NAMES) == set(known.split())


@every
def test_it_has_its_name(name):
    assert codec(name).name == name


@every
@pytest.mark.parametrize("data", SAMPLES.values(), ids=SAMPLES)
def test_data_come_back(name, data):
    coded = codec(name).encode(memoryview(data))
    assert isinstance(coded, bytes)
    assert codec(name).decode(memoryview(coded), len(data)) == data


@every
@settings(deadline=None, max_examples=60)
@given(data=CONTENT)
def test_any_data_come_back(name, data):
    assert codec(name).decode(codec(name).encode(data), len(data)) == data


@every
def test_arrays_are_coded_by_their_bytes(name):
    values = np.arange(12, dtype="<u2").reshape(3, 4)
    assert codec(name).decode(codec(name).encode(values.data), 24) == values.tobytes()
    assert codec(name).encode(np.empty((0, 3), np.float32).data) == b""


@every
def test_no_bytes_are_no_data(name):
    assert codec(name).encode(b"") == b""
    assert codec(name).decode(b"", 0) == b""
    with pytest.raises(ArchiveError, match=rf"^{name}: only 0 bytes are found, in 0 bytes"):
        codec(name).decode(b"", 1)
    with pytest.raises(ArchiveError, match=rf"^{name}: no bytes are no data, in 3 bytes that are"):
        codec(name).decode(b"abc", 0)


@every
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_data_are_refused_or_of_the_right_size(name, data):
    original = data.draw(CONTENT)
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
            size = data.draw(st.integers(0, 2000))
    with contextlib.suppress(ArchiveError):
        assert len(codec(name).decode(bytes(coded), size)) == size


@every
@settings(deadline=None, max_examples=100)
@given(junk=st.binary(max_size=100), size=st.integers(0, 1 << 70))
def test_junk_is_refused_or_of_the_right_size(name, junk, size):
    with contextlib.suppress(ArchiveError):
        assert len(codec(name).decode(junk, size)) == size


@every
@settings(deadline=None, max_examples=60)
@given(data=CONTENT.filter(len), more=st.binary(min_size=1, max_size=20))
def test_other_sizes_and_what_follows_are_refused(name, data, more):
    coded = codec(name).encode(data)
    refused = [(coded + more, len(data)), (coded + coded, len(data))]
    refused += [(coded, len(data) + change) for change in (-1, 1)]
    for found, size in refused:
        with pytest.raises(ArchiveError, match=rf"^{name}: .* that are declared to be {size}$"):
            codec(name).decode(found, size)


@every
@settings(deadline=None, max_examples=60)
@given(data=CONTENT.filter(len), draw=st.data())
def test_what_is_cut_is_refused(name, data, draw):
    coded = codec(name).encode(data)
    with pytest.raises(ArchiveError, match=rf"^{name}: "):
        codec(name).decode(coded[: draw.draw(st.integers(0, len(coded) - 1))], len(data))


@every
def test_a_negative_size_is_refused(name):
    with pytest.raises(ArchiveError, match=rf"^{name}: a size cannot be negative, in 1 bytes"):
        codec(name).decode(b"a", -1)


def traced(name, coded, size):
    """The most memory that Python holds while data are refused."""
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=rf"^{name}: "):
            codec(name).decode(coded, size)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every
def test_a_bomb_is_not_inflated(name):
    coded = codec(name).encode(bytes(16_000_000))
    assert traced(name, coded, 10) < 4_000_000
    assert traced(name, coded, 17_000_000) < 50_000_000


@every
def test_memory_is_not_taken_because_it_is_declared(name):
    coded = codec(name).encode(b"weights and biases")
    window = 8 << 20 if name == "lzma" else 0  # it takes that of the declared size, up to a bound
    assert traced(name, coded, 1 << 50) < window + 1_000_000


def test_an_unknown_codec_is_refused():
    with pytest.raises(SettingError, match="there is no codec 'zsdt'; did you mean 'zstd'"):
        codec("zsdt")


@pytest.mark.parametrize(
    ("name", "module"),
    [("zstd", "zstandard"), ("lz4", "lz4.block"), ("snappy", "cramjam"), ("lzo", "lzallright")],
)
def test_a_missing_package_is_named_with_its_extra(name, module, monkeypatch):
    coded = codec(name).encode(b"data")
    monkeypatch.setitem(sys.modules, module, None)
    package = module.removesuffix(".block")
    message = rf"the codec '{name}' needs {package}: pip install 'modelzip\[archive\]'"
    with pytest.raises(MissingExtraError, match=message):
        codec(name).encode(b"data")
    with pytest.raises(MissingExtraError, match=message):
        codec(name).decode(coded, 4)
