import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from modelzip.errors import ExportError, SettingError
from modelzip.measure.bit_flips import flip_bits


def bits(path):
    graph = onnx.load(str(path)).graph
    return {
        t.name: np.unpackbits(np.frombuffer(numpy_helper.to_array(t).tobytes(), np.uint8))
        for t in graph.initializer
    }


def changed(before, after):
    old, new = bits(before), bits(after)
    return {name: int((old[name] != new[name]).sum()) for name in old}


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_as_many_bits_differ_as_it_says(float_file, tmp_path, rate):
    target = tmp_path / "faulty.onnx"
    flipped = flip_bits(float_file, target, rate=rate, seed=0)
    found = changed(float_file, target)
    assert sum(found.values()) == flipped
    total = sum(b.size for name, b in bits(float_file).items() if found[name])
    assert flipped == pytest.approx(rate * total, rel=0.5)
    assert rate < 1 or flipped == total


def test_zero_points_stay(int8_file, tmp_path):
    target = tmp_path / "faulty.onnx"
    flip_bits(int8_file, target, rate=0.5, seed=0)
    found = changed(int8_file, target)
    assert found["w_zero"] == found["x_zero"] == found["x_scale"] == 0
    assert found["conv.weight"] > 0
    assert found["w_scale"] > 0
    assert found["conv.bias"] > 0
    onnx.checker.check_model(str(target), full_check=True)


def test_faults_depend_on_the_seed(float_file, tmp_path):
    files = [tmp_path / f"{name}.onnx" for name in "abc"]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        flip_bits(float_file, path, rate=0.01, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_values_that_are_not_raw_are_flipped_too(float_file, tmp_path):
    model = onnx.load(str(float_file))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            typed = helper.make_tensor(tensor.name, 1, values.shape, values.flatten().tolist())
            tensor.CopyFrom(typed)
    typed_file = tmp_path / "typed.onnx"
    onnx.save(model, str(typed_file))
    counts = [
        flip_bits(path, tmp_path / "faulty.onnx", rate=0.1, seed=3)
        for path in (float_file, typed_file)
    ]
    assert counts[0] == counts[1] > 0


def test_a_rate_is_a_fraction(float_file, tmp_path):
    with pytest.raises(SettingError, match=r"rate must be a fraction in \(0, 1\], got 0"):
        flip_bits(float_file, tmp_path / "faulty.onnx", rate=0, seed=0)


def test_a_file_without_weights_is_refused(tmp_path):
    value = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(ExportError, match=r"bare\.onnx stores no weights in which to flip bits"):
        flip_bits(tmp_path / "bare.onnx", tmp_path / "faulty.onnx", rate=0.1, seed=0)
