"""Costs at other widths, against a count of the resized model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.core.base import Context
from modelzip.core.channels import choose
from modelzip.core.channels.bundles import find_bundles, follow
from modelzip.core.channels.cost import Cost, count_macs
from modelzip.core.channels.resize import LAYERS, resize
from modelzip.core.channels.verify import kept_channels
from modelzip.core.running import rows
from modelzip.passes.prune_channels import PruneChannels
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


@pytest.mark.parametrize("name", ["vit_separate", "vit_head_dim", "bert"])
def test_what_attention_multiplies_itself_follows_its_heads(name: str) -> None:
    model, inputs = build(name)
    pass_ = PruneChannels(sparsity=0.5, scope="layer", round_to=1)
    plan = pass_.plan(model, Context(example_inputs=inputs))
    assert any("att" in layer for layer in plan.channels), "no head is gone"
    small = mz.prepare(model, [pass_], example_inputs=inputs).convert()
    assert list(plan.macs) == [count_macs(m, rows(inputs, 1)) for m in (model, small)]
