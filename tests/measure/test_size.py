from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from modelzip.errors import ExportError
from modelzip.measure.size import FileSize, file_size, module_size, size_bytes

CONV_MACS = 4 * 4 * 4 * 2 * 3 * 3  # out channels, rows, columns; in channels, kernel
FC_MACS = 3 * 16


def measured(
    tmp_path: Path,
    node: onnx.NodeProto | list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    shape: list[int | str],
    kind: int = TensorProto.FLOAT,
    out: int = TensorProto.FLOAT,
    example_inputs: object = None,
) -> FileSize:
    """The size of a file of a few nodes from x to y."""
    graph = helper.make_graph(
        node if isinstance(node, list) else [node],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", out, ["any"] * len(shape))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return file_size(path, example_inputs=example_inputs)


def test_a_float_file(float_file: Path) -> None:
    size = file_size(float_file)
    assert size.size_bytes == float_file.stat().st_size
    assert size.parameters == (72 + 4) + (48 + 3)
    assert size.nonzero == 72 + (32 + 3)
    assert size.bits == 32
    assert size.macs == CONV_MACS + FC_MACS
    assert size.uncounted == ()
    assert [(s.name, s.op, s.weight, s.macs) for s in size.layers] == [
        ("conv", "Conv", "conv.weight", CONV_MACS),
        ("fc", "Gemm", "fc.weight", FC_MACS),
    ]


def test_a_quantized_file_counts_what_is_stored(int8_file: Path) -> None:
    size = file_size(int8_file)
    assert (size.parameters, size.macs) == (72 + 4 + 48 + 3, CONV_MACS + FC_MACS)
    conv = size.layers[0]
    assert conv.bits == pytest.approx((72 * 8 + 4 * 32) / 76)
    # the first output channel is zero, as is the first of four biases
    kernel = np.random.default_rng(0).integers(-127, 128, size=(4, 2, 3, 3))
    assert conv.nonzero == np.count_nonzero(kernel[1:]) + 3


def test_a_value_at_its_zero_point_is_zero(tmp_path: Path) -> None:
    weights = {
        "q": np.array([[5, 6, 7], [9, 9, 8]], np.uint8),
        "s": np.ones(2, np.float32),
        "z": np.array([5, 9], np.uint8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    size = measured(tmp_path, nodes, weights, shape=["n", 2])
    assert (size.parameters, size.nonzero, size.bits, size.macs) == (6, 3, 8, 6)


def test_zero_points_of_blocks(tmp_path: Path) -> None:
    weights = {
        "q": np.array([[1, 2], [1, 2], [3, 3]], np.int8),
        "s": np.ones((2, 2), np.float32),
        "z": np.array([[1, 1], [3, 0]], np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    assert measured(tmp_path, nodes, weights, shape=["n", 3]).nonzero == 3


@pytest.mark.parametrize("transposed", [0, 1])
def test_zero_points_of_an_integer_product_follow_its_outputs(
    tmp_path: Path, transposed: int
) -> None:
    q = np.array([[1, 2, 0], [1, 3, 1]], np.int8)  # by input, output
    weights = {
        "s": np.array(1, np.float32),
        "z": np.array(0, np.uint8),
        "w": q.T.copy() if transposed else q,
        "ws": np.ones(3, np.float32),
        "wz": np.array([1, 2, 0], np.int8),
    }
    inputs = ["x", "s", "z", "w", "ws", "wz"]
    node = helper.make_node("QGemm", inputs, ["y"], domain="com.microsoft", transB=transposed)
    size = measured(tmp_path, node, weights, shape=["n", 2], kind=TensorProto.UINT8)
    assert (size.parameters, size.nonzero) == (6, 2)


def test_a_zero_point_that_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = {
        "q": np.ones((3, 2), np.int8),
        "s": np.ones(5, np.float32),
        "z": np.zeros(5, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    message = r"the zero point of tensor q, \[5, 1\], does not fit its shape \[3, 2\]"
    with pytest.raises(ExportError, match=message):
        measured(tmp_path, nodes, weights, shape=["n", 3])


def test_four_bit_weights_count_four_bits(tmp_path: Path) -> None:
    values = onnx.helper.make_tensor("q", TensorProto.INT4, [2, 2], np.array([1, 0, -8, 7]))
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"q": numpy_helper.to_array(values), "s": np.array(1, np.float32)}
    size = measured(tmp_path, nodes, weights, shape=["n", 2])
    assert (size.parameters, size.nonzero, size.bits) == (4, 3, 4)


def test_grouped_and_transposed_convolutions(tmp_path: Path) -> None:
    depthwise = helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 1, 1, 1])
    w = np.ones((4, 1, 3, 3), np.float32)
    assert measured(tmp_path, depthwise, {"w": w}, shape=["n", 4, 5, 5]).macs == 4 * 25 * 9
    up = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    w = np.ones((4, 3, 2, 2), np.float32)
    assert measured(tmp_path, up, {"w": w}, shape=["n", 4, 5, 5]).macs == 4 * 25 * 3 * 4


def test_integer_operators(tmp_path: Path) -> None:
    weights = {
        "xs": np.array(1, np.float32),
        "xz": np.array(0, np.uint8),
        "w": np.array([[[[1]]], [[[3]]]], np.int8),
        "ws": np.ones(2, np.float32),
        "wz": np.array([0, 3], np.int8),
        "b": np.array([7, 0], np.int32),
    }
    inputs = ["x", "xs", "xz", "w", "ws", "wz", "xs", "xz", "b"]
    node = helper.make_node("QLinearConv", inputs, ["y"])
    kind = TensorProto.UINT8
    size = measured(tmp_path, node, weights, shape=["n", 1, 3, 3], kind=kind, out=kind)
    assert (size.parameters, size.nonzero, size.macs) == (4, 2, 18)
    assert size.bits == (2 * 8 + 2 * 32) / 4


def test_a_shared_weight_is_counted_once_and_its_products_twice(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    size = measured(tmp_path, nodes, {"w": np.ones((3, 3), np.float32)}, shape=["n", 3])
    assert (size.parameters, size.macs) == (9, 18)


def test_indices_and_settings_are_no_parameters(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["g"]),
        helper.make_node("Resize", ["g", "", "scales"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["y"]),
    ]
    weights = {
        "table": np.ones((10, 4), np.float32),
        "scales": np.ones(2, np.float32),
        "shape": np.array([-1]),
    }
    size = measured(tmp_path, nodes, weights, shape=["n"], kind=TensorProto.INT64)
    assert (size.parameters, size.macs) == (40, 0)


def test_a_fixed_batch_counts_as_one_sample(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    w = {"w": np.ones((3, 2), np.float32)}
    assert measured(tmp_path, node, w, shape=[8, 3]).macs == 6


@pytest.mark.parametrize("example", [np.zeros((2, 7, 3)), (np.zeros((2, 7, 3)),)])
def test_dynamic_lengths_come_from_the_example(tmp_path: Path, example: object) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    weights = {"w": np.ones((3, 2), np.float32)}
    unknown = measured(tmp_path, node, weights, shape=["n", "length", 3])
    assert (unknown.macs, unknown.uncounted) == (0, ("product (MatMul)",))
    shape: list[int | str] = ["n", "length", 3]
    for given in (example, {"x": torch.zeros(2, 7, 3)}):
        assert measured(tmp_path, node, weights, shape=shape, example_inputs=given).macs == 42


def test_what_cannot_be_counted_is_listed(tmp_path: Path) -> None:
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        **{"K": 32, "N": 2, "bits": 4, "block_size": 32},
    )
    weights = {"w": np.ones((2, 1, 16), np.uint8), "s": np.ones((2, 1), np.float32)}
    size = measured(tmp_path, node, weights, shape=["n", 32])
    assert size.uncounted == ("y (MatMulNBits)",)
    assert size.parameters == 2  # the scales; the packed integers are not taken for weights


def test_a_damaged_tensor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.ones(3, np.float32), "w")],
    )
    graph.initializer[0].raw_data = bytes(8)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_: None)  # it misses some damage
    with pytest.raises(ExportError, match="tensor w of the file is damaged"):
        file_size(path)


def test_external_data_count(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    w = np.ones((300, 2), np.float32)
    measured(tmp_path, node, {"w": w}, shape=["n", 300])
    model = onnx.load(tmp_path / "m.onnx")
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert size_bytes(path) == path.stat().st_size + 2400
    assert file_size(path).nonzero == 600


@pytest.mark.parametrize(
    ("make", "inputs", "macs"),
    [
        (lambda: nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 6, 6), CONV_MACS),
        (lambda: nn.Linear(16, 3), torch.zeros(2, 16), 2 * FC_MACS),
        (lambda: nn.ReLU(), torch.zeros(1, 2), 0),
    ],
)
def test_module_macs(make: Callable[[], nn.Module], inputs: torch.Tensor, macs: int) -> None:
    assert module_size(make(), inputs).macs == macs


def test_a_module_counts_zeros_and_shared_parameters_once() -> None:
    one = nn.Linear(3, 3, bias=False)
    nn.init.ones_(one.weight)
    with torch.no_grad():
        one.weight[0] = 0
    other = nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    size = module_size(nn.Sequential(one, other), torch.ones(1, 3))
    assert (size.parameters, size.nonzero, size.macs) == (9, 6, 18)


class Queried(nn.Module):
    """A layer inside reads a view of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.fc = nn.Parameter(torch.ones(3, 4)), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(self.queries.expand(len(x), -1, -1))


def test_a_view_of_a_parameter_is_counted() -> None:
    assert module_size(Queried(), torch.ones(2, 3, 2)).macs == 2 * 3 * 4 * 2
