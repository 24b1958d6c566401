"""Widths that meet a latency, by timing files."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.core.running import as_batches
from modelzip.errors import SettingError
from modelzip.recipe.keep_float import Serving
from modelzip.recipe.latency import Later, settle
from modelzip.report.text import table
from modelzip.report.widths import WIDTHS, width_rows

X = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0))
PRUNE = mz.PruneChannels(latency="0.6x", round_to=16)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        Block(32),
        Block(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def later(*passes: mz.Pass) -> Later:
    return Later(
        passes=passes,
        example_inputs=X[:4],
        calibration=as_batches([X]),
        training_steps=None,
        serving=Serving(batch_sizes=(1,)),
        seed=0,
    )


def test_the_widths_found_are_those_measured() -> None:
    model = net()
    step, fit = settle(PRUNE, model, original=model, later=later())
    assert step.latency is None
    assert dict(step.widths or {}) == {row.layer: row.width for row in fit.rows}
    assert fit.measured <= fit.target == 0.6
    assert fit.measured < fit.dense
    assert all(row.width % 16 == 0 and row.width < row.of for row in fit.rows)
    small = mz.prepare(model, [step], example_inputs=X[:4]).convert()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_blocks_go_where_widths_are_not_enough() -> None:
    model = net()
    prune = mz.PruneChannels(latency="0.35x", round_to=32, max_sparsity=0.5, blocks=True)
    step, fit = settle(prune, model, original=model, later=later())
    gone = [row.layer for row in fit.rows if row.width == 0]
    assert gone
    small = mz.prepare(model, [step], example_inputs=X[:4]).convert()
    assert all(isinstance(small.get_submodule(name), nn.Identity) for name in gone)
    assert "the block is gone" in table(width_rows(fit), WIDTHS)


def test_later_passes_are_in_the_files_that_are_timed() -> None:
    model = net()
    _, alone = settle(PRUNE, model, original=model, later=later())
    assert alone.dense == pytest.approx(1.0, abs=0.2)
    prune = mz.PruneChannels(latency="0.001x", round_to=16)
    with pytest.raises(SettingError) as refused:
        settle(prune, model, original=model, later=later(mz.Int8()))
    dense = re.search(r"([0-9.]+)x without pruning", str(refused.value))
    assert dense is not None
    assert float(dense[1]) < 0.9  # int8 by itself is faster


def test_a_target_that_is_met_already_is_refused() -> None:
    model = net()
    prune = mz.PruneChannels(latency="1x")
    with pytest.raises(SettingError, match="latency=1x is met without pruning: the file takes"):
        settle(prune, model, original=model, later=later(mz.Int8()))


def test_a_target_out_of_reach_says_what_to_do() -> None:
    model = net()
    prune = mz.PruneChannels(latency="0.001x", max_sparsity=0.5, round_to=16)
    with pytest.raises(SettingError, match=r"cannot be met: .* set blocks: true"):
        settle(prune, model, original=model, later=later())
