"""A tiny float file and its quantized twin, written node by node."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 21)]


def stored(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def save(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> Path:
    """A graph from x [batch, 2, 6, 6] to y."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=10), path)
    return path


def head() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """From c [batch, 4, 4, 4] to y [batch, 3]: pool, flatten to 16 by a stored shape, product."""
    nodes = [
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1, name="fc"),
    ]
    weight = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    weight[0] = 0
    weights = [
        stored("shape", np.array([-1, 16])),
        stored("fc.weight", weight),
        stored("fc.bias", np.ones(3, np.float32)),
    ]
    return nodes, weights


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    """Conv 2 -> 4 channels, 3x3, no padding, then the head."""
    nodes, weights = head()
    kernel = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv")
    bias = stored("conv.bias", np.zeros(4, np.float32))
    return save(
        tmp_path / "float.onnx", [conv, *nodes], [stored("conv.weight", kernel), bias, *weights]
    )


@pytest.fixture
def int8_file(tmp_path: Path) -> Path:
    """The same with the convolution's weight in int8, per channel, and its bias in int32."""
    nodes, weights = head()
    kernel = np.random.default_rng(0).integers(-127, 128, size=(4, 2, 3, 3)).astype(np.int8)
    kernel[0] = 0
    quantized = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["conv.weight", "w_scale", "w_zero"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["conv.bias", "b_scale"], ["b"], axis=0),
        helper.make_node("Conv", ["xd", "w", "b"], ["c"], name="conv"),
    ]
    scale = np.full(4, 0.01, np.float32)
    tensors = [
        stored("x_scale", np.array(0.02, np.float32)),
        stored("x_zero", np.array(128, np.uint8)),
        stored("conv.weight", kernel),
        stored("w_scale", scale),
        stored("w_zero", np.zeros(4, np.int8)),
        stored("conv.bias", np.arange(4, dtype=np.int32)),
        stored("b_scale", scale * np.float32(0.02)),
    ]
    return save(tmp_path / "int8.onnx", [*quantized, *nodes], [*tensors, *weights])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(5, 2, 6, 6)).astype(np.float32)
