"""Settings of int8: bit widths, what excludes what, and weights for processors without VNNI."""

import logging

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.data import Splits, calibration_batches
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.quantization.integer import QuantizedLinear


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def rows(count=32):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def weights(**settings):
    small = mz.prepare(mlp(), [mz.Int8(**settings)], calibration=[rows()]).convert()
    return [m.weight for m in small.modules() if isinstance(m, QuantizedLinear)]


@pytest.mark.parametrize("setting", ["bits", "activation_bits"])
@pytest.mark.parametrize("value", [1, 9, 4.0, True])
def test_bits_are_from_2_to_8(setting, value):
    with pytest.raises(SettingError, match=f"{setting} must be an integer from 2 to 8, got"):
        mz.Int8(**{setting: value})


def test_rounding_bias_correction_and_portable_are_checked():
    with pytest.raises(SettingError, match="rounding has no choice 'adaptive'"):
        mz.Int8(rounding="adaptive")
    with pytest.raises(SettingError, match="bias_correction must be true or false, got 1"):
        mz.Int8(bias_correction=1)
    with pytest.raises(SettingError, match="portable must be true or false, got 'yes'"):
        mz.Int8(portable="yes")
    with pytest.raises(SettingError, match="layer_bits must map layer names to bits"):
        mz.Int8(layer_bits=4)


@pytest.mark.parametrize("settings", [{"activation_bits": 7}, {"rounding": "least_squares"}])
def test_what_needs_ranges_is_refused_with_dynamic_quantization(settings):
    (name,) = settings
    text = f"{name} must be .* with dynamic quantization, which finds ranges at run time, got"
    with pytest.raises(SettingError, match=text):
        mz.Int8(mode="dynamic", **settings)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(SettingError, match=f"{text}.*; set mode to static or linear"):
        mz.prepare(model, [mz.Int8(**settings)], calibration=[rows()])


def test_weights_of_few_bits_take_few_values():
    first, second = weights(bits=3, layer_bits={"2": 5})
    assert set(first.abs().flatten().tolist()) <= {0, 16, 32, 48}
    assert {w % 4 for w in second.abs().flatten().tolist()} == {0}
    assert len(second.abs().unique()) > 4


@pytest.mark.parametrize("settings", [{}, {"bits": 4}, {"layer_bits": {"0": 8}}, {"bits": 7}])
def test_portable_weights_are_within_63(settings):
    stored = weights(portable=True, **settings)
    assert all(int(w.abs().max()) <= 63 for w in stored)
    # two products of a weight and an activation fit 16 bits
    assert all(2 * 255 * int(w.abs().max()) < 2**15 for w in stored)


def test_weights_that_are_not_portable_use_all_8_bits():
    assert all(int(w.abs().max()) == 127 for w in weights())


@pytest.mark.parametrize("settings", [{"bits": 4}, {"portable": True}])
def test_dynamic_layers_have_their_bits_too(settings):
    zipped = mz.prepare(mlp(), [mz.Int8(mode="dynamic", **settings)])
    small = zipped.convert()
    most = 7 if "bits" in settings else 63
    assert [m.bits for m in small.modules() if hasattr(m, "bits")] == [4 if most == 7 else 7] * 2
    assert int(small.get_submodule("0").weight.abs().max()) == most
    assert [row.bits for row in zipped.reports[0].layers] == [4 if most == 7 else 7] * 2


def test_refuses_calibration_data_of_one_constant():
    with pytest.raises(DataError, match="are one constant, 1, in all 8 samples"):
        mz.prepare(mlp(), [mz.Int8()], calibration=[torch.ones(8, 6)])


def test_refuses_missing_and_empty_calibration_data():
    with pytest.raises(SettingError, match="int8 needs calibration with these settings"):
        mz.prepare(mlp(), [mz.Int8()])
    with pytest.raises(DataError, match="the calibration data are empty"):
        mz.prepare(mlp(), [mz.Int8()], calibration=[])


def test_names_the_activation_that_is_nan():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    with pytest.raises(ModelError, match="activation '_0' is NaN or infinite"):
        mz.prepare(model, [mz.Int8()], calibration=[rows().abs()])


def test_warns_of_calibration_data_smaller_than_a_batch(caplog):
    pairs = [(torch.ones(2), 0), (torch.zeros(2), 1), (torch.rand(2), 1)]
    splits = Splits(train=pairs, validation=pairs, test=pairs, classes=2)
    calibration_batches(splits, batch_size=3)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        calibration_batches(splits, batch_size=4)
    (record,) = caplog.records
    assert "the calibration data are 3 samples, fewer than a batch of 4" in record.getMessage()
