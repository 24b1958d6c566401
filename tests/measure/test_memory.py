from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelzip.errors import DataError, ExportError, SettingError
from modelzip.measure import memory
from modelzip.measure.memory import peak_memory


def test_a_large_weight_and_batch_show(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(1000, 5000)).astype(np.float32)  # 20 MB
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["file", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("file", TensorProto.FLOAT, ["n", 1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5000])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    small = peak_memory(path, np.zeros((1, 1000), np.float32), runs=1)
    large = peak_memory(path, np.zeros((2000, 1000), np.float32), runs=1)  # a 40 MB output
    assert 15 < small.load_mb < 300
    assert small.load_mb <= small.peak_mb
    assert large.peak_mb > small.peak_mb + 20


def test_inputs_are_checked_first(float_file: Path) -> None:
    with pytest.raises(DataError, match="input x has shape"):
        peak_memory(float_file, np.zeros((1, 2, 5, 5), np.float32))
    with pytest.raises(SettingError, match="runs must be an integer of at least 1, got 0"):
        peak_memory(float_file, np.zeros((1, 2, 6, 6), np.float32), runs=0)


def test_a_process_that_fails_is_reported(
    float_file: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CHILD", "raise SystemExit('out of memory')")
    with pytest.raises(ExportError, match=r"the process serving it ended with 1: out of memory"):
        peak_memory(float_file, images)


def test_a_process_that_hangs_is_stopped(
    float_file: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_TIMEOUT_S", 0.01)
    with pytest.raises(ExportError, match=r"float\.onnx: serving it took over 0\.01 s"):
        peak_memory(float_file, images)
