"""Models that compute in float16 but for some modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelzip.core import mixed


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        second = self.b(first)
        self.seen = [x.dtype, first.dtype, second.dtype]
        return first + second


def narrow(*wide: str) -> Block:
    model = Block()
    for name in ("a", "b"):
        if name not in wide:
            model.get_submodule(name).half()
    mixed.compute_narrow(model, torch.float16, wide=wide, outside=torch.float32)
    assert model(torch.ones(1, 4)).dtype is torch.float32
    return model


def test_each_module_gets_and_gives_the_type_around_it() -> None:
    half, full = torch.float16, torch.float32
    assert narrow().seen == [half, half, half]
    assert narrow("a").seen == [half, half, half]  # computed in float32, returned to a narrow one
    assert narrow("").seen == [full, full, full]
    assert narrow("a", "b").seen == [full, full, full]


def test_shared_modules_are_changed_once() -> None:
    layer = nn.Linear(2, 2).half()
    model = nn.Sequential(layer, nn.ReLU(), layer)
    mixed.compute_narrow(model, torch.float16, wide=(), outside=torch.float32)
    assert len(type(model[0]).__mro__) == len(nn.Linear.__mro__) + 1


def test_parts_of_a_unit_follow_one_another() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 1, 8), nn.Linear(4, 4))
    found = mixed.whole_units(model, {"0.linear2": "why"})
    assert found["0"] == found["0.self_attn.out_proj"] == "why (0.linear2)"
    assert "1" not in found
