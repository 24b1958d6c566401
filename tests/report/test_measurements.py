import pytest
import torch
from torch import nn

from modelzip.export.onnx import export_onnx
from modelzip.report.measurements import measure_latency
from modelzip.runtime.session import missing


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = nn.Linear(4, 2).eval()
    x = torch.ones(1, 4)
    return model, x, export_onnx(model, x, tmp_path_factory.mktemp("m") / "m.onnx")


def times(exported, **settings):
    model, x, path = exported
    names = ("baseline", "compressed")
    return measure_latency(
        dict.fromkeys(names, path),
        dict.fromkeys(names, model),
        x,
        **{"runtimes": ["onnxruntime"], "devices": ["cpu"], "batch_sizes": [1], "threads": [1]}
        | settings,
        seed=0,
    )


def test_each_runtime_and_batch_size_has_a_row_for_both_models(exported):
    rows, absent = times(exported, runtimes=["onnxruntime", "torch"], batch_sizes=[1, 3])
    assert absent == ()
    assert [(r.name, r.runtime, r.batch_size) for r in rows] == [
        (name, runtime, batch)
        for runtime in ("onnxruntime", "torch")
        for batch in (1, 3)
        for name in ("baseline", "compressed")
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_one_line_says_why_cuda_is_missing(exported):
    rows, absent = times(exported, devices=["cpu", "cuda"])
    assert {row.device for row in rows} == {"cpu"}
    assert absent == (missing("onnxruntime", "cuda"),)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_adds_torch_in_both_precisions(exported):
    rows, _ = times(exported, devices=["cuda"])
    found = {(row.runtime, row.precision) for row in rows}
    assert {("torch", "float32"), ("torch", "float16")} <= found
    assert {("torch.compile", "float32"), ("torch.compile", "float16")} <= found


def test_a_module_that_one_runtime_cannot_run_is_said(exported):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no luck")

    _, x, path = exported
    rows, absent = measure_latency(
        {"baseline": path},
        {"baseline": Broken()},
        x,
        runtimes=["onnxruntime", "torch"],
        devices=["cpu"],
        batch_sizes=[1],
        threads=[1],
        seed=0,
    )
    assert [row.runtime for row in rows] == ["onnxruntime"]
    assert absent == ("torch on cpu in float32: torch cannot run Broken: no luck",)
