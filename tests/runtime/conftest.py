"""Tiny ONNX files, written node by node."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def linear_model() -> onnx.ModelProto:
    """y [batch, 3] = x [batch, 4] @ WEIGHT."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def two_input_file(tmp_path: Path) -> Path:
    """total [2] = ids as float + mask, with a fixed shape."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["floats", "mask"], ["total"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [2]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def linear_file(tmp_path: Path, linear_model: onnx.ModelProto) -> Path:
    path = tmp_path / "linear.onnx"
    onnx.save(linear_model, path)
    return path


@pytest.fixture
def external_file(tmp_path: Path, linear_model: onnx.ModelProto) -> Callable[..., Path]:
    """Writes the linear model with its weight at `location`, and `data` into weights.bin."""

    def write(location: str = "weights.bin", *, data: bool = True, **entries: str) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        if data:
            (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
        model = onnx.ModelProto()
        model.CopyFrom(linear_model)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)
        path = folder / "external.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write
