import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.report.record import SensitivityRow
from modelzip.report.sensitivity import rank, sensitivity_rows


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)).eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(300, 4, generator=generator)
    return [(part, torch.zeros(len(part))) for part in inputs.split(150)]


def test_layers_are_ranked_with_their_shares(net, batches, tmp_path):
    x = batches[0][0]
    path = mz.export_onnx(net, (x,), tmp_path / "net.onnx")
    rows = rank(net, path, batches, bits=3, example_inputs=(x,))
    assert sorted(row.layer for row in rows) == ["0", "2"]
    assert rows[0].kl >= rows[1].kl > 0
    shares = {row.layer: row.size_share for row in rows}
    assert shares["0"] == pytest.approx((4 * 64 + 64) / (4 * 64 + 64 + 64 * 2 + 2))
    assert all(0 < row.time_share < 1 for row in rows)


def test_each_layer_may_have_bits_of_its_own(net, batches, tmp_path):
    x = batches[0][0]
    path = mz.export_onnx(net, (x,), tmp_path / "net.onnx")
    rows = rank(net, path, batches, bits={"2": 2, "0": 8}, example_inputs=(x,))
    assert [(row.layer, row.bits) for row in rows] == [("2", 2), ("0", 8)]


def test_a_layer_that_is_not_in_the_file_has_no_shares(net, batches, tmp_path):
    x = batches[0][0]
    other = nn.Sequential(nn.Flatten(), net[0]).eval()
    path = mz.export_onnx(other, (x,), tmp_path / "other.onnx")
    rows = rank(net, path, batches, bits={"2": 8}, example_inputs=(x,))
    assert rows[0].size_share is rows[0].time_share is None


def test_cells_are_readable():
    row = SensitivityRow(
        layer="fc", bits=4, kl=0.00123, agreement=0.5, size_share=0.25, time_share=None
    )
    assert sensitivity_rows([row]) == [["fc", 4, "1.23e-03", "50.00 %", "25.0 %", ""]]
