"""Batch norm re-estimation after and between cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.errors import ModelError, SelectionError, SettingError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    )


def batches(count: int = 3, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 5, 5, generator=generator) for _ in range(count)]


def prepared(*passes: Any, model: nn.Module | None = None) -> mz.Prepared:
    data = batches()
    return mz.prepare(model or net(), passes, example_inputs=data[0], calibration=data)


CUT = mz.PruneChannels(sparsity=0.5, round_to=1)


def test_what_a_cut_model_normalises_is_standard_again() -> None:
    model = prepared(CUT, mz.ReestimateBatchNorm()).convert()
    with torch.no_grad():
        inner = model[:4](torch.cat(batches()))
        normal = model[4](inner).transpose(0, 1).flatten(1)
    assert model[1].num_features == 4
    assert float(normal.mean(dim=1).abs().max()) < 0.02
    assert float((normal.var(dim=1) - 1).abs().max()) < 0.1


def test_channels_may_be_cut_again_after_it(tmp_path: Path) -> None:
    again = mz.ReestimateBatchNorm()
    zipped = prepared(CUT, again, mz.PruneChannels(sparsity=0.5, round_to=1), again)
    small = zipped.convert()
    assert small[1].num_features == 2
    rows = [report.layers[0] for report in zipped.reports if report.name == again.name]
    assert [(r.name, r.parameters_before, r.parameters_after) for r in rows] == [
        ("1", 8, 4),
        ("1", 4, 4),
    ]
    zipped.save(tmp_path / "a")
    with torch.no_grad():
        x = batches()[0]
        assert torch.equal(mz.load(net, tmp_path / "a")(x), small(x))


def test_integers_fold_the_new_statistics() -> None:
    x, passes = batches()[0], (CUT, mz.ReestimateBatchNorm())
    with torch.no_grad():
        floats, integers = (prepared(*p).convert()(x) for p in (passes, (*passes, mz.Int8())))
        stale = prepared(CUT, mz.Int8()).convert()(x)
    assert float((integers - floats).abs().mean()) < 0.05
    assert float((stale - floats).abs().mean()) > 0.2
    with pytest.raises(SettingError, match=r"reestimate_batch_norm .* must come before int8"):
        prepared(mz.Int8(), mz.ReestimateBatchNorm())


def test_norms_out_of_reach_are_reported() -> None:
    model = net()
    model[0].add_module("idle", nn.BatchNorm2d(2))
    zipped = prepared(mz.ReestimateBatchNorm(targets=("1", "0.idle")), model=model)
    zipped.convert()
    (report,) = zipped.reports
    assert [row.name for row in report.layers] == ["1"]
    assert report.protected == {"0.idle": "the calibration data do not reach it"}
    with pytest.raises(ModelError, match=r"reach none of: 0\.idle"):
        prepared(mz.ReestimateBatchNorm(targets=("0.idle",)), model=model)


def test_models_without_statistics_are_refused() -> None:
    for norm in (nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3)):
        with pytest.raises(SelectionError, match=r"has no BatchNorm1d/BatchNorm2d/.* layer"):
            prepared(mz.ReestimateBatchNorm(), model=nn.Sequential(norm))
