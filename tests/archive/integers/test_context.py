import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip.archive.integers.context import Decoder, Encoder
from modelzip.archive.integers.forms import pack_bits, read_form, unpack_bits, view_of
from modelzip.errors import ArchiveError

DTYPES = ["int8", "int16", "int32", "uint8", "uint16"]
SHAPES = [(), (0,), (1,), (5, 0, 3), (40,), (1, 40), (40, 1), (6, 7), (8, 4, 3, 3), (2, 3, 9, 9)]
rng = np.random.default_rng(0)


def opened(encoded, like, decoder=None):
    return (decoder or Decoder()).decode(encoded.data, encoded.params, like.shape, like.dtype)


def same(values, limit=None):
    back = opened(Encoder(limit).encode(values), values)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


def entropy(values):
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum())


def bits_each(values, limit=None):
    return 8 * len(Encoder(limit).encode(values).data) / values.size


def weights(rows=32, columns=24, steps=127):
    """Kernels of rows of different scale, whose taps are like their neighbours."""
    scales = np.exp(rng.normal(0, 0.7, (rows, 1, 1, 1)))
    smooth = rng.normal(0, 1, (rows, columns, 1, 1)) + rng.normal(0, 0.5, (rows, columns, 3, 3))
    floats = scales * smooth
    return np.rint(floats / abs(floats).max() * steps).astype(np.int8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_extremes_come_back_in_every_type_and_shape(dtype, shape):
    bounds = np.iinfo(dtype)
    same(rng.integers(bounds.min, bounds.max, shape, dtype, endpoint=True))
    for value in (bounds.min, bounds.max, 0):
        same(np.full(shape, value, dtype))


@given(st.data(), st.sampled_from([None, 7, 100]))
@settings(max_examples=60, deadline=None)
def test_any_integers_come_back(data, limit):
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7))
    bounds = np.iinfo(dtype)
    few = st.integers(0, 9) | st.integers(int(bounds.min), int(bounds.max))
    same(data.draw(hnp.arrays(dtype, shape, elements=few)), limit)


@pytest.mark.parametrize("limit", [7, 15, 31, 63, 127])
def test_magnitudes_beyond_the_limit_are_escapes(limit):
    values = np.array([0] * 30 + [limit, -limit, limit + 1, -limit - 1, 0], np.int16)
    encoded = Encoder(limit).encode(values)
    assert encoded.params["escapes"] == 2
    assert encoded.params["width"] == 1 + (limit == 127)
    np.testing.assert_array_equal(opened(encoded, values), values)


def test_many_blocks_and_a_row_longer_than_a_block_come_back():
    same(rng.integers(-3, 4, (3, 1 << 17), np.int8))
    same(rng.integers(-3, 4, (2, (1 << 18) + 5), np.int8))


def test_values_that_are_not_contiguous_come_back():
    values = weights().transpose(1, 0, 2, 3)[::2]
    same(values)


def test_integers_of_64_bits_that_need_fewer_come_back():
    same(np.array([-(2**31), 2**31 - 1], np.int64))
    same(np.array([0, 2**31 - 1], np.uint64))


def test_a_group_shares_what_it_learns():
    tensors = [weights(8, 12) for _ in range(6)]
    encoder, decoder = Encoder(127), Decoder()
    group = [encoder.encode(values) for values in tensors]
    for values, encoded in zip(tensors, group, strict=True):
        np.testing.assert_array_equal(opened(encoded, values, decoder), values)
    alone = sum(len(Encoder(127).encode(values).data) for values in tensors)
    assert sum(len(encoded.data) for encoded in group) < 0.95 * alone


def test_kernels_that_look_alike_cost_less_than_their_entropy():
    values = weights(64, 64)
    assert bits_each(values) < 0.9 * entropy(values)


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (rng.integers(-7, 8, (512, 512), np.int8), 1.01),
        (np.rint(rng.laplace(0, 8, (512, 512))).clip(-127, 127).astype(np.int8), 1.01),
        (np.rint(rng.normal(0, 3, 1 << 18)).astype(np.int8), 1.01),
        (np.rint(rng.normal(128, 10, (512, 512))).astype(np.uint8), 1.01),
        ((rng.random((512, 512)) < 0.02).astype(np.int8), 1.05),
    ],
)
def test_independent_integers_cost_little_over_their_entropy(values, most):
    assert bits_each(values) < most * entropy(values)


