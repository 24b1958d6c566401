"""Pressure on channels: norms of units, the weights of the weak, and records from strangers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import modelzip as mz
from modelzip.core import surgery
from modelzip.core.channels import pressure
from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.resize import Slot
from modelzip.errors import SettingError
from tests.architectures import MODELS, build

PAIR = torch.tensor([[0], [1]])


def chain() -> nn.Sequential:
    """Two units: rows of the first layer, their norm's scales, and columns of the second."""
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[1.0], [2.0]])
    model[1].weight.data = torch.tensor([0.5, -3.0])
    model[2].weight.data = torch.tensor([[4.0, 1.0]])
    return model


SLOTS = (Slot("0", "out"), Slot("1", "out"), Slot("2", "in"))
BUNDLE = Bundle(dict.fromkeys(SLOTS, PAIR))


def test_norm_of_a_unit_is_over_all_layers_and_no_bias() -> None:
    norms = pressure.squared_norms(chain(), BUNDLE)
    assert norms.tolist() == [1 + 0.25 + 16, 4 + 9 + 1]


def test_unit_of_several_channels_has_the_norm_of_all() -> None:
    both = Bundle(dict.fromkeys(SLOTS, torch.tensor([[0, 1]])))
    assert pressure.squared_norms(chain(), both).tolist() == [17.25 + 14]


def test_norm_layer_without_scales_counts_for_nothing() -> None:
    model = chain()
    model[1] = nn.BatchNorm1d(2, affine=False)
    assert pressure.squared_norms(model, BUNDLE).tolist() == [17.0, 5.0]


def test_depthwise_convolution_counts_once() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 3, groups=2, bias=False))
    both = Bundle({Slot("0", "out"): PAIR, Slot("0", "in"): PAIR})
    expected = model[0].weight.square().sum((1, 2))
    assert torch.allclose(pressure.squared_norms(model, both), expected)


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=9), st.floats(0, 6))
def test_weights_fall_from_the_weakest_to_the_strongest(
    norms: list[float], contrast: float
) -> None:
    found = pressure.weights(torch.tensor(norms), contrast=contrast)
    assert float(found.min()) == 1.0
    spread = max(norms) - min(norms)
    for norm, weight in zip(norms, found.tolist(), strict=True):
        power = contrast * (max(norms) - norm) / spread if spread > 1e-30 else 0.0
        assert weight == pytest.approx(2**power, rel=1e-4)


def test_weaker_half_has_its_fraction_of_the_norm() -> None:
    assert pressure.weaker_half(chain(), [BUNDLE]) == {"0": pytest.approx(14 / (17.25 + 14))}


def test_pressure_follows_copies_and_leaves_nothing() -> None:
    model = chain()
    before = model.state_dict().keys()
    pressure.attach(model, mz.GroupSparsity(), [BUNDLE], 4)
    copied = surgery.clone(model)
    found = pressure.attached(copied)
    assert found is not None
    assert pressure.still_whole(copied, found)
    pressure.detach(copied)
    assert pressure.attached(copied) is None
    assert copied.state_dict().keys() == before
    assert copied(torch.ones(3, 1)).shape == (3, 1)


def test_pressure_sees_a_cut_and_a_layer_gone() -> None:
    for cut in (2, 1):
        model = chain()
        pressure.attach(model, mz.GroupSparsity(), [BUNDLE], 4)
        model[cut] = nn.Linear(1, 1)
        found = pressure.attached(model)
        assert found is not None
        assert not pressure.still_whole(model, found)


@pytest.mark.parametrize("name", list(MODELS))
def test_bundles_of_every_architecture_come_back_from_their_record(name: str) -> None:
    model, x = build(name)
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    bundles, _ = find_bundles(model, x, chosen=layers)
    if bundles:
        again = pressure.from_record(build(name)[0], pressure.to_record(model, bundles))
        for ours, theirs in zip(again, bundles, strict=True):
            assert list(ours.channels) == list(theirs.channels)
            norms = [pressure.squared_norms(model, bundle) for bundle in (ours, theirs)]
            assert torch.equal(*norms)
            assert bool((norms[0] > 0).all())


def entry(**changes: Any) -> dict[str, Any]:
    return {"layer": "0", "side": "out", "of": 2, "channels": [[0], [1]], **changes}


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (None, "damaged: it names no bundle"),
        ([], "damaged: it names no bundle"),
        ([3], "damaged: a bundle is 3"),
        ([[]], "layers of a bundle differ in their units"),
        ([[entry(), entry(layer="2", side="in", channels=[[0]])]], "differ in their units"),
        ([[entry(layer="7")]], "cannot restore '7': it has no channels out, and had 2"),
        ([[entry(side="up")]], "cannot restore '0': it has no channels up"),
        ([[entry(of=3)]], "cannot restore '0': it has 2 channels out, and had 3 when"),
        ([[entry(channels=[[0], [2]])]], "not lists of one length of numbers from 0 to 1"),
        ([[entry(channels=[[0], [0, 1]])]], "not lists of one length"),
        ([[entry(channels=[[], []])]], "not lists of one length"),
        ([[entry(channels=[[0], [True]])]], "not lists of one length"),
        ([[entry(channels=[0, 1])]], "not lists of one length"),
        ([[entry(channels=5)]], "not lists of one length"),
        ([[entry(channels=[])]], "not lists of one length"),
    ],
)
def test_damaged_record_is_refused_by_name(record: object, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        pressure.from_record(chain(), record)
