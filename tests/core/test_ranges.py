"""Extremes of what modules take, compute and return."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelzip.core.ranges import reaches


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU()

    def forward(self, x: Tensor, *, factor: Tensor) -> Tensor:
        return self.inner(x * 100 * factor) / 1000


def test_operations_count_for_the_module_that_calls_them() -> None:
    found = reaches(Scaled(), [{"x": torch.tensor([-2.0, 1.0]), "factor": torch.ones(2)}])
    assert found[""].largest == 200.0
    assert found["inner"].largest == 200.0  # it is given as much
    assert (found["inner"].faintest, found[""].faintest) == (100.0, float(torch.tensor(0.1)))


def test_sums_behind_means_and_norms_are_found() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    x = torch.full((2, 50), 3.0)
    assert reaches(Mean(), [x])[""].total == 150.0
    assert reaches(nn.AdaptiveAvgPool2d(1), [x.view(2, 1, 5, 10)])[""].total == 150.0
    assert reaches(nn.LayerNorm(50), [x])[""].total == 450.0


def test_attention_scores_are_seen() -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.full((1, 1, 3, 4), 10.0)
    assert reaches(Attend(), [x])[""].largest == 200.0  # 4 * 10 * 10 / sqrt(4)


def test_infinity_as_a_mask_does_not_count_and_settings_are_restored() -> None:
    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x > 1, -torch.inf).softmax(0)

    model = Mask().train()
    fused = torch.backends.mha.get_fastpath_enabled()
    assert reaches(model, [torch.tensor([1.0, 2.0])])[""].largest == 2.0
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled() is fused
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
