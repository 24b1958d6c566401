"""Masks on weights: what they leave together, how layers are ranked, when schedules act."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.core import masking, surgery
from modelzip.core.masking import WeightMask
from modelzip.errors import ModelError, SettingError

PASS = mz.MagnitudePrune(sparsity=0.5)


def masked(*masks: list[bool]) -> nn.Linear:
    layer = nn.Linear(4, 1, bias=False)
    for mask in masks:
        surgery.attach(layer, WeightMask(torch.tensor([mask]), PASS, None))
    return layer


def test_held_is_what_every_mask_leaves() -> None:
    assert masking.held(masked()).tolist() == [[True] * 4]
    both = masked([True, True, False, False], [True, False, True, False])
    assert masking.held(both).tolist() == [[True, False, False, False]]


def test_mask_holds_weights_and_gradients_at_zero_even_of_nan() -> None:
    layer = masked([True, False, True, False])
    surgery.original_tensor(layer).data[0, 1] = torch.nan
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight[0, 1] == 0
    assert surgery.original_tensor(layer).grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_layers_are_ranked_together_or_each_on_its_own() -> None:
    layers: dict[str, nn.Module] = {"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}
    scores = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([[4.0, 3.0]])}
    within = {name: torch.ones(1, 2, dtype=torch.bool) for name in layers}

    def masks(scope: str, *, signed: bool = False) -> list[list[list[bool]]]:
        found = masking.rank(
            layers, scores, within, 0.5, scope=scope, pattern="unstructured", signed=signed
        )
        return [mask.tolist() for mask in found.values()]

    assert masks("global") == [[[False, False]], [[True, True]]]
    assert masks("layer") == [[[False, True]], [[True, False]]]
    assert masks("layer", signed=True) == [[[True, False]], [[True, False]]]


def test_transposed_convolution_comes_back_in_its_own_layout() -> None:
    layer = nn.ConvTranspose1d(4, 3, 2)
    ones = torch.ones_like(layer.weight, dtype=torch.bool)
    (mask,) = masking.rank(
        {"": layer}, {"": layer.weight}, {"": ones}, 0.5, scope="layer", pattern="2:4"
    ).values()
    assert mask.shape == layer.weight.shape
    assert bool((mask.sum(0) == 2).all())  # inputs come first


def test_layer_without_weights_left_is_named() -> None:
    dead = {"a": torch.tensor([True]), "b": torch.tensor([False])}
    with pytest.raises(ModelError, match=r"sparsity=0.9 would remove every weight of b; lower it"):
        masking.refuse_dead(dead, 0.9)


def test_schedule_acts_on_its_grid_and_at_its_end() -> None:
    due = [
        masking.sparsity_due(step, first=2, last=7, every=3, final=0.5) is not None
        for step in range(10)
    ]
    assert [step for step in range(10) if due[step]] == [2, 5, 7]


def test_span_is_at_least_one_step() -> None:
    assert masking.span(0.1, 0.2, 1) == (0, 1)
    assert masking.span(0.5, 1.0, 8) == (4, 8)


def test_fractions_of_a_training_must_rise() -> None:
    assert masking.checked_span(0, 1) == (0.0, 1.0)
    with pytest.raises(SettingError, match=r"begin must be below end, got 0.5 and 0.5"):
        masking.checked_span(0.5, 0.5)
