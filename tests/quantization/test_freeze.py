"""Folding and freezing, against formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.quantization.fake import ActivationQuantizer, WeightQuantizer
from modelzip.quantization.freeze import freeze
from modelzip.quantization.integer import (
    Quantize,
    QuantizedAdd,
    QuantizedAveragePool,
    QuantizedConv,
    QuantizedLinear,
)

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(9))


def prepared(model, x=X):
    return mz.prepare(model.eval(), [mz.Int8(bias_correction=False)], calibration=[x])


class ConvNorm(nn.Module):
    """A convolution and its batch norm, then a layer, so that the first gives integers."""

    def __init__(self, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, bias=bias)
        self.norm = nn.BatchNorm2d(5)
        self.last = nn.Conv2d(5, 4, 1)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.conv(x))))


def difficult():
    """Batch norm channels: negative, zero, and tiny gamma; tiny variance; a dead weight."""
    model = ConvNorm()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([-1.5, 0.0, 1e-7, 2.0, 1.0]))
        model.norm.bias.copy_(torch.tensor([0.5, 0.75, -0.25, 3.0, 1.0]))
        model.norm.running_mean.copy_(torch.tensor([0.3, -2.0, 0.1, 0.2, 0.0]))
        model.norm.running_var.copy_(torch.tensor([0.2, 1.0, 1.0, 1e-9, 1.0]))
        model.conv.weight[4] = 0
    return model


def folded(model):
    """Weight and bias of convolution and batch norm as one, in float64."""
    norm, conv = model.norm, model.conv
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros(5) if conv.bias is None else conv.bias
    weight = conv.weight.double() * factor.view(-1, 1, 1, 1)
    return weight, (bias.double() - norm.running_mean.double()) * factor + norm.bias.double()


@pytest.mark.parametrize("make", [ConvNorm, difficult, lambda: ConvNorm(bias=False)])
def test_batch_norm_is_folded_into_weight_scale_and_bias(make):
    model = make()
    weight, bias = (t.detach() for t in folded(model))
    conv = prepared(model).convert().get_submodule("conv")
    scale = conv.weight_scale.double()
    stored = conv.weight.double() * scale.view(-1, 1, 1, 1)
    # rounded once, to the original's grid, or once more where a wide bias coarsens it
    assert ((stored - weight).abs() <= 1.001 * scale.view(-1, 1, 1, 1)).all()
    step = conv.in_scale.double() * scale
    assert ((conv.bias.double() * step - bias).abs() <= 0.501 * step).all()


def test_folding_leaves_the_trained_integers_alone_but_for_the_sign_of_gamma():
    model = ConvNorm()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0]))
    zipped = prepared(model)
    layer = zipped.model.get_submodule("conv")
    quantizer = layer.parametrizations.weight[0]
    integers, _ = quantizer.integers(layer.parametrizations.weight.original)
    sign = torch.tensor([1.0, -1, 1, -1, 1]).view(-1, 1, 1, 1)
    frozen = zipped.convert().get_submodule("conv").weight
    assert torch.equal(frozen.float(), integers * sign)


def test_a_zero_gamma_leaves_the_bias_alone():
    conv = prepared(difficult()).convert().get_submodule("conv")
    assert not conv.weight[1].any()
    assert float(conv.bias[1] * conv.bias_scale[1]) == pytest.approx(0.75, rel=1e-5)


def test_biases_fit_an_int32_with_room_for_the_sum():
    model = difficult()
    with torch.no_grad():
        model.conv.weight[2] = 1e-12  # a bias of 300 would be 10**14 steps
        model.conv.bias[2] = 300.0
        model.norm.weight[2] = 1.0
    conv = prepared(model).convert().get_submodule("conv")
    assert conv.bias.abs().max() <= 2**22
    _, bias = folded(model)
    torch.testing.assert_close(
        (conv.bias * conv.bias_scale).double(), bias.detach(), rtol=1e-5, atol=0.02
    )


@pytest.mark.parametrize(("bits", "factor"), [(2, 32), (4, 8), (6, 2), (7, 1), (8, 1)])
def test_integers_of_few_bits_are_spread_for_a_finer_bias(bits, factor):
    model = ConvNorm().eval()
    zipped = mz.prepare(model, [mz.FakeQuantize(bits=bits)], example_inputs=X)
    weight = zipped.convert().get_submodule("conv").weight.int()
    assert not (weight % factor).any()
    assert int(weight.abs().max()) == (2 ** (bits - 1) - 1) * factor


def test_nothing_of_training_is_left():
    model = prepared(difficult()).convert()
    kinds = (ActivationQuantizer, WeightQuantizer, nn.BatchNorm2d, nn.Conv2d)
    assert not [n for n, m in model.named_modules() if isinstance(m, kinds)]
    assert not list(model.parameters())
    assert not [m for m in model.modules() if nn.utils.parametrize.is_parametrized(m)]


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.two.weight, 0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        y = F.relu(self.one(self.conv(input=x)))
        y = self.two(self.conv(y))
        y = F.relu(y + y)
        return self.head(y.mean((2, 3)))


def test_each_operation_gets_its_integer_form():
    model = prepared(Everything()).convert()
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(QuantizedConv) == 2
    assert kinds.count(QuantizedAdd) == 1
    assert kinds.count(QuantizedAveragePool) == 1
    assert kinds.count(QuantizedLinear) == 1
    assert kinds.count(Quantize) == 1


def test_each_call_of_a_shared_layer_is_frozen_with_its_own_batch_norm():
    model = prepared(Everything()).convert()
    first, second = (model.get_submodule(f"conv_call{i}") for i in (1, 2))
    assert torch.equal(first.weight, second.weight)
    torch.testing.assert_close(second.weight_scale, 0.5 * first.weight_scale)


def test_the_report_names_layers_that_contain_call():
    model = nn.Sequential()
    model.add_module("first_call", nn.Linear(4, 3))
    model.add_module("my_call2", nn.Linear(3, 2))
    zipped = prepared(model, torch.randn(4, 4))
    zipped.convert()
    rows = zipped.reports[0].layers
    assert [(r.name, r.parameters_before) for r in rows] == [("first_call", 15), ("my_call2", 8)]


def test_frozen_outputs_are_close_to_the_floats():
    model = Everything().eval()
    with torch.no_grad():
        expected = model(X)
        result = prepared(model).convert()(X)
    assert float((result - expected).abs().max() / expected.abs().max()) < 0.05


def test_a_frozen_graph_has_nothing_to_freeze():
    model = prepared(Everything()).convert()
    with torch.no_grad():
        before = model(X)
        freeze(model)
        assert torch.equal(model(X), before)
