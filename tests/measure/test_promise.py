from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelzip.errors import ExportError
from modelzip.measure.promise import integer_promise

AVX2, VNNI = ("avx2", "fma"), ("avx2", "avx512_vnni")


def with_weights(path: Path, to: Path, change: object) -> Path:
    """The file `path` with `change` applied to its int8 weights."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            values = change(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, to)
    return to


def test_wide_weights_need_vnni(int8_file: Path) -> None:
    promise = integer_promise(int8_file, VNNI)
    assert promise.kept
    assert promise.text.endswith("with AVX512-VNNI or AVX-VNNI; this one has avx512_vnni")


def test_wide_weights_without_vnni_are_a_warning(int8_file: Path) -> None:
    promise = integer_promise(int8_file, AVX2)
    assert not promise.kept
    assert "has no VNNI, so sums with 8-bit weights saturate, as conv.weight has" in promise.text


@pytest.mark.parametrize(("largest", "kept"), [(63, True), (64, False)])
def test_weights_in_seven_bits_need_none(
    tmp_path: Path, int8_file: Path, largest: int, kept: bool
) -> None:
    narrow = with_weights(int8_file, tmp_path / "n.onnx", lambda w: np.clip(w, -64, largest))
    promise = integer_promise(narrow, AVX2)
    assert promise.kept is kept
    assert ("with AVX2 or VNNI: weights are in [-64, 63]" in promise.text) is kept


def test_packed_weights_are_narrow(tmp_path: Path, int8_file: Path) -> None:
    model = onnx.load(int8_file)
    (weight,) = (t for t in model.graph.initializer if t.name == "conv.weight")
    shape = list(weight.dims)
    packed = helper.make_tensor("conv.weight", TensorProto.INT4, shape, np.ones(shape).ravel())
    weight.CopyFrom(packed)
    onnx.save(model, tmp_path / "packed.onnx")
    assert integer_promise(tmp_path / "packed.onnx", AVX2).kept


def test_other_processors_were_not_tried(int8_file: Path) -> None:
    promise = integer_promise(int8_file, ("neon", "dotprod"))
    assert promise.kept
    assert "this one was never tried" in promise.text


def test_a_float_file_promises_nothing(float_file: Path) -> None:
    assert integer_promise(float_file, VNNI) is None


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no file"):
        integer_promise(tmp_path / "none.onnx", VNNI)
