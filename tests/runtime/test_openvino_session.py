from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelzip.errors import DataError, ExportError
from modelzip.runtime.inputs import InputSpec
from modelzip.runtime.session import load

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

from modelzip.runtime.openvino_session import OpenVinoSession  # noqa: E402

x = np.ones((5, 4), np.float32)


def save(path: Path, nodes: list[onnx.NodeProto], kind: onnx.TypeProto, **settings: object) -> Path:
    """A graph from x of `kind` to y of the same."""
    values = [helper.make_value_info(name, kind) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], **settings)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_inputs_are_described(two_input_file: Path, linear_file: Path) -> None:
    assert OpenVinoSession(linear_file).inputs == (
        InputSpec(name="x", dtype="float32", shape=(None, 4)),
    )
    assert [(s.name, s.dtype, s.shape) for s in OpenVinoSession(two_input_file).inputs] == [
        ("ids", "int64", (2,)),
        ("mask", "float32", (2,)),
    ]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_of_any_size_runs(linear_file: Path, batch: int) -> None:
    session = OpenVinoSession(linear_file, threads=2)
    assert session.run(x[:batch])[0].tolist() == [[18, 22, 26]] * batch


def test_several_inputs_run_by_order_and_by_name(two_input_file: Path) -> None:
    session = OpenVinoSession(two_input_file)
    ids, mask = np.array([1, 2]), np.array([0.5, 0.25], np.float32)
    for inputs in ((ids, mask), {"mask": mask, "ids": ids}):
        assert session.run(inputs)[0].tolist() == [1.5, 2.25]


def test_outputs_outlive_the_next_run(linear_file: Path) -> None:
    session = OpenVinoSession(linear_file)
    first = session.run(x)[0]
    session.run(0 * x)
    assert first[0].tolist() == [18, 22, 26]


def test_read_only_inputs_are_taken(linear_file: Path) -> None:
    frozen = x.copy()
    frozen.flags.writeable = False
    assert OpenVinoSession(linear_file).run(frozen)[0][0].tolist() == [18, 22, 26]


def test_a_bound_run_computes_the_same(linear_file: Path) -> None:
    session = OpenVinoSession(linear_file)
    (output,) = session.bind(x)().to_tuple()
    np.testing.assert_array_equal(output, session.run(x)[0])


def test_binding_checks_the_inputs(linear_file: Path) -> None:
    with pytest.raises(DataError, match=r"input x has shape \[5, 3\]"):
        OpenVinoSession(linear_file).bind(x[:, :3])


def test_external_data_outside_the_folder_are_refused(
    external_file: Callable[..., Path],
) -> None:
    with pytest.raises(ExportError, match="which is not a file in its folder"):
        OpenVinoSession(external_file("../weights.bin"))


@pytest.fixture(scope="module")
def product_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y [batch, 64] = x [batch, 64] @ random normal weights."""
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    return save(
        tmp_path_factory.mktemp("product") / "product.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 64]),
        initializer=[numpy_helper.from_array(weight, "w")],
    )


def test_float32_is_float32_and_bfloat16_is_not(product_file: Path) -> None:
    inputs = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    expected = load(product_file).run(inputs)[0]
    found = load(product_file, runtime="openvino").run(inputs)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    try:
        half = load(product_file, runtime="openvino", precision="bfloat16").run(inputs)[0]
    except ExportError as error:
        pytest.skip(str(error))
    assert half.dtype == np.float32
    assert np.abs(half - expected).max() > 1e-3
    np.testing.assert_allclose(half, expected, atol=0.5)


def test_integers_of_a_quantized_file_are_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["wd"]),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array(np.array(0.5, np.float32), "sx"),
        numpy_helper.from_array(np.array(0, np.uint8), "zx"),
        numpy_helper.from_array(np.array(0.25, np.float32), "sw"),
        numpy_helper.from_array(np.array([[1, -2], [3, 4]], np.int8), "w"),
    ]
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 2])
    session = OpenVinoSession(save(tmp_path / "int8.onnx", nodes, kind, initializer=stored))
    # 0.7 is 0.5 and 1.3 is 1.5 in steps of a half
    outputs = session.run(np.array([[0.7, 1.3]], np.float32))
    np.testing.assert_allclose(outputs[0], [[0.5 * 0.25 + 1.5 * 0.75, -0.25 + 1.5]], rtol=1e-6)


def test_operators_that_no_runtime_has_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["h"], domain="acme"),
        helper.make_node("Blah", ["h"], ["y"], domain="acme"),
    ]
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 2])
    path = save(tmp_path / "own.onnx", nodes, kind)
    message = (
        r"own\.onnx: openvino cannot run acme\.Blah, acme\.Frobnicate: .*; no runtime here can; "
    )
    with pytest.raises(ExportError, match=message) as caught:
        load(path, runtime="openvino")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ExportError, match=r"onnxruntime cannot run acme:Frobnicate: .*; no runtime"
    ):
        load(path)


def test_an_operator_that_another_runtime_has_is_said(tmp_path: Path) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 2])
    path = save(tmp_path / "mod.onnx", [helper.make_node("Mod", ["x", "x"], ["y"])], kind)
    with pytest.raises(ExportError, match=r"openvino cannot run Mod: .*; onnxruntime can$"):
        load(path, runtime="openvino")


def test_what_cannot_be_loaded_otherwise_is_one_line(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = numpy_helper.from_array(np.array([-3, 7]), "shape")
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 2])
    path = save(tmp_path / "reshape.onnx", nodes, kind, initializer=[shape])
    with pytest.raises(ExportError, match=r"reshape\.onnx: openvino cannot") as caught:
        load(path, runtime="openvino")
    assert "\n" not in str(caught.value)


def test_an_input_that_is_no_plain_tensor_is_refused(tmp_path: Path) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.STRING, [1])
    path = save(tmp_path / "text.onnx", [helper.make_node("Identity", ["x"], ["y"])], kind)
    with pytest.raises(ExportError, match="input x is of string, which modelzip cannot feed"):
        OpenVinoSession(path)


def test_a_failure_while_running_is_one_line(tmp_path: Path) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["a", "b"])
    path = save(tmp_path / "r.onnx", [helper.make_node("MatMul", ["x", "x"], ["y"])], kind)
    session = OpenVinoSession(path)
    for method in (session.run, session.bind):
        with pytest.raises(
            ExportError, match=r"r\.onnx: openvino failed while running it:"
        ) as caught:
            method(np.ones((2, 4), np.float32))
        assert "\n" not in str(caught.value)
