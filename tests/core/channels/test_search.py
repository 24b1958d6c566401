"""Looking for cuts: what is tried, and on what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.cuts import Group
from modelzip.core.channels.search import Search
from modelzip.core.channels.slots import Slot


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def bundle(name: str, reader: str, width: int) -> Bundle:
    index = torch.arange(width)[:, None]
    return Bundle({Slot(name, "out"): index, Slot(reader, "in"): index})


@pytest.fixture
def found() -> list[Group]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))
    scores = {
        bundle("1.up", "1.down", 16): torch.rand(16),
        bundle("2", "4", 40): torch.rand(40),
    }
    batches = [Batch(torch.randn(32, 4), None)]
    return list(Search(model, scores, batches, round_to=4, max_sparsity=0.9, blocks=["1"]).groups)


def test_a_blocks_own_bundles_form_a_group_with_it(found: list[Group]) -> None:
    lone, block = found
    assert block.block is not None
    assert block.block.layer == "1"
    assert block.block.width == 0
    assert [[c.layer for c in b] for b in block.bundles] == [["1.up"] * 3]
    assert lone.block is None
    assert {c.layer for b in lone.bundles for c in b} == {"2"}


def test_at_most_six_widths_are_tried_the_first_and_the_last_among_them(
    found: list[Group],
) -> None:
    widths = [c.width for c in found[0].bundles[0]]
    assert widths[0] == 36
    assert widths[-1] == 4
    assert len(widths) == 6
    assert [c.width for c in found[1].bundles[0]] == [12, 8, 4]


def test_cutting_more_costs_more(found: list[Group]) -> None:
    costs = [c.cost.kl for c in found[0].bundles[0]]
    assert 0 < costs[0] < costs[-1]
