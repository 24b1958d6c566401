from __future__ import annotations

import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.numerics.rounding import least_squares_integers
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.rounding import error_left


def test_the_error_left_is_that_of_the_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 8, bias=False)).eval()
    x = torch.randn(512, 24) @ torch.randn(24, 24)  # correlated, so that there is much to gain
    weight = model[0].weight.detach()
    nearest = WeightQuantizer(weight, bits=3, method="fixed").eval()(weight)
    integers, scale = least_squares_integers(weight, x.T @ x, bits=3, cross=x.T @ x)
    fitted = integers * scale[:, None]
    outputs = [float((x @ (weight - q).T).square().sum()) for q in (fitted, nearest)]
    found = error_left(model, {"0": model[0]}, [Batch(x, None)], bits=3)
    assert found["0"] == pytest.approx(outputs[0] / outputs[1], rel=1e-3)
    assert found["0"] < 0.5


def test_grouped_convolutions_are_fitted_group_by_group():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4, padding=1)).eval()
    x = torch.randn(16, 8, 6, 6).cumsum(-1)
    found = error_left(model, {"0": model[0]}, [Batch(x, None)], bits=3)
    assert 0.0 < found["0"] < 0.9


def test_a_layer_that_never_runs_keeps_its_error():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    used = nn.Sequential(model["used"])
    layers = {"0": model["used"], "unused": model["unused"]}
    found = error_left(used, layers, [Batch(torch.randn(8, 4), None)], bits=3)
    assert found["unused"] == 1.0