def test_noise_in_wide_integers_costs_little_over_its_entropy():
    values = np.rint(rng.normal(0, 30_000, (512, 512))).astype(np.int32)
    assert bits_each(values) < 1.01 * np.log2(30_000 * np.sqrt(2 * np.pi * np.e))


def test_an_integer_that_repeats_costs_next_to_nothing():
    assert bits_each(np.full((512, 512), -5, np.int8)) < 0.01
    assert bits_each(np.full((512, 512), 200, np.uint8)) < 0.01


def test_bytes_of_model_1_stay_as_they_are():
    encoded = Encoder().encode(np.array([[1, -2, 300], [0, 3, -7]], np.int16))
    assert (encoded.params, encoded.data.hex()) == GOLDEN
    values = (np.arange(-50, 130).reshape(4, 5, 3, 3) ** 3 % 23 - 9).astype(np.int8)
    assert Encoder().encode(values).data[:24].hex() == GOLDEN_KERNELS


GOLDEN = ({"model": 1, "limit": 127, "shift": 2}, "ca70017f3f361fbd3088")
GOLDEN_KERNELS = "0753c417db99517af592b414419dbd14b2748beb72e5de35"


def test_views():
    assert view_of((4, 3, 8, 8)) == (4, 3, 64, 8)
    assert view_of((4, 3, 9, 9)) == (4 * 3 * 9, 9, 1, 1)
    assert view_of(()) == (1, 1, 1, 1)
    assert view_of((1, 9)) == (9, 1, 1, 1)


def test_bits_are_packed_from_the_highest_on():
    assert pack_bits(np.array([0b101, 0b011, 0b110]), 3) == bytes([0b10101111, 0b00000000])
    packed = np.array([0b10101111, 0], np.uint8)
    assert unpack_bits(packed, 3, 3).tolist() == [0b101, 0b011, 0b110]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_end_in_an_archive_error_or_in_values_of_the_type(data):
    values = data.draw(st.sampled_from(SAMPLES))
    encoded = Encoder().encode(values)
    damaged = bytearray(encoded.data)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))]
    damaged += data.draw(st.binary(max_size=9))
    try:
        back = opened(encoded._replace(data=bytes(damaged)), values)
    except ArchiveError:
        return
    assert (back.shape, back.dtype) == (values.shape, values.dtype)


SAMPLES = [
    weights(6, 5),
    weights(6, 5, steps=7).reshape(18, 15),
    rng.integers(-(2**31), 2**31 - 1, 99, np.int32),
    np.where(rng.random((20, 9)) < 0.05, 9000, 3).astype(np.int16),
]


