"""Narrow storage and computation under the names that layers had."""

from __future__ import annotations

import copy

import torch
from torch import nn

from modelzip.core import precision


def test_stored_tensors_keep_their_kind_and_their_ties() -> None:
    layer, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    other.weight = layer.weight
    tensors = {m: {"weight": m.weight, "running_var": m.running_var} for m in (layer, other)}
    precision.store(tensors, torch.float16)
    assert layer.weight is other.weight
    assert isinstance(layer.weight, nn.Parameter)
    assert (layer.weight.dtype, layer.running_var.dtype) == (torch.float16, torch.float16)
    assert layer.bias.dtype is torch.float32


def test_widened_module_can_be_copied_and_loaded() -> None:
    layer = nn.Linear(2, 2).half()
    precision.widen(layer, ("weight", "bias"))
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    x = torch.ones(1, 2)
    assert torch.equal(again(x), layer(x))
    assert type(again).__name__ == "Linear"


def test_widened_list_of_parameters_reads_as_float32() -> None:
    weights = nn.ParameterList([torch.ones(2)]).half()
    precision.widen(weights, ("0",))
    assert weights[0].dtype is torch.float32


class Pair(nn.Module):
    def forward(self, a: torch.Tensor, b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.seen = [a.dtype, b["b"].dtype, b["n"].dtype]
        return {"sum": a + b["b"], "n": b["n"]}


def test_floats_change_inside_structures_and_integers_do_not() -> None:
    module = Pair()
    precision.compute_in(module, inside=torch.float16, outside=torch.float32)
    out = module(torch.ones(1), {"b": torch.ones(1), "n": torch.ones(1, dtype=torch.int64)})
    assert module.seen == [torch.float16, torch.float16, torch.int64]
    assert (out["sum"].dtype, out["n"].dtype) == (torch.float32, torch.int64)
