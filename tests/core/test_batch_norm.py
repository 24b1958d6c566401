"""Statistics of batch norms: those of the data, or the ones there were."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.batch_norm import has_statistics, reestimate
from modelzip.errors import DataError, ModelError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Dropout(0.5),
        nn.Conv2d(8, 4, 1),
        nn.BatchNorm2d(4),
    )


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [Batch(torch.randn(n, 3, 5, 5, generator=generator), None) for n in sizes]


def norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_statistics_are_the_means_of_those_of_the_batches_by_samples(sizes: Sequence[int]) -> None:
    model, data = net(), batches(*sizes)
    assert reestimate(model, norms(model), data) == []
    with torch.no_grad():
        read = [model[0](batch.inputs).transpose(0, 1).flatten(1) for batch in data]
    share = torch.tensor(sizes) / sum(sizes)
    for found, each in (
        (model[1].running_mean, [y.mean(dim=1) for y in read]),
        (model[1].running_var, [y.var(dim=1) for y in read]),
    ):
        torch.testing.assert_close(found, share @ torch.stack(each), atol=1e-6, rtol=1e-5)


def test_nothing_is_dropped_out_and_all_else_stays() -> None:
    model = net().train()
    model[4].eval()
    before = state(model)
    reestimate(model, {"4": model[4]}, batches(4, 4))
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    assert changed == ["4.running_mean", "4.running_var", "4.num_batches_tracked"]
    assert [m.training for m in model] == [True] * 4 + [False]
    assert model[4].momentum == 0.1
    again = net()
    reestimate(again, {"4": again[4]}, batches(4, 4))  # no randomness
    assert torch.equal(again[4].running_var, model[4].running_var)


def test_a_norm_that_does_not_run_is_named_and_stays() -> None:
    model = net()
    model[0].add_module("idle", nn.BatchNorm2d(2))
    before = state(model[0].idle)
    assert reestimate(model, norms(model), batches(4)) == ["0.idle"]
    assert all(torch.equal(t, before[n]) for n, t in model[0].idle.state_dict().items())
    with pytest.raises(ModelError, match=r"the calibration data reach none of: 0\.idle"):
        reestimate(model, {"0.idle": model[0].idle}, batches(4))


def test_norms_without_statistics_have_none() -> None:
    assert has_statistics(nn.BatchNorm1d(2))
    assert not has_statistics(nn.BatchNorm1d(2, track_running_stats=False))
    assert not has_statistics(nn.LayerNorm(2))


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such input")


def test_after_an_error_the_model_is_as_it_was() -> None:
    broken = net()
    broken[3].weight.data[0] = torch.nan
    single = Batch(torch.ones(1, 3, 3, 3), None)
    for model, data, kind, message in (
        (broken, batches(4), ModelError, "the statistics of 4 on the calibration data are NaN"),
        (net(), [*batches(2), single], DataError, "batch of 1 gives a batch norm one value a"),
        (net().append(Failing()), batches(4), ValueError, "^no such input$"),
    ):
        before = state(model)
        with pytest.raises(kind, match=message):
            reestimate(model, norms(model), data)
        after = model.state_dict()
        assert all(torch.equal(t, after[n]) for n, t in before.items() if n != "3.weight")
        assert model[1].momentum == 0.1
