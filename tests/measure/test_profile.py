from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import DataError, SettingError
from modelzip.measure.profile import layer_times, profile


def test_every_operator_has_a_row_and_shares_add_up(float_file: Path, images: np.ndarray) -> None:
    rows = profile(float_file, images, runs=5)
    assert {"Conv", "Gemm"} <= {row.op.removeprefix("Fused") for row in rows}
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.time_ms >= 0 for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_it_leaves_no_file(
    float_file: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.tempdir", str(work))
    profile(float_file, images, runs=1)
    with pytest.raises(DataError, match="input x has shape"):
        profile(float_file, images[:, :1])
    assert list(work.iterdir()) == []


def test_runs_are_checked(float_file: Path, images: np.ndarray) -> None:
    with pytest.raises(SettingError, match="runs must be an integer of at least 1, got 0"):
        profile(float_file, images, runs=0)


def test_layers_have_what_runs_for_them(int8_file: Path, images: np.ndarray) -> None:
    rows = layer_times(int8_file, images, runs=5)
    assert sum(row.share for row in rows) == pytest.approx(1)
    named = {row.layer: row for row in rows if row.layer}
    assert set(named) == {"conv", "fc"}
    # the quantizer of its input is the convolution's own
    assert "QuantizeLinear" in named["conv"].ops
    others = {row.ops[0].removeprefix("Nchwc") for row in rows if not row.layer}
    assert "MaxPool" in others
    assert all(len(row.ops) == 1 for row in rows if not row.layer)


def test_fused_operators_count_for_their_layer(float_file: Path, images: np.ndarray) -> None:
    rows = layer_times(float_file, images, runs=5)
    assert [row.layer for row in rows if row.layer] == ["conv", "fc"]


def test_a_layer_fused_with_its_activation_keeps_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    path = mz.export_onnx(net, (torch.zeros(2, 4),), tmp_path / "net.onnx")
    rows = layer_times(path, np.zeros((2, 4), np.float32), runs=2)
    assert [row.layer for row in rows] == ["0", "2"]
