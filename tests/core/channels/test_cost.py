"""Costs at other widths, against a count of the resized model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from modelzip.core.channels import choose
from modelzip.core.channels.bundles import find_bundles, follow
from modelzip.core.channels.cost import Cost, count_macs
from modelzip.core.channels.resize import LAYERS, resize
from modelzip.core.channels.verify import kept_channels
from modelzip.core.running import rows
from tests.architectures import build


@pytest.mark.parametrize("name", ["resnet_b", "depthwise", "grouped", "transposed", "encoder"])
def test_predicts_what_resizing_costs(name: str) -> None:
    model, inputs = build(name)
    chosen = [n for n, m in model.named_modules() if isinstance(m, LAYERS)]
    found, _ = find_bundles(model, inputs, chosen=chosen)
    taken = [
        choose.Chunk(bundle, torch.arange(bundle.units // 4), (0.0, 0.0))
        for bundle in found
        if not bundle.name.startswith("attention")
    ]
    cost = Cost(copy.deepcopy(model), follow(model, inputs).macs)
    removed = choose.removed(taken)
    resize(model, kept_channels(model, removed))
    assert cost.macs(choose.counts(taken)) == count_macs(model, rows(inputs, 1))
    assert cost.params(choose.counts(taken)) == sum(p.numel() for p in model.parameters())


def test_counts_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 2, 2, 2))
    x = torch.ones(2, 3, 4, 4)
    assert count_macs(model, x) == 2 * (16 * 3 * 8 * 9 + 16 * 8 * 2 * 4)
