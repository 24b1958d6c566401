import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelzip.measure.rounds import Latency
from modelzip.measure.semi_structured import SparseTime
from modelzip.measure.sparsity import WeightZeros
from modelzip.report.inspection import inspect
from modelzip.report.zeros import kernels_line, zeros_line


def row(zeros, *patterns):
    return WeightZeros(layer="fc", weight="w", elements=100, zeros=zeros, patterns=patterns)


def test_patterns_are_counted_over_all_layers():
    line = zeros_line([row(75, "1:4"), row(50, "2:4", "4x1"), row(0)])
    assert line.startswith(
        "41.7 % of the weights in the file are zero: 1:4 holds in 1 of 3 layers, 2:4 holds in 2 "
        "of 3 layers, 4x1 holds in 1 of 3 layers; "
    )


def test_scattered_zeros_are_said_to_save_no_time():
    assert zeros_line([row(80)]) == (
        "80.0 % of the weights in the file are zero: they hold no N:M or block pattern; "
        "onnxruntime multiplies by zeros as by any other number, so on a CPU they save no time, "
        "and bytes only in an archive"
    )


def test_few_zeros_are_not_worth_a_line():
    assert zeros_line([row(29)]) == ""
    assert zeros_line([]) == ""


def test_kernels_are_said_with_the_gpu_and_the_interval():
    latency = Latency(
        median_ms=1.0,
        p95_ms=1.1,
        ratio=0.834,
        ratio_low=0.8,
        ratio_high=0.9,
        rounds=40,
        repeats=1,
    )
    assert kernels_line(SparseTime(layers=1, device="a GPU", latency=latency)) == (
        "on a GPU in float16, torch's 2:4 kernels for 1 Linear layer take 0.83x (0.80 to 0.90) "
        "the time of dense ones"
    )
    assert "for 2 Linear layers take" in kernels_line(
        SparseTime(layers=2, device="a GPU", latency=latency)
    )


def test_a_file_is_measured_with_its_zeros(tmp_path):
    weight = np.tile(np.eye(4, dtype=np.float32), (1, 2))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    text = inspect(path, against=None, batch_sizes=[1], threads=1)
    assert "75.0 % of the weights in the file are zero: 1:4 holds in 1 of 1 layers" in text
