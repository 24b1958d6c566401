import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.core.factors.moments import input_moments
from modelzip.errors import DataError


class Keywords(nn.Module):
    """A convolution of a sample without a batch axis, and a linear layer called by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.unused = nn.Conv1d(2, 3, 3), nn.Linear(4, 5), nn.Linear(1, 1)

    def forward(self, x):
        return self.conv(x[0]).sum() + self.linear(input=x).sum()


def test_moments_are_over_all_samples_positions_and_batches():
    torch.manual_seed(0)
    model = Keywords()
    layers = {n: m for n, m in model.named_modules() if n}
    batches = [torch.randn(n, 2, 4) for n in (1, 3)]
    found = input_moments(model, layers, [Batch(b, None) for b in batches])
    assert set(found) == {"conv", "linear"}
    rows = torch.cat([b[0].T for b in batches]).double()
    assert torch.allclose(found["conv"].mean, rows.mean(0))
    assert torch.allclose(found["conv"].second, rows.T @ rows / 8)
    rows = torch.cat([b.reshape(-1, 4) for b in batches]).double()
    assert torch.allclose(found["linear"].covariance, torch.cov(rows.T, correction=0))


def test_inputs_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].bias.fill_(torch.inf)
    with pytest.raises(DataError, match=r"^1 takes in NaN or infinity on the calibration data$"):
        input_moments(model, {"1": model[1]}, [Batch(torch.ones(1, 2), None)])
