from __future__ import annotations

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip import zoo
from modelzip.errors import SettingError

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_file_has_the_size_asked_for(tmp_path):
    torch.manual_seed(0)
    model = zoo.resnet20().eval()
    zipped = mz.prepare(model, [mz.Int8(size="0.14x")], calibration=[IMAGES])
    small = zipped.convert()
    whole = mz.export_onnx(model, IMAGES, tmp_path / "float.onnx").stat().st_size
    size = mz.export_onnx(small, IMAGES, tmp_path / "small.onnx").stat().st_size
    assert 0.13 < size / whole <= 0.14
    # the report says what each layer got
    assert len({layer.bits for layer in zipped.reports[0].layers}) > 1


def test_the_bits_found_are_found_again_in_a_checkpoint(tmp_path):
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 10)).eval()

    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    zipped = mz.prepare(make(), [mz.Int8(size="0.25x")], calibration=[x])
    zipped.save(tmp_path / "small.safetensors")
    assert torch.equal(mz.load(make, tmp_path / "small.safetensors")(x), zipped.convert()(x))


def test_size_excludes_bits():
    with pytest.raises(SettingError, match="size chooses the bits of each layer"):
        mz.Int8(size="0.12x", bits=4)
    with pytest.raises(SettingError, match="size must be a ratio to the original"):
        mz.Int8(size="12%")


def test_size_needs_calibration_data_even_where_ranges_do_not():
    with pytest.raises(SettingError, match="int8 needs calibration"):
        mz.prepare(nn.Linear(4, 2), [mz.Int8(mode="dynamic", size="0.9x")])
