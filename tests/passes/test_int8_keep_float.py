import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import SelectionError, SettingError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def prepared(keep_float):
    return mz.prepare(net(), [mz.Int8(keep_float=keep_float)], calibration=[torch.randn(16, 4)])


def test_named_layers_stay_in_float_for_the_reason_given():
    found = prepared({"2": "it is the head"})
    module = found.convert()
    assert module.get_submodule("0").weight.dtype == torch.int8
    assert module.get_submodule("2").weight.dtype == torch.float32
    assert found.reports[0].protected == {"2": "it is the head"}


def test_an_empty_mapping_is_none():
    assert mz.Int8(keep_float={}) == mz.Int8()


@pytest.mark.parametrize(
    ("keep_float", "error", "message"),
    [
        ("fc", SettingError, "keep_float must be auto, or map layer names to reasons, got 'fc'"),
        (("fc",), SettingError, "keep_float must be auto, or map layer names to reasons"),
        ("auto", SettingError, "keep_float='auto' times files, which modelzip run and compress do"),
        ({"3": "why"}, SelectionError, "keep_float: there is no layer '3' to quantize"),
        ({"0": "a", "2": "b"}, SelectionError, "keep_float names every layer; leave int8 out"),
    ],
)
def test_wrong_settings_are_refused(keep_float, error, message):
    with pytest.raises(error, match=message):
        prepared(keep_float)
