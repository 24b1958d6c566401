"""Layers ranked by what cutting their channels costs."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from modelzip.core.channels.sensitivity import Cut
from modelzip.errors import MissingExtraError, ModelError, SettingError
from modelzip.report.channels import (
    LayerCuts,
    channel_rows,
    plot_channels,
    plottable,
    rank_channels,
)

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).eval()


def cuts() -> list[LayerCuts]:
    some = {n: Cut(kl=n / 10, agreement=1 - n / 20, accuracy=None) for n in (6, 4, 2)}
    none = {4: Cut(kl=0.0, agreement=1.0, accuracy=0.5)}
    rows = [LayerCuts(layer=f"layer{i}", channels=8, cuts=some) for i in range(12)]
    return [*rows, LayerCuts(layer="free", channels=8, cuts=none)]


def test_each_layer_is_cut_to_three_widths_and_the_dearest_comes_first() -> None:
    batches = [(X[:150], torch.zeros(150, dtype=torch.long)), (X[150:], torch.ones(150).long())]
    rows = rank_channels(net(), batches, example_inputs=X[:2])
    assert {row.layer: (row.channels, list(row.cuts)) for row in rows} == {
        "0": (16, [12, 8, 4]),
        "2": (8, [6, 4, 2]),
    }
    halves = [list(row.cuts.values())[1].kl for row in rows]
    assert halves[0] >= halves[1] > 0
    assert all(cut.accuracy is not None for row in rows for cut in row.cuts.values())


def test_layers_that_are_not_used_rank_last() -> None:
    model = net()
    nn.init.zeros_(model[2].weight[:, :])
    rows = rank_channels(model, [(X, None)], example_inputs=X[:2])
    assert rows[-1].layer == "0"
    assert all(cut.kl == 0 for cut in rows[-1].cuts.values())


def test_narrow_layers_have_fewer_widths() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    (row,) = rank_channels(model, [(X, None)], example_inputs=X[:2])
    assert list(row.cuts) == [1]


def test_about_256_samples_are_used() -> None:
    model, seen = net(), []

    class Counting(nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return super().forward(x)

    model[1] = Counting()
    batches = [(X[i : i + 100], torch.zeros(100)) for i in (0, 100, 200, 0, 100)]
    rank_channels(model, batches, example_inputs=X[:2])
    by_size = seen.count(100)
    seen.clear()
    rank_channels(model, batches[:3], example_inputs=X[:2])
    assert seen.count(100) == by_size


def test_cells_are_readable() -> None:
    assert channel_rows([cuts()[0], cuts()[-1]])[2:] == [
        ["layer0", 8, 2, "2.00e-01", "90.00 %", ""],
        ["free", 8, 4, "0.00e+00", "100.00 %", "50.00 %"],
    ]


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ModelError, match="no layer can lose channels: '0' "):
        rank_channels(nn.Sequential(nn.Linear(4, 3)), [(X, None)], example_inputs=X[:2])
    with pytest.raises(SettingError, match="importance has no choice 'l3'; there are: activation"):
        rank_channels(net(), [(X, None)], example_inputs=X[:2], importance="l3")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_curves_are_drawn_the_same_each_time(tmp_path, name, start) -> None:
    path = plot_channels(cuts(), tmp_path / name)
    first = path.read_bytes()
    assert first.startswith(start)
    assert plot_channels(cuts(), tmp_path / name).read_bytes() == first


def test_the_legend_names_the_first_eight_layers(tmp_path, monkeypatch) -> None:
    from matplotlib import rcParams

    monkeypatch.setitem(rcParams, "svg.fonttype", "none")
    text = plot_channels(cuts(), tmp_path / "a.svg").read_text()
    named = [row.layer for row in cuts() if f">{row.layer}<" in text]
    assert named == [f"layer{i}" for i in range(8)]


def test_plots_of_other_kinds_are_refused(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"written as \.png or \.svg, got 'a\.pdf'"):
        plot_channels(cuts(), tmp_path / "a.pdf")


def test_without_matplotlib_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr("modelzip.report.channels.find_spec", lambda name: None)
    assert importlib.util.find_spec("matplotlib") is not None
    with pytest.raises(MissingExtraError, match=r"plotting needs matplotlib: .*modelzip\[plot\]"):
        plottable("a.png")
