"""Float models that the exporter cannot follow are written as they were captured."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from modelzip.core.running import call, tensors
from modelzip.errors import ExportError
from modelzip.export.onnx import export_onnx
from modelzip.runtime import session
from tests.architectures import build
from tests.core.test_graph import Silent


def test_a_branch_on_values_is_written_as_captured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = build("branch")
    with caplog.at_level(logging.INFO, logger="modelzip"):
        export_onnx(model, x, tmp_path / "branch.onnx")
    assert "Branch cannot be exported to ONNX" in caplog.text
    assert "captured along the path its example inputs take (x = self.a(x) if" in caplog.text
    double = torch.cat([x, x])
    with torch.no_grad():
        ours = list(tensors(call(model, double)))
    served = session.load(tmp_path / "branch.onnx").run(double)
    for a, b in zip(ours, served, strict=True):
        torch.testing.assert_close(a, torch.from_numpy(b), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_captured_either_fails_as_before(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Silent cannot be exported to ONNX: RuntimeError"):
        export_onnx(Silent(), torch.ones(2, 2), tmp_path / "silent.onnx")
