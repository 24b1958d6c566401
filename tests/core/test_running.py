"""Running models on tensors, tuples and dicts; reading batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelzip.core.running import as_batches, call, evaluating, frozen, tensors
from modelzip.errors import DataError


class Minus(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


@pytest.mark.parametrize("inputs", [(TWO, ONE), [TWO, ONE], {"b": ONE, "a": TWO}])
def test_call_spreads_tuples_and_dicts(inputs: Any) -> None:
    assert call(Minus(), inputs).item() == 1.0


def test_evaluating_gives_each_module_its_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[0].eval()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == [True, False, True]
    with pytest.raises(RuntimeError, match="mat1 and mat2"), evaluating(model):
        nn.Linear(2, 2)(torch.ones(1, 3))
    assert [m.training for m in model.modules()] == [True, False, True]
    assert torch.is_grad_enabled()


def test_frozen_gives_each_parameter_its_own_wish_back() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)


def test_tensors_are_found_at_any_depth() -> None:
    assert [float(t) for t in tensors({"a": (ONE, [TWO]), "b": "text", "c": None})] == [1.0, 2.0]


def test_batches_are_pairs_or_bare_inputs() -> None:
    batches = as_batches([(ONE, TWO), {"x": ONE}, ((ONE, TWO), None), TWO])
    assert [b.targets is None for b in batches] == [False, True, True, True]
    assert isinstance(batches[2].inputs, tuple)


def test_batch_of_three_parts_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"calibration batch 1 has 3 parts; give \(inputs, targets\)"
    ):
        as_batches([ONE, (ONE, ONE, ONE)])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="calibration batch 0 holds NaN or infinity"):
        as_batches([({"x": torch.tensor([bad])}, ONE)])


def test_as_batches_refuses_a_batch_without_samples() -> None:
    with pytest.raises(DataError, match="calibration batch 1 holds no samples"):
        as_batches([torch.ones(2, 3), torch.ones(0, 3)])


def test_no_batches_are_refused() -> None:
    with pytest.raises(DataError, match="the calibration data are empty; give at least one batch"):
        as_batches(iter(()))
