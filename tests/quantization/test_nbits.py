"""Inputs rounded in blocks, and the bytes of packed weights."""

from __future__ import annotations

import torch
from torch import nn

from modelzip.quantization import nbits


def test_each_block_is_rounded_by_its_own_largest_value() -> None:
    values = torch.tensor([[[12.7, 0.06, 0.0, 0.0, -1.27]]])
    expected = torch.tensor([[[12.7, 0.1, 0.0, 0.0, -1.27]]])
    torch.testing.assert_close(nbits.round_blocks(values, 2), expected)


def test_zero_blocks_stay_zero() -> None:
    assert torch.equal(nbits.round_blocks(torch.zeros(1, 4), 2), torch.zeros(1, 4))


def test_codes_are_packed_as_offsets_low_half_first() -> None:
    codes = torch.tensor([[[-8, 7, 0, -1]]], dtype=torch.int8)
    assert nbits._packed(codes, 4).tolist() == [[[0xF0, 0x78]]]
    assert nbits._packed(codes, 8).tolist() == [[[120, 135, 128, 127]]]


def test_layers_that_attention_reads_or_that_are_narrow_are_not_suited() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 2, 64), nn.Linear(16, 32))
    assert list(nbits.suited(model, block_size=32)) == ["0.linear1", "0.linear2"]


def test_gradients_pass_the_rounding() -> None:
    layer, x = nn.Linear(4, 1, bias=False), torch.randn(2, 4, requires_grad=True)
    nbits.attach(layer, block_size=2)
    layer(x).sum().backward()
    assert torch.equal(x.grad, layer.weight.detach().expand(2, 4))
