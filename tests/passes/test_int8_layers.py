"""What int8 selects, protects, keeps in checkpoints, and refuses."""

import copy

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import DataError, ModelError, SelectionError, SettingError


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)),
    )


def test_targets_and_skip_choose_layers():
    x = torch.randn(4, 20)
    model = mz.prepare(mlp().eval(), [mz.Int8(skip=("7",))], calibration=[x]).convert()
    assert type(model.get_submodule("7")) is nn.Linear
    assert model.get_submodule("0").weight.dtype == torch.int8


def test_attention_is_protected_by_name():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    zipped = mz.prepare(Attending().eval(), [mz.Int8()], calibration=[torch.randn(2, 3, 8)])
    zipped.convert()
    assert zipped.reports[0].protected == {
        "attention.out_proj": "inside MultiheadAttention, which runs as one operation"
    }


def test_layers_inside_torchs_encoder_layer_are_protected_where_it_is_traced_whole():
    def model():
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.Sequential(layer, nn.Linear(8, 2)).eval()

    x = torch.randn(2, 3, 8)
    for mode, count in (("linear", 1), ("dynamic", 3)):
        zipped = mz.prepare(model(), [mz.Int8(mode=mode)], calibration=[x])
        zipped.convert()
        assert len(zipped.reports[0].layers) == count
        assert len(zipped.reports[0].protected) == 4 - count


def test_a_checkpoint_restores_the_same_integers(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 20)
    zipped = mz.prepare(mlp().eval(), [mz.Int8()], calibration=[x])
    zipped.save(tmp_path / "int8.safetensors")
    again = mz.load(mlp, tmp_path / "int8.safetensors")
    first, second = zipped.convert().state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def calibrate(model, x=None, **settings):
    x = torch.randn(4, 20) if x is None else x
    return mz.prepare(model, [mz.Int8(**settings)], calibration=[x])


def test_refuses_wrong_settings():
    with pytest.raises(SettingError, match="mode has no choice 'fixed'"):
        mz.Int8(mode="fixed")
    with pytest.raises(SettingError, match="calibrator has no choice 'max'"):
        mz.Int8(calibrator="max")
    with pytest.raises(SettingError, match=r"percentile must be from 50 to 100, got 0\.9999"):
        mz.Int8(percentile=0.9999)


def test_refuses_data_it_cannot_calibrate_on():
    with pytest.raises(SettingError, match="int8 needs calibration"):
        mz.prepare(mlp(), [mz.Int8()])
    with pytest.raises(DataError, match="calibration data are empty"):
        mz.prepare(mlp(), [mz.Int8()], calibration=[])
    with pytest.raises(DataError, match="calibration batch 0 holds NaN"):
        calibrate(mlp(), torch.full((2, 20), float("nan")))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight", float("nan"), "0.weight holds NaN or infinity; nothing was quantized"),
        ("7.bias", float("inf"), "7.bias holds NaN or infinity"),
        ("1.running_var", float("nan"), "1.running_var holds NaN or infinity"),
    ],
)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_refuses_weights_that_are_not_finite(name, value, message, mode):
    model = mlp().eval()
    with torch.no_grad():
        model.state_dict()[name][0] = value
    with pytest.raises(ModelError, match=message):
        calibrate(model, mode=mode)


def test_refuses_other_float_types():
    with pytest.raises(ModelError, match=r"0\.weight is float64; int8 works on float32"):
        calibrate(mlp().double(), torch.randn(4, 20).double())


def test_refuses_to_quantize_twice():
    with pytest.raises(SettingError, match="int8: the model is quantized already"):
        mz.prepare(mlp(), [mz.Int8(), mz.Int8()], calibration=[torch.randn(4, 20)])


def test_refuses_tied_weights_and_names_the_way_out():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight = model[0].weight
    with pytest.raises(ModelError, match=r"untie 0\.weight and 1\.weight; add skip: \[0, 1\]"):
        calibrate(model)


def test_refuses_a_layer_that_is_never_called():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(20, 2), nn.Linear(20, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ModelError, match=r"spare is never called.*add skip: \[spare\]"):
        calibrate(Partly())
    assert calibrate(Partly(), skip=("spare",)).convert()


def test_refuses_what_it_cannot_trace_but_for_dynamic():
    class Looping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 2)

        def forward(self, x):
            return self.layer(torch.stack([row / row.norm() for row in x]))

    with pytest.raises(ModelError, match=r"Looping was captured .* at their batch size alone"):
        calibrate(Looping())
    assert calibrate(Looping(), mode="dynamic").convert()


def test_refuses_where_no_selected_layer_has_an_integer_form():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(SelectionError, match=r"can quantize none .*padding_mode='reflect'"):
        calibrate(model, torch.randn(1, 3, 8, 8))


def test_a_failure_leaves_the_model_alone():
    model = mlp().eval()
    with torch.no_grad():
        model[0].weight[0, 0] = 1e30  # overflows further on
        model[1].running_var.fill_(1e-30)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="NaN or infinite"):
        calibrate(model, torch.linspace(1, 2, 80).view(4, 20) * 1e30)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert type(model[0]) is nn.Linear
