import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from modelzip.errors import ExportError, SettingError
from modelzip.runtime import session
from modelzip.runtime.session import RUNTIMES, available, load, missing

x = np.ones((2, 4), np.float32)


def test_a_file_loads_into_onnxruntime(linear_file: Path) -> None:
    assert load(str(linear_file)).run(x)[0].tolist() == [[18, 22, 26]] * 2


def test_every_runtime_and_device_is_listed_once() -> None:
    listed = [(a.runtime, a.device) for a in available()]
    assert listed == [(runtime, device) for runtime in RUNTIMES for device in ("cpu", "cuda")]
    assert all("\n" not in a.missing for a in available())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_explained(linear_file: Path) -> None:
    assert "sees no CUDA device" in missing("torch", "cuda")
    with pytest.raises(ExportError, match=r"torch on cuda: torch .* sees no CUDA device"):
        load(nn.Linear(1, 1), runtime="torch", device="cuda", example_inputs=torch.ones(1, 1))


def test_a_missing_compiler_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert missing("torch.compile", "cpu") == (
        "torch.compile on cpu: there is no C++ compiler; install g++ or set CXX"
    )


def test_a_runtime_that_is_not_installed_names_its_extra(
    linear_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    why = "openvino on cpu: OpenVINO is not installed; pip install 'modelzip[openvino]'"
    assert missing("openvino", "cpu") == why
    with pytest.raises(ExportError, match=re.escape(why)):
        load(linear_file, runtime="openvino")


def test_openvino_is_for_the_cpu() -> None:
    assert missing("openvino", "cuda").startswith("openvino on cuda: it runs on the CPU; use onnx")


def test_a_precision_that_the_processor_lacks_is_said() -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, capability in (("bfloat16", "BF16"), ("float16", "FP16"), ("float32", "FP32")):
        why = missing("openvino", "cpu", precision=precision)
        line = f"openvino on cpu in {precision}: this processor has no instructions for it"
        assert why == ("" if capability in known else line)


def test_an_operator_is_missed_where_the_other_runtime_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]
    path = tmp_path / "own.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"Frobnicate: .*; the other runtime is not here to try"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": "onnxruntme"}, "runtime has no choice 'onnxruntme'; did you mean"),
        ({"device": "gpu"}, "device has no choice 'gpu'"),
        ({"precision": "half"}, "precision has no choice 'half'"),
        ({"precision": "float16"}, "precision='float16' is not for onnxruntime, which computes in"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        (
            {"runtime": "torch"},
            r"torch runs modules, not files; use onnxruntime or openvino for .*l",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    linear_file: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        load(linear_file, **settings)


def test_a_module_is_not_for_onnxruntime() -> None:
    with pytest.raises(SettingError, match="onnxruntime runs files; export the module"):
        load(nn.Linear(1, 1))


def test_a_module_needs_example_inputs() -> None:
    with pytest.raises(SettingError, match=r"torch needs example_inputs=\.\.\.: a module does not"):
        load(nn.Linear(1, 1), runtime="torch")


def test_sessions_are_interchangeable(linear_file: Path) -> None:
    net = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.arange(12.0).reshape(4, 3).T)
    both: list[session.Session] = [
        load(linear_file),
        load(net, runtime="torch", example_inputs=torch.ones(1, 4)),
    ]
    outputs = [s.run(x)[0] for s in both]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)
    assert [[i.shape for i in s.inputs] for s in both] == [[(None, 4)]] * 2
