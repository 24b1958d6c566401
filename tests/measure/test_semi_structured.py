"""2:4 kernels: which layers they take, and their time where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import ExportError
from modelzip.measure.semi_structured import suitable, time_semi_structured


def pruned(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, width), nn.Linear(width, 5)
    )
    return mz.prepare(model, [mz.MagnitudePrune(pattern="2:4")]).convert()


def test_only_layers_that_hold_2_4_at_the_kernels_sizes_are_taken() -> None:
    model = pruned()
    assert suitable(model) == ["0"]  # 96 inputs and 5 outputs are no multiples
    assert suitable(pruned(128)) == ["0"]
    with torch.no_grad():
        model[0].weight[0, :4] = 1.0
    assert suitable(model) == []
    assert time_semi_structured(model, torch.ones(2, 64)) is None


def test_stricter_patterns_are_taken_too() -> None:
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight.view(32, 16, 4)[:, :, 1:] = 0
    assert suitable(layer) == [""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ExportError, match="2:4 kernels need a CUDA device, and torch sees"):
        time_semi_structured(pruned(), torch.ones(2, 64))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_sparse_and_dense_are_timed_side_by_side() -> None:
    found = time_semi_structured(pruned(), torch.randn(64, 64), budget_s=0.5)
    assert found is not None
    assert found.layers == 1
    assert found.device == torch.cuda.get_device_name(0)
    assert 0 < found.latency.ratio_low <= found.latency.ratio <= found.latency.ratio_high


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_what_does_not_run_in_half_precision_is_one_line() -> None:
    with pytest.raises(ExportError, match="2:4 kernels cannot run Sequential: mat1 and mat2"):
        time_semi_structured(pruned(), torch.ones(2, 63))
