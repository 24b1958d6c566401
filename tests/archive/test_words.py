import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import modelzip as mz
from modelzip.archive.words import PACKINGS, find_packing, from_words, to_words
from modelzip.errors import ArchiveError

KINDS = sorted(PACKINGS)


@given(st.data(), st.sampled_from(KINDS), st.integers(0, 12))
def test_integers_come_back(data, kind, rows):
    dtype, axes = kind
    packing = PACKINGS[kind]
    drawn = st.integers(-packing.top, packing.base**packing.planes - 1 - packing.top)
    values = data.draw(arrays.arrays(np.int8, (rows, packing.length), elements=drawn))
    words = to_words(values, packing, dtype, (rows, *axes))
    assert words.dtype == dtype
    assert find_packing(words) == (packing if rows else None)
    np.testing.assert_array_equal(from_words(words, packing), values)


@given(st.data(), st.sampled_from(KINDS), st.integers(1, 12))
def test_words_come_back_or_are_none(data, kind, rows):
    dtype, axes = kind
    words = data.draw(arrays.arrays(dtype, (rows, *axes)))
    packing = find_packing(words)
    if packing is None:
        least, most = int(words.min()), int(words.max())
        assert least < 0 or most >= PACKINGS[kind].base ** PACKINGS[kind].length
    else:
        integers = from_words(words, packing)
        np.testing.assert_array_equal(to_words(integers, packing, dtype, words.shape), words)


def test_integers_out_of_range_are_refused():
    packing = PACKINGS["uint8", (1,)]
    with pytest.raises(ArchiveError, match="3 values are packed, and there are more"):
        to_words(np.int8([[2, 0, 0, 0, 0]]), packing, "uint8", (1, 1))


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_files_of_few_bits_are_stored_integer_by_integer(bits, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 200), nn.ReLU(), nn.Linear(200, 10)).eval()
    for weight in (model[0].weight, model[2].weight):
        nn.init.normal_(weight)
    x = torch.randn(32, 60)
    step = mz.Int8(bits=bits)
    small = mz.prepare(model, [step], example_inputs=x, calibration=[x]).convert()
    source = mz.export_onnx(small, x, tmp_path / "a.onnx")
    mz.pack(source, tmp_path / "a.mzip")
    assert mz.unpack(tmp_path / "a.mzip", tmp_path / "b.onnx").read_bytes() == source.read_bytes()
    with mz.open_archive(tmp_path / "a.mzip") as archive:
        largest = max(archive.entries, key=lambda entry: entry.before)
        assert largest.codec.startswith("words(")
        assert largest.after < 0.97 * largest.before
