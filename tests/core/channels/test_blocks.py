"""Finding residual blocks, and leaving them out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelzip.core.channels.blocks import drop, find_blocks
from modelzip.errors import SettingError
from modelzip.zoo import resnet20


class Branch(nn.Module):
    """x + scale * f(norm(x)), as encoders have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.layers(self.norm(x))


class PostNorm(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.layers(x))


class Masked(Branch):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Masking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Masked(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x, mask=x > 0))


def test_finds_every_block_of_a_resnet_that_keeps_its_shape() -> None:
    found = find_blocks(resnet20(), torch.randn(2, 3, 32, 32))
    first = [f"layer1.{i}" for i in range(3)]
    assert found == [*first, "layer2.1", "layer2.2", "layer3.1", "layer3.2"]


def test_finds_branches_of_encoders_and_not_what_norms_afterwards() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branch(4), PostNorm(4), nn.Linear(4, 2))
    assert find_blocks(model, torch.randn(2, 4)) == ["1"]


def test_a_sequence_of_blocks_is_found_block_by_block() -> None:
    model = nn.Sequential(nn.Sequential(Branch(4), Branch(4)), nn.Linear(4, 2))
    assert find_blocks(model, torch.randn(2, 4)) == ["0.0", "0.1"]


def test_a_block_that_runs_twice_or_takes_a_mask_is_none() -> None:
    block = Branch(4)
    assert find_blocks(nn.Sequential(block, block, nn.Linear(4, 2)), torch.randn(2, 4)) == []
    assert find_blocks(Masking(), torch.randn(2, 4)) == []


def test_a_block_that_shares_a_weight_is_none() -> None:
    model = nn.Sequential(Branch(8), nn.Linear(8, 8))
    model[1].weight = model[0].layers[2].weight
    assert find_blocks(model, torch.randn(2, 8)) == []


def test_leaves_the_model_as_it_was() -> None:
    model = resnet20().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_blocks(model, torch.randn(2, 3, 32, 32))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dropping_a_block_is_dropping_what_it_adds() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branch(4), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    expected = model[2](model[0](x))
    drop(model, ["1"])
    assert torch.equal(model(x), expected)


def test_dropping_what_is_not_there_changes_nothing() -> None:
    model = nn.Sequential(Branch(4))
    with pytest.raises(SettingError, match="cannot drop '7': the model has no such block"):
        drop(model, ["0", "7"])
    assert isinstance(model[0], Branch)
