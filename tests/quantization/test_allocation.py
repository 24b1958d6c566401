from __future__ import annotations

import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.core.selection import select
from modelzip.errors import SettingError
from modelzip.quantization.allocation import allocate_bits

KINDS = (nn.Conv2d, nn.Linear)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 36, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()


BATCHES = [Batch(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)), None)]


def test_more_bytes_never_mean_fewer_bits_in_all():
    model = net()
    layers = select(model, kinds=KINDS)
    sums = []
    for size in (0.1, 0.15, 0.2, 0.3):
        bits = allocate_bits(model, layers, BATCHES, size=size)
        assert set(bits) == {"0", "4", "6"}
        assert all(2 <= b <= 8 for b in bits.values())
        stored = sum(layers[n].weight.numel() * b for n, b in bits.items()) / 8
        assert stored <= size * 4 * sum(p.numel() for p in model.parameters())
        sums.append(sum(layers[n].weight.numel() * b for n, b in bits.items()))
    assert sums == sorted(sums)
    assert sums[0] < sums[-1]


def test_the_layer_that_matters_gets_more_bits():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = [Batch(torch.randn(64, 1024, generator=torch.Generator().manual_seed(2)), None)]
    bits = allocate_bits(wide, select(wide, kinds=KINDS), x, size=0.14)
    # a hundredth of the weights make half of the error: it costs next to nothing to keep them
    assert bits["2"] > bits["0"]


def test_a_size_below_two_bits_is_refused():
    model = net()
    with pytest.raises(SettingError, match=r"size 0.01x cannot be reached: .* 2 bits .* 0\.\d+x"):
        allocate_bits(model, select(model, kinds=KINDS), BATCHES, size=0.01)
