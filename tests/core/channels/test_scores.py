"""Scores of units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.scores import METHODS, score
from modelzip.errors import ModelError

X = torch.ones(2, 3)


def model_and_bundle() -> tuple[nn.Module, list[Bundle]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, find_bundles(model, X, chosen=["0"])[0]


def test_l1_averages_the_layers_that_make_and_read_a_channel() -> None:
    model, (bundle,) = model_and_bundle()
    made, read = model[0].weight.abs().sum(1), model[2].weight.abs().sum(0)
    expected = (made / made.mean() + read / read.mean()) / 2
    found = score(model, [bundle], method="l1")[bundle]
    torch.testing.assert_close(found, expected.detach().double())


def test_l2_squares() -> None:
    model, (bundle,) = model_and_bundle()
    made, read = model[0].weight.square().sum(1), model[2].weight.square().sum(0)
    expected = (made / made.mean() + read / read.mean()) / 2
    found = score(model, [bundle], method="l2")[bundle]
    torch.testing.assert_close(found, expected.detach().double())


@pytest.mark.parametrize("method", METHODS)
def test_scoring_leaves_the_model_alone(method: str) -> None:
    model, found = model_and_bundle()
    batch = Batch(X, torch.tensor([0, 1]))
    score(model, found, method=method, calibration=[batch])
    assert all(p.grad is None for p in model.parameters())


def test_weights_that_are_not_finite_are_named() -> None:
    model, found = model_and_bundle()
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(ModelError, match="the weights or gradients of '0' hold NaN or infinity"):
        score(model, found, method="l1")