@given(
    st.binary(max_size=200),
    st.dictionaries(
        st.sampled_from(["model", "limit", "center", "shift", "escapes", "width", "x"]),
        st.sampled_from([7, 127, 0, 1, 2, 3, -1, True, None, 1.5, "1", 2**70]),
    ),
    st.lists(st.integers(0, 40), max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_random_bytes_and_parameters_end_in_an_archive_error_alone(data, params, shape):
    for tried in (params, {"model": 1, "limit": 31}):
        try:
            back = Decoder().decode(data, tried, shape, np.int8)
        except ArchiveError:
            continue
        assert back.shape == tuple(shape)


@pytest.mark.parametrize("word", [0, 0x80000000, 0xFFFFFFFF, 0x7FFF7FFF])
def test_words_that_are_all_the_same_end(word):
    with pytest.raises(ArchiveError, match="context: "):
        Decoder().decode(
            word.to_bytes(4, "little") * 500, {"model": 1, "limit": 127}, (50, 50, 3, 3), np.int8
        )


def test_a_word_missing_is_found():
    values = weights()
    encoded = Encoder().encode(values)
    with pytest.raises(ArchiveError, match="words are damaged or cut off"):
        opened(encoded._replace(data=encoded.data[:-4]), values)
    with pytest.raises(ArchiveError, match="data is left after 6912 integers"):
        opened(encoded._replace(data=encoded.data + bytes(4)), values)
    with pytest.raises(ArchiveError, match=r"are not 0 and whole words"):
        opened(encoded._replace(data=encoded.data[:-1]), values)


def test_escapes_that_are_not_there_are_found():
    values = np.array([1, 2, 9000, 3] * 50, np.int16)
    encoded = Encoder(7).encode(values)
    fewer = {**encoded.params, "escapes": 48}
    with pytest.raises(ArchiveError, match="more than its 48 escaped integers are needed"):
        opened(encoded._replace(params=fewer, data=encoded.data[4:]), values)


def test_integers_that_are_not_of_the_type_are_found():
    encoded = Encoder().encode(np.array([301, 2], np.int16))
    with pytest.raises(ArchiveError, match="integers 2 to 301 are not of type int8"):
        Decoder().decode(encoded.data, encoded.params, (2,), np.int8)
    with pytest.raises(ArchiveError, match="must be decoded to integers, got float32"):
        Decoder().decode(encoded.data, encoded.params, (2,), np.float32)


def test_sizes_that_bytes_cannot_have_are_refused_before_memory_is():
    with pytest.raises(ArchiveError, match=r"8 bytes cannot be \d+ integers"):
        Decoder().decode(bytes(8), {"model": 1, "limit": 7}, (1 << 20, 1 << 20), np.int8)
    with pytest.raises(ArchiveError, match="8 bytes cannot be 0 integers"):
        Decoder().decode(bytes(8), {"model": 1, "limit": 7}, (0,), np.int8)
    with pytest.raises(ArchiveError, match=r"shape must be of integers from 0 on, got \(-1, 2\)"):
        Decoder().decode(bytes(8), {"model": 1, "limit": 7}, (-1, 2), np.int8)
    for shape in [(0, 1 << 70), (1 << 30, 1 << 30), (1,) * 33]:
        with pytest.raises(ArchiveError, match=r"shape is too large: \("):
            Decoder().decode(b"", {"model": 1, "limit": 7}, shape, np.int8)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"limit": 7}, "the parameter 'model' is missing"),
        ({"model": 2, "limit": 7}, "model must be from 1 to 1, got 2"),
        ({"model": 1}, r"limit must be one of \(7, 15, 31, 63, 127\), got 0"),
        ({"model": 1, "limit": 8}, "limit must be one of .* got 8"),
        ({"model": 1, "limit": True}, "limit must be from 7 to 127, got True"),
        ({"model": 1, "limit": 7, "shift": 26}, "shift must be from 0 to 25, got 26"),
        ({"model": 1, "limit": 7, "speed": 1}, "there is no parameter 'speed'"),
        ({"model": 1, "limit": 7, "width": 1}, "0 escapes cannot be of 1 bytes"),
        ({"model": 1, "limit": 7, "escapes": 5, "width": 3}, "5 escapes cannot be of 3 bytes"),
    ],
)
def test_parameters_are_checked(params, text):
    with pytest.raises(ArchiveError, match=text):
        read_form(params)


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ArchiveError, match="context codes integers, got float32"):
        Encoder().encode(np.zeros(3, np.float32))
    with pytest.raises(ArchiveError, match="32 bits with a sign, got 0 to 2147483648"):
        Encoder().encode(np.array([0, 2**31]))
    with pytest.raises(ArchiveError, match="limit must be from 1 to 127, got 128"):
        Encoder(128)


def test_threads_code_at_once():
    values = [weights() for _ in range(4)]
    back = [None] * 4

    def work(n):
        back[n] = opened(Encoder().encode(values[n]), values[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, wanted in zip(back, values, strict=True):
        np.testing.assert_array_equal(got, wanted)


SCRIPT = """
import sys
import numpy as np
sys.modules["numba"] = None
from modelzip.archive.integers.context import Decoder, Encoder
values = (np.arange(180).reshape(4, 5, 3, 3) ** 3 % 301 - 128).astype(np.int16)
encoded = Encoder().encode(values)
assert (Decoder().decode(encoded.data, encoded.params, values.shape, "i2") == values).all()
print(encoded.data.hex())
"""


def run(script):
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_without_numba_the_bytes_are_the_same():
    values = (np.arange(180).reshape(4, 5, 3, 3) ** 3 % 301 - 128).astype(np.int16)
    assert run(SCRIPT) == Encoder().encode(values).data.hex()


def test_numba_is_imported_only_where_the_coder_is_used():
    lines = "import sys, modelzip.archive.integers.context as c; c.Encoder(), c.Decoder()"
    assert run(f"{lines}; print('numba' in sys.modules)") == "False"
