"""Models that fx cannot trace: captured, quantized, exported, and captured again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import ModelError
from modelzip.export.onnx import export_onnx
from modelzip.runtime import session
from tests.architectures import CAPTURED, Steps, build

NOTES = {
    "branch": r"Branch.forward branches on values: captured along the path its example inputs "
    r"take \(x = self.a\(x\) if x.mean\(\) > -1e9 else self.b\(x\) at branching.py:\d+\)",
    "steps": r"Steps.forward depends on shapes: captured for those of its example inputs \(assert "
    r"x.shape\[1\] > 1, .* at branching.py:\d+; for t in range\(x.shape\[1\]\) at .*\)",
    "answering": r"Answering.forward branches on values: .*bool\(torch.isnan\(pixels\).any\(\)\)",
    "collected": r"Collected.forward cannot be traced \(.*\): captured by running its example",
}


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_models_quantize_export_and_come_back(name: str, tmp_path: Path) -> None:
    model, x = build(name)
    prepared = mz.prepare(model, [mz.Int8()], example_inputs=x, calibration=[(x, None)])
    small = prepared.convert()
    (report,) = prepared.reports
    (note,) = report.notes
    assert re.match(NOTES[name], note), note
    with evaluating(small), evaluating(model):
        ours, floats = list(tensors(call(small, x))), list(tensors(call(model, x)))
    for a, b in zip(ours, floats, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.1
    export_onnx(small, x, tmp_path / "small.onnx")
    served = session.load(tmp_path / "small.onnx").run(x)
    for a, c in zip(ours, served, strict=True):
        torch.testing.assert_close(a, torch.from_numpy(c), rtol=0.02, atol=0.02)
    prepared.save(tmp_path / "small.safetensors")
    again = mz.load(lambda: build(name, seed=1)[0], tmp_path / "small.safetensors")
    with torch.no_grad():
        assert all(map(torch.equal, tensors(call(again, x)), ours))


def test_layers_off_the_path_are_protected_by_name() -> None:
    model, x = build("branch")
    prepared = mz.prepare(model, [mz.Int8()], calibration=[x])
    prepared.convert()
    (report,) = prepared.reports
    assert report.protected == {"b.0": "not on the path that was captured"}
    assert [row.name for row in report.layers] == ["stem.0", "a.0", "last.0", "head.2"]


def test_captured_models_train_with_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6)
    prepared = mz.prepare(Steps(), [mz.FakeQuantize(bits=4)], example_inputs=x)
    optimizer = torch.optim.SGD(prepared.model.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = prepared.model(torch.cat([x, x])).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    prepared.convert()
    assert "Steps.forward depends on shapes" in prepared.reports[0].notes[0]


def test_an_argument_left_out_at_preparation_is_refused_later() -> None:
    x = torch.randn(4, 3, 6)
    small = mz.prepare(Steps().eval(), [mz.Int8()], calibration=[x]).convert()
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        small(x, torch.ones(4, 3))
    masked = {"x": x, "mask": torch.ones(4, 3)}
    both = mz.prepare(Steps().eval(), [mz.Int8()], calibration=[(masked, None)]).convert()
    with torch.no_grad():
        assert both(x, 0 * masked["mask"]).std(0).max() < 1e-6 < small(x).std(0).max()


def test_a_graph_of_one_batch_size_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"Batched was captured .* works at their batch size alone"
    ):
        mz.prepare(Batched(), [mz.Int8()], calibration=[torch.randn(4, 6)])


class Batched(nn.Module):
    """A loop over samples, which no graph of any batch size can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(row) for row in x])
