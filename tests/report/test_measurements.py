import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from modelzip.core.prepare import prepare
from modelzip.data.base import Splits
from modelzip.export.onnx import export_onnx
from modelzip.passes.int8 import Int8
from modelzip.report.measurements import compare, deployed, measure_answers, servings
from modelzip.runtime.session import Serving, missing

needs_openvino = pytest.mark.skipif(
    bool(missing("openvino", "cpu")), reason="openvino is not installed"
)
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(scope="module")
def splits():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(40, 4), torch.arange(40) % 2)
    return Splits(train=data, validation=data, test=data, classes=2)


@pytest.fixture(scope="module")
def model(splits, tmp_path_factory):
    torch.manual_seed(1)
    module, x = nn.Linear(4, 2).eval(), torch.ones(1, 4)
    path = export_onnx(module, x, tmp_path_factory.mktemp("m") / "m.onnx")
    return deployed(module, path, splits, example_inputs=x, batch_size=16)


def compared(model, splits, **settings):
    return compare(
        model,
        model,
        splits,
        torch.ones(1, 4),
        **{
            "batch_size": 16,
            "runtimes": ["onnxruntime"],
            "precisions": ["float32"],
            "devices": ["cpu"],
            "batch_sizes": [1],
            "threads": [1],
        }
        | settings,
        seed=0,
    )


def names(found):
    return [(serving.runtime, serving.precision) for serving in found]


def test_each_runtime_and_batch_size_has_a_row_for_both_models(model, splits):
    found = compared(model, splits, runtimes=["onnxruntime", "torch"], batch_sizes=[1, 3])
    assert found.missing == ()
    assert [(r.name, r.runtime, r.batch_size) for r in found.latency] == [
        (name, runtime, batch)
        for batch in (1, 3)
        for runtime in ("onnxruntime", "torch")
        for name in ("baseline", "compressed")
    ]
    assert found.answers == ()
    assert found.promise is None


@needs_openvino
def test_other_runtimes_of_files_have_their_answers_compared(model, splits):
    found = compared(model, splits, runtimes=["openvino", "onnxruntime", "torch"])
    assert [r.runtime for r in found.latency] == ["onnxruntime"] * 2 + ["openvino"] * 2 + [
        "torch"
    ] * 2
    assert [(row.name, row.runtime, row.precision) for row in found.answers] == [
        ("baseline", "openvino", "float32"),
        ("compressed", "openvino", "float32"),
    ]
    assert all((row.n, row.agreement) == (40, 1.0) for row in found.answers)
    assert all(row.max_difference < 1e-5 for row in found.answers)
    assert all(row.accuracy == model.figures.accuracy for row in found.answers)


@needs_openvino
def test_what_a_runtime_cannot_answer_is_said(model, splits):
    lines = []
    rows = measure_answers(
        "compressed",
        replace(model, module=nn.Linear(4, 3)),
        [Serving(runtime="openvino")],
        splits,
        batch_size=2,
        failed=lines.append,
    )
    assert rows == []
    assert lines == [
        "openvino on cpu in float32: the module's outputs have shapes [[2, 3]], the file's [[2, 2]]"
    ]


@no_cuda
def test_one_line_says_why_cuda_is_missing():
    found, lines = servings(["onnxruntime"], ["float32"], ["cpu", "cuda"])
    assert found == [Serving()]
    assert lines == [missing("onnxruntime", "cuda")]


def test_precisions_are_for_those_that_can_be_asked():
    found, lines = servings(["torch", "onnxruntime"], ["bfloat16", "float32"], ["cpu"])
    assert names(found) == [
        ("onnxruntime", "float32"),
        ("torch", "bfloat16"),
        ("torch", "float32"),
    ]
    assert lines == []
    assert names(servings(["onnxruntime"], ["bfloat16"], ["cpu"])[0]) == [
        ("onnxruntime", "float32")
    ]


def test_a_runtime_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    found, lines = servings(["onnxruntime", "openvino"], ["float32", "bfloat16"], ["cpu"])
    assert names(found) == [("onnxruntime", "float32")]
    assert lines == ["openvino on cpu: OpenVINO is not installed; pip install 'modelzip[openvino]'"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_adds_torch_in_both_precisions(model, splits):
    found = {(r.runtime, r.precision) for r in compared(model, splits, devices=["cuda"]).latency}
    assert {("torch", "float32"), ("torch", "float16")} <= found
    assert {("torch.compile", "float32"), ("torch.compile", "float16")} <= found


def test_operators_without_an_exact_rule_are_named_with_the_gap(splits, tmp_path):
    torch.manual_seed(0)
    inner = (nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 2))
    layers = (nn.Linear(4, 64), *inner, nn.Softmax(-1))
    x = torch.randn(64, 4)
    pass_ = Int8(mode="linear", bias_correction=False)
    module = prepare(nn.Sequential(*layers).eval(), [pass_], calibration=[x]).convert()
    path = export_onnx(module, x, tmp_path / "m.onnx")
    found = compared(deployed(module, path, splits, example_inputs=x, batch_size=16), splits)
    assert found.parity.identical < 1
    assert "not covered by the exact rules, and the difference right behind" in found.promise.text
    assert "LayerNormalization" in found.promise.text
