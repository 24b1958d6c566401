import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelzip.errors import DataError
from modelzip.report.inspection import inspect, inspect_layers, random_inputs
from modelzip.runtime.inputs import InputSpec


def test_random_inputs_fit_what_a_file_declares():
    specs = [
        InputSpec(name="x", dtype="float32", shape=(None, 3, None)),
        InputSpec(name="ids", dtype="int64", shape=(4, 2)),
    ]
    found = random_inputs(specs, samples=5)
    assert (found["x"].shape, found["x"].dtype) == ((5, 3, 1), np.float32)
    assert found["ids"].tolist() == [[0, 0]] * 4


def scaling(path, *, by, width):
    """A file that multiplies its input [batch, width] by a number."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [width], [by] * width)
    shape = ["batch", width]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_two_files_are_compared_on_the_same_inputs(tmp_path):
    one, two = (scaling(tmp_path / f"{by}.onnx", by=by, width=4) for by in (1.0, 2.0))
    text = inspect(two, against=one, batch_sizes=[1], threads=1)
    difference = np.abs(random_inputs([InputSpec(name="x", dtype="float32", shape=(None, 4))],
                                      samples=16)["x"]).max()  # fmt: skip
    assert f"same answer 100%, largest difference {difference:.3g}" in text
    assert "1.000x" in text


def test_files_with_other_inputs_cannot_be_compared(tmp_path):
    one = scaling(tmp_path / "one.onnx", by=1.0, width=4)
    two = scaling(tmp_path / "two.onnx", by=1.0, width=3)
    with pytest.raises(DataError, match=r"has shape \[16, 3\]|has shape \[1, 3\]"):
        inspect(two, against=one, batch_sizes=[1], threads=1)


def test_layers_are_listed_with_bits_bytes_and_time(tmp_path):
    one, two = (scaling(tmp_path / f"{by}.onnx", by=by, width=4) for by in (1.0, 2.0))
    text = inspect_layers(two, against=one, batch_size=2, threads=1)
    header, _, row = text.splitlines()
    assert header.split() == [
        "layer", "operators", "bits", "KB", "of", "size", "ms", "of", "time", "ms", "in",
        "1.0.onnx", "ratio",
    ]  # fmt: skip
    assert row.split()[:2] == ["(Mul)", "Mul"]
    assert "100.0%" in row
