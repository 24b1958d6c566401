"""Blocks of weights rounded in training, and stored as codes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.numerics.codebook import normal_float
from modelzip.quantization import blocks
from modelzip.quantization.blocks import BlockQuantizer, NormalFloatQuantizer


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_eight_bits_round_each_block_by_its_largest() -> None:
    weight = torch.tensor([[1.27, -0.014, 0.0, 12.7]])
    codes, scale = BlockQuantizer(weight, bits=8, block_size=2).integers(weight)
    assert codes.tolist() == [[127, -1, 0, 127]]
    torch.testing.assert_close(scale, torch.tensor([[[0.01], [0.1]]]))


def test_four_bits_clip_an_outlier_where_that_costs_less() -> None:
    weight = torch.cat((torch.full((1, 63), 0.7), torch.tensor([[1.0]])), 1)
    quantizer = BlockQuantizer(weight, bits=4, block_size=None)
    plain = (weight * 7).round() / 7  # the largest is the last integer
    error = (quantizer(weight) - weight).square().sum()
    assert float(error) < 0.5 * float((plain - weight).square().sum())


def test_normal_float_rounds_to_the_nearest_of_its_values() -> None:
    weight = weights(3, 20)
    rounded = NormalFloatQuantizer(weight, block_size=8).eval()(weight)
    for row, out in zip(weight, rounded, strict=True):
        for start in range(0, 20, 8):
            block = row[start : start + 8]
            grid = normal_float() * block.abs().max()
            expected = torch.stack([grid[(grid - w).abs().argmin()] for w in block])
            torch.testing.assert_close(out[start : start + 8], expected)


@pytest.mark.parametrize("shape", [(6, 30), (4, 3, 5), (4, 2, 3, 3), (1, 1)])
@pytest.mark.parametrize("block_size", [None, 8])
@pytest.mark.parametrize("kind", ["uniform", "nf4"])
def test_codes_give_the_weights_that_training_saw(
    shape: tuple[int, ...], block_size: int | None, kind: str
) -> None:
    weight = weights(*shape)
    if kind == "nf4":
        quantizer: BlockQuantizer = NormalFloatQuantizer(weight, block_size=block_size)
        table = blocks.codebook(weight.device)
    else:
        quantizer, table = BlockQuantizer(weight, bits=4, block_size=block_size), None
    codes, scale = quantizer.eval().integers(weight)
    assert (codes.dtype, codes.shape) == (torch.int8, weight.shape)
    found = blocks.dequantize(codes, scale, block_size, codebook=table)
    torch.testing.assert_close(found, quantizer(weight), rtol=1e-6, atol=1e-7)


def test_pruned_weights_are_stored_as_zero() -> None:
    weight = weights(4, 16)
    weight[:, ::2] = 0
    for quantizer in (
        BlockQuantizer(weight, bits=4, block_size=8),
        NormalFloatQuantizer(weight, block_size=8),
    ):
        assert bool((quantizer.integers(weight)[0][:, ::2] == 0).all())


def test_all_zero_blocks_stay_zero() -> None:
    weight = torch.zeros(2, 8)
    for quantizer in (
        BlockQuantizer(weight, bits=4, block_size=4),
        NormalFloatQuantizer(weight, block_size=4),
    ):
        assert torch.equal(quantizer(weight), weight)


@pytest.mark.parametrize("quantizer", [BlockQuantizer, NormalFloatQuantizer])
def test_gradients_pass_the_rounding(quantizer: type[BlockQuantizer]) -> None:
    weight = weights(2, 8).requires_grad_()
    settings = {"bits": 8} if quantizer is BlockQuantizer else {}
    quantizer(weight, block_size=4, **settings)(weight).sum().backward()
    largest = weight.detach().abs().view(2, 2, 4).amax(2, keepdim=True).expand(2, 2, 4)
    inside = weight.detach().abs() < largest.reshape(2, 8)  # the others are at the grid's end
    assert weight.grad is not None
    assert torch.equal(weight.grad[inside], torch.ones(2 * 6))


def test_scales_follow_the_weights_while_training() -> None:
    weight = weights(2, 8)
    quantizer = NormalFloatQuantizer(weight, block_size=4)
    quantizer(2 * weight)
    doubled = quantizer.scale.clone()
    quantizer.eval()(weight)
    assert torch.equal(doubled, NormalFloatQuantizer(2 * weight, block_size=4).scale)
    assert torch.equal(quantizer.scale, doubled)


def test_stored_layer_keeps_its_class_and_can_be_copied() -> None:
    layer = nn.Linear(16, 4)
    surgery.attach(layer, BlockQuantizer(layer.weight, bits=4, block_size=8).eval())
    x, expected = weights(2, 16), layer.weight.detach().clone()
    blocks.store(layer)
    again = copy.deepcopy(layer)
    assert (type(again).__name__, isinstance(again, nn.Linear)) == ("Linear", True)
    torch.testing.assert_close(again.weight, expected)
    assert torch.equal(again(x), layer(x))
    assert set(again.state_dict()) == {"weight", "weight_scale", "bias"}


def test_layer_without_a_quantizer_cannot_be_stored() -> None:
    with pytest.raises(TypeError, match="Linear has no BlockQuantizer"):
        blocks.store(nn.Linear(2, 2))
