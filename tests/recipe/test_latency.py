"""Widths that meet a latency, by timing files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.core.base import Context
from modelzip.core.running import as_batches
from modelzip.errors import SettingError
from modelzip.recipe.keep_float import Serving
from modelzip.recipe.latency import Bench, Later, fit, settle
from modelzip.report.text import table
from modelzip.report.widths import WIDTHS, LatencyFit, width_rows

X = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0))
PRUNE = mz.PruneChannels(latency="0.6x", round_to=16)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        Block(32),
        Block(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def later(*passes: mz.Pass) -> Later:
    return Later(
        passes=passes,
        example_inputs=X[:4],
        calibration=as_batches([X]),
        training_steps=None,
        serving=Serving(batch_sizes=(1,)),
        seed=0,
    )


class Weighed(Bench):
    """Takes the size of a file for its time, which no other work on the machine disturbs."""

    def ratios(self, files: Sequence[Path], *, seed: int = 0) -> npt.NDArray[np.float64]:
        whole = self.original.stat().st_size
        return np.array([[path.stat().st_size / whole] for path in files])


def fitted(
    prune: mz.PruneChannels, folder: Path, *passes: mz.Pass
) -> tuple[mz.PruneChannels, LatencyFit]:
    model, after = net(), later(*passes)
    bench = Weighed(prune, model, later=after, folder=folder, original=model)
    context = Context(example_inputs=X[:4], calibration=after.calibration)
    return fit(bench, *prune.search(model, context))


def test_the_file_with_the_widths_found_is_the_one_measured() -> None:
    model = net()
    step, how = settle(PRUNE, model, original=model, later=later())
    assert step.latency is None
    assert dict(step.widths or {}) == {row.layer: row.width for row in how.rows}
    assert how.measured <= how.target == 0.6
    assert all(row.width % 16 == 0 and row.width < row.of for row in how.rows)
    small = mz.prepare(model, [step], example_inputs=X[:4]).convert()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_predicts_what_is_measured(tmp_path: Path) -> None:
    _, how = fitted(mz.PruneChannels(latency="0.6x", round_to=8), tmp_path)
    assert how.measured <= 0.6
    assert how.dense == 1.0
    assert how.predicted == pytest.approx(how.measured, abs=0.1)


def test_blocks_go_where_widths_are_not_enough(tmp_path: Path) -> None:
    widths = mz.PruneChannels(latency="0.5x", round_to=32, max_sparsity=0.5)
    with pytest.raises(SettingError, match=r"latency=0.5x cannot be met: .* set blocks: true"):
        fitted(widths, tmp_path)
    step, how = fitted(dataclasses.replace(widths, blocks=True), tmp_path)
    gone = [row.layer for row in how.rows if row.width == 0]
    assert gone
    small = mz.prepare(net(), [step], example_inputs=X[:4]).convert()
    assert all(isinstance(small.get_submodule(name), nn.Identity) for name in gone)
    assert "the block is gone" in table(width_rows(how), WIDTHS)


def test_later_passes_are_in_the_files_that_are_timed(tmp_path: Path) -> None:
    model = net()
    bench = Bench(PRUNE, model, later=later(mz.Int8()), folder=tmp_path, original=model)
    kinds = {node.op_type for node in onnx.load(bench.cut({"2.conv1": 32})).graph.node}
    assert "QuantizeLinear" in kinds
    assert "QuantizeLinear" not in {n.op_type for n in onnx.load(bench.original).graph.node}


def test_a_target_that_is_met_already_is_refused(tmp_path: Path) -> None:
    prune = mz.PruneChannels(latency="0.9x")
    with pytest.raises(SettingError, match=r"latency=0.9x is met without pruning: the file takes"):
        fitted(prune, tmp_path, mz.Int8())


def test_python_alone_cannot_time_files() -> None:
    with pytest.raises(SettingError, match="latency is met by timing files, which a recipe"):
        mz.prepare(net(), [PRUNE], example_inputs=X[:4])
