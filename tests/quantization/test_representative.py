import logging
import re

import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.errors import DataError
from modelzip.quantization.representative import compared_with_training, refuse_constant


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    for _ in range(30):
        model(torch.rand(16, 3, 8, 8))
    return model.eval()


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_refuses_data_of_one_constant(value):
    batches = [Batch((torch.full((4, 3), value), torch.full((4,), value)), None)] * 2
    with pytest.raises(DataError, match=f"are one constant, {value:g}, in all 8 samples; give"):
        refuse_constant(batches)


def test_takes_data_of_which_anything_differs():
    refuse_constant([Batch(torch.zeros(4, 3), None), Batch(torch.ones(4, 3), None)])
    refuse_constant([Batch({"a": torch.ones(2), "mask": torch.tensor([1, 0])}, None)])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x * 255, r"before 1 the values have 1\d\d times the deviation"),
        (lambda x: x * 0.1, r"have 0\.\d+ times the deviation of training"),
        (lambda x: x + 3, r"and lie 3\.\d+ deviations off; check how the inputs are scaled"),
    ],
)
def test_warns_of_data_on_another_scale_than_in_training(caplog, change, text):
    model = trained()
    with torch.no_grad(), compared_with_training(model):
        model(change(torch.rand(16, 3, 8, 8)))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(text, record.getMessage())


def test_says_nothing_of_data_like_those_of_training(caplog):
    model = trained()
    with torch.no_grad(), compared_with_training(model):
        model(torch.rand(16, 3, 8, 8))
        model(torch.rand(16, 3, 8, 8) * 255)  # the first batch alone is looked at
    assert not caplog.records
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_says_nothing_of_batch_norms_that_never_trained(caplog):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with torch.no_grad(), compared_with_training(model):
        model(torch.rand(16, 3, 8, 8) * 255)
    assert not caplog.records
