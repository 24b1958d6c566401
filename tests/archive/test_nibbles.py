import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from modelzip.archive import choose, codecs
from modelzip.archive.nibbles import TYPES, from_bytes, to_bytes
from modelzip.archive.pack import pack
from modelzip.archive.unpack import open_archive, unpack

SHAPES = arrays.array_shapes(min_dims=0, min_side=0, max_side=9)


@given(st.data(), st.sampled_from(["int4", "uint4"]), SHAPES)
def test_integers_come_back(data, dtype, shape):
    low, high = (-8, 7) if dtype == "int4" else (0, 15)
    values = data.draw(arrays.arrays(TYPES[dtype], shape, elements=st.integers(low, high)))
    found = from_bytes(to_bytes(values), dtype, shape)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@given(arrays.arrays(np.uint8, st.integers(0, 20)), st.sampled_from(["int4", "uint4"]))
def test_bytes_come_back(data, dtype):
    np.testing.assert_array_equal(to_bytes(from_bytes(data, dtype, (2 * len(data),))), data)


def test_halves_are_those_of_onnx():
    values = np.arange(-8, 7, dtype=np.int8).reshape(3, 5)
    stored = numpy_helper.from_array(values.astype(ml_dtypes.int4)).raw_data
    assert to_bytes(values).tobytes() == stored


def a_file(path, raw, shape, data_type=TensorProto.INT4):
    weight = TensorProto(dims=shape, data_type=data_type, raw_data=raw, name="w")
    node = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "g", [], [y], [weight])
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize("codec", ["auto", *choose.INTEGERS, *codecs.NAMES])
@pytest.mark.parametrize("data_type", [TensorProto.INT4, TensorProto.UINT4])
def test_a_file_of_four_bits_comes_back(codec, data_type, tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, 540, np.uint8).tobytes()
    path = a_file(tmp_path / "a.onnx", raw, [40, 27], data_type)
    pack(path, tmp_path / "a.mzip", codec=codec)
    assert unpack(tmp_path / "a.mzip", tmp_path / "b.onnx").read_bytes() == path.read_bytes()
    with open_archive(tmp_path / "a.mzip") as archive:
        kind = archive.entries[0].dtype
        assert archive["w"].shape == (40, 27)
        assert archive["w"].dtype == (torch.int8 if kind == "int4" else torch.uint8)
        np.testing.assert_array_equal(to_bytes(archive["w"].numpy()).tobytes(), raw)


def test_the_last_half_of_an_odd_number_may_be_anything(tmp_path):
    path = a_file(tmp_path / "a.onnx", bytes([0xFF] * 68), [9, 15])
    pack(path, tmp_path / "a.mzip")
    assert unpack(tmp_path / "a.mzip", tmp_path / "b.onnx").read_bytes() == path.read_bytes()


def test_neighbours_in_the_weight_s_shape_save_bits(tmp_path):
    loud = 2.0 ** np.random.default_rng(1).normal(0, 2, (64, 64, 1))  # a size for each kernel
    drawn = np.random.default_rng(0).normal(0, 1, (64, 64, 9)) * loud
    values = drawn.round().clip(-7, 7).astype(np.int8)
    path = a_file(tmp_path / "a.onnx", to_bytes(values).tobytes(), [64, 64, 3, 3])
    for codec in ("auto", "static"):
        pack(path, tmp_path / f"{codec}.mzip", codec=codec)
    with open_archive(tmp_path / "auto.mzip") as auto, open_archive(tmp_path / "static.mzip") as b:
        assert auto.entries[0].codec == "nibbles(context)"
        assert auto.entries[0].after < 0.9 * b.entries[0].after
