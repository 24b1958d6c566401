import pytest
import torch
from torch import nn

from modelzip.errors import ModelError
from modelzip.train.batch_statistics import compared, distance


def trained() -> nn.Sequential:
    """Batch norms that have seen means 3 and deviations 2, then of that normalised 0 and 1."""
    net = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1)).eval()
    net[0].running_mean.fill_(3.0)
    net[0].running_var.fill_(4.0 - net[0].eps)
    return net


def test_the_distance_is_in_running_deviations():
    norm = trained()[0]
    # mean 7 is two deviations off, deviation 4 is twice the running one
    values = torch.tensor([3.0, 11.0]).view(2, 1, 1, 1)
    assert distance(norm, values).item() == pytest.approx(2.0**2 + 1.0**2, rel=1e-4)


def test_data_like_those_of_training_are_at_no_distance():
    net = trained()
    with compared(net) as gap:
        net(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))
        assert gap.take().item() == pytest.approx(0.0, abs=1e-6)


def test_the_distance_is_the_mean_over_norms_and_starts_anew():
    net = trained()
    with compared(net) as gap:
        net(torch.tensor([3.0, 7.0]).view(2, 1, 1, 1))  # one off; after it, mean 1, deviation 1
        first = gap.take().item()
        net(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))
        assert gap.take().item() == pytest.approx(0.0, abs=1e-6)
    assert first == pytest.approx(1.0, rel=1e-3)
    assert not net[0]._forward_pre_hooks


def test_a_model_without_batch_norm_is_refused():
    for net in (nn.Sequential(nn.Linear(2, 2)), nn.BatchNorm1d(2, track_running_stats=False)):
        with (
            pytest.raises(ModelError, match=r"has no batch norm .* calibrate on real samples"),
            compared(net),
        ):
            pass


def test_a_model_that_was_never_trained_is_refused():
    with (
        pytest.raises(ModelError, match=r"no batch norm of BatchNorm1d was ever trained"),
        compared(nn.BatchNorm1d(2)),
    ):
        pass


def test_norms_that_never_run_are_refused():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = trained()

        def forward(self, x):
            return x

    net = Idle()
    with compared(net) as gap:
        net(torch.ones(2, 1))
        with pytest.raises(ModelError, match="no batch norm runs when the model does"):
            gap.take()
