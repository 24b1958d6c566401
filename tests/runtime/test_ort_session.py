from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from modelzip.errors import DataError, ExportError
from modelzip.runtime.inputs import InputSpec
from modelzip.runtime.ort_session import OrtSession, missing_provider

x = np.ones((5, 4), np.float32)


def save(path: Path, node: onnx.NodeProto, kind: onnx.TypeProto, domain: str = "") -> Path:
    graph = helper.make_graph(
        [node], "g", [helper.make_value_info("x", kind)], [helper.make_value_info("y", kind)]
    )
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 2])


def test_inputs_are_described(two_input_file: Path, linear_file: Path) -> None:
    assert OrtSession(linear_file).inputs == (
        InputSpec(name="x", dtype="float32", shape=(None, 4)),
    )
    assert [(s.name, s.dtype, s.shape) for s in OrtSession(two_input_file).inputs] == [
        ("ids", "int64", (2,)),
        ("mask", "float32", (2,)),
    ]


def test_several_inputs_run_by_order_and_by_name(two_input_file: Path) -> None:
    session = OrtSession(two_input_file, threads=2)
    ids, mask = np.array([1, 2]), np.array([0.5, 0.25], np.float32)
    for inputs in ((ids, mask), {"mask": mask, "ids": ids}):
        assert session.run(inputs)[0].tolist() == [1.5, 2.25]


def test_a_bound_run_computes_the_same(linear_file: Path) -> None:
    session = OrtSession(linear_file)
    outputs = session.bind(x)()
    np.testing.assert_array_equal(outputs[0], session.run(x)[0])


def test_binding_checks_the_inputs(linear_file: Path) -> None:
    with pytest.raises(DataError, match=r"input x has shape \[5, 3\]"):
        OrtSession(linear_file).bind(x[:, :3])


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")
    path = save(tmp_path / "own.onnx", node, FLOATS, domain="acme")
    with pytest.raises(ExportError, match=r"own\.onnx: onnxruntime cannot run acme:Frobnicate: "):
        OrtSession(path)


def test_an_input_that_is_no_plain_tensor_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    strings = helper.make_tensor_type_proto(TensorProto.STRING, [1])
    path = save(tmp_path / "text.onnx", node, strings)
    with pytest.raises(ExportError, match=r"input x is a tensor\(string\), which modelzip cannot"):
        OrtSession(path)


def test_a_failure_while_running_is_one_line(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["x", "x"], ["y"])  # indices past the end
    kind = helper.make_tensor_type_proto(TensorProto.INT64, ["n"])
    session = OrtSession(save(tmp_path / "gather.onnx", node, kind))
    with pytest.raises(ExportError, match=r"gather\.onnx: onnxruntime failed while running it:"):
        session.run(np.array([7]))
    with pytest.raises(ExportError, match=r"gather\.onnx: onnxruntime failed while running it:"):
        session.bind(np.array([7]))


def test_a_provider_that_is_not_installed_is_named() -> None:
    assert missing_provider("cpu") == ""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "has no CUDAExecutionProvider; pip install onnxruntime-gpu" in missing_provider(
            "cuda"
        )


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="onnxruntime has its CUDA provider",
)
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_falling_back_to_another_device_is_an_error(linear_file: Path) -> None:
    with pytest.raises(ExportError, match="onnxruntime could not start CUDAExecutionProvider"):
        OrtSession(linear_file, device="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="onnxruntime has no CUDA provider here",
)
def test_cuda_computes_what_the_cpu_does(linear_file: Path) -> None:
    session = OrtSession(linear_file, device="cuda")
    session.bind(x)()
    np.testing.assert_allclose(session.run(x)[0], OrtSession(linear_file).run(x)[0], rtol=1e-3)
