"""Running a model with channels masked, by what is read and by weights."""

from __future__ import annotations

import torch
from torch import nn

from modelzip.core.channels.masked import Setup, in_float64, masked_reads, masked_weights, outputs
from modelzip.core.channels.slots import Slot

REMOVED = {Slot("0", "out"): torch.tensor([1]), Slot("1", "in"): torch.tensor([1])}


def test_both_masks_leave_out_what_a_channel_adds() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0], [3.0]]))
        model[1].weight.copy_(torch.tensor([[5.0, 7.0]]))
    setup = Setup(torch.ones(1, 1), {})
    assert outputs(model, setup.given)[0].item() == 31.0
    for mask in (masked_reads, masked_weights):
        found = mask(model, setup, REMOVED)
        assert found is not None
        assert found[0].item() == 10.0
    assert model[1].weight.tolist() == [[5.0, 7.0]]


def test_values_stand_for_tensors_while_it_runs() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    other = nn.Parameter(torch.full((1, 1), 3.0))
    found = masked_weights(model, Setup(torch.ones(1, 1), {id(model[0].weight): other}), {})
    assert found[0].item() == 3.0
    assert model[0].weight is not other


def test_float64_is_for_floats_alone() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.BatchNorm1d(2)).eval()
    exact = in_float64(model, Setup(torch.tensor([0, 2]), {}))
    assert exact.given.dtype == torch.int64
    kinds = {tensor.dtype for tensor in exact.values.values()}
    assert kinds == {torch.float64, torch.int64}  # the number of batches is counted
    assert masked_weights(model, exact, {})[0].dtype == torch.float64
    assert model[0].weight.dtype == torch.float32
