import numpy as np
import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.sensitivity import sensitivity


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    ).eval()  # fmt: skip


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 6, 6, generator=generator) for _ in range(count)]


def softened(logits):
    shifted = np.exp(logits / 3 - (logits / 3).max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def test_kl_and_agreement_are_those_of_the_model_with_one_layer_rounded_by_hand():
    model, data = net(), batches()
    rows = sensitivity(model, data, bits=(3,), activations=False)
    rounded = net()
    weight = rounded[4].weight.detach().numpy()
    # the library's 3-bit scales are least squares; take the levels it chose and check the rest
    quantized = WeightQuantizer(rounded[4].weight, bits=3, method="fixed")
    integers, scale = quantized.integers(rounded[4].weight)
    assert set(np.unique(integers)) <= {-3, -2, -1, 0, 1, 2, 3}
    assert np.abs(integers.numpy() * scale.numpy()[:, None] - weight).max() < np.abs(weight).max()
    with torch.no_grad():
        rounded[4].weight.copy_(integers * scale[:, None])
        p, q = (softened(m(torch.cat(data)).numpy().astype(np.float64)) for m in (model, rounded))
    row = next(r for r in rows if r.layer == "4")
    assert row.kl == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), rel=1e-5)
    assert row.agreement == (p.argmax(1) == q.argmax(1)).mean()
    assert row.parameters == 3 * 64


def test_fewer_bits_cost_more():
    rows = sensitivity(net(), batches(), bits=(2, 4, 8), activations=False)
    assert [(r.layer, r.bits) for r in rows] == [(n, b) for n in ("0", "4") for b in (2, 4, 8)]
    for name in ("0", "4"):
        costs = [row.kl for row in rows if row.layer == name]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] < 1e-4


def test_an_outlier_at_a_layers_input_costs_much():
    model, data = net(), batches()
    data[0][0, 0, 0, 0] = 1e4  # one value takes up the whole range
    with_input = sensitivity(model, data)
    weights_alone = sensitivity(model, data, activations=False)
    assert with_input[0].kl > 100 * weights_alone[0].kl
    assert with_input[0].agreement < 1.0


def test_the_model_is_left_as_it_was():
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sensitivity(model, batches(), bits=(2,))
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_pruned_weights_stay_pruned():
    prepared = mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.75)])
    rows = sensitivity(prepared.model, batches(), bits=(8,))
    plain = sensitivity(prepared.convert(), batches(), bits=(8,))
    assert [row.kl for row in rows] == pytest.approx([row.kl for row in plain], rel=1e-6)


def test_only_the_layers_asked_for_are_tried():
    rows = sensitivity(net(), [(x, None) for x in batches()], layers=["4"])
    assert [row.layer for row in rows] == ["4"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bits": ()}, SettingError, "bits is empty; give at least one"),
        ({"bits": (9,)}, SettingError, "bits must be an integer from 2 to 8, got 9"),
        ({"layers": ["5"]}, SettingError, "there is no layer '5' to quantize"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        sensitivity(net(), batches(), **settings)


def test_data_and_models_that_cannot_be_judged_are_refused():
    with pytest.raises(DataError, match="the calibration data are empty"):
        sensitivity(net(), [])
    with pytest.raises(DataError, match="calibration batch 0 holds no samples"):
        sensitivity(nn.Sequential(nn.Linear(2, 2)), [torch.zeros(0, 2)], activations=False)
    with pytest.raises(ModelError, match="at least two dimensions"):
        sensitivity(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), [torch.ones(4, 2)])
    broken = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        broken[0].bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="NaN or infinite on the calibration data"):
        sensitivity(broken, [torch.ones(4, 2)])


def test_a_layer_that_never_runs_is_refused_by_name():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    assert [row.layer for row in sensitivity(Spare(), [torch.ones(4, 2)])] == ["used"]
    with pytest.raises(ModelError, match="spare is never called as a module"):
        sensitivity(Spare(), [torch.ones(4, 2)], layers=["spare"])
