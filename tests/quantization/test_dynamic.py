import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from modelzip.quantization import dynamic
from modelzip.quantization.dynamic import DynamicQuantizedLinear, dynamic_integers

FLOATS = st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30)


def specified(x):
    """DynamicQuantizeLinear as https://onnx.ai/onnx/operators/ words it, in float32."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = (high - low) / np.float32(255)
    if scale == 0:
        scale = np.float32(1)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255) - zero, scale


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=FLOATS))
def test_integers_follow_the_specification(x):
    integers, scale = dynamic_integers(torch.from_numpy(x))
    expected, expected_scale = specified(x)
    assert float(scale) == float(expected_scale)
    np.testing.assert_array_equal(integers.numpy(), expected)


def linear(seed=0, i=6, o=4, **kw):
    torch.manual_seed(seed)
    return nn.Linear(i, o, **kw)


def frozen(model):
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            dynamic.attach(module, bits=8)
    converted = copy.deepcopy(model)
    dynamic.freeze(converted)
    return model.eval(), converted.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 1, 3, 6)])
def test_before_and_after_freezing_the_outputs_are_the_same(shape, bias):
    prepared, converted = frozen(nn.Sequential(linear(bias=bias)))
    x = torch.randn(shape)
    assert isinstance(converted[0], DynamicQuantizedLinear)
    assert converted[0].weight.dtype == torch.int8
    with torch.no_grad():
        torch.testing.assert_close(converted(x), prepared(x), atol=1e-5, rtol=1e-5)


def test_result_is_within_the_rounding_of_both_factors():
    layer = linear(i=64, bias=False)
    weight = layer.weight.detach().double()
    _, converted = frozen(nn.Sequential(layer))
    x = torch.rand(32, 64) * 2 - 1
    with torch.no_grad():
        error = (converted(x).double() - x.double() @ weight.t()).abs().max()
    step_x, step_w = 2 / 255, float(weight.abs().max()) / 127
    assert error <= 64 * (step_x / 2 * float(weight.abs().max()) + 1.01 * step_w / 2)


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_constant_inputs_work(value):
    prepared, converted = frozen(nn.Sequential(linear()))
    x = torch.full((3, 6), value)
    with torch.no_grad():
        assert torch.isfinite(converted(x)).all()
        torch.testing.assert_close(converted(x), prepared(x))


def test_gradients_pass_straight_to_weight_and_input():
    layer = linear(bias=False)
    weight = layer.weight.detach().clone()
    dynamic.attach(layer, bits=8)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 6), atol=0.01, rtol=0.01)
    assert layer.parametrizations.weight.original.grad is not None


def test_torchs_encoder_layer_computes_with_its_integer_layers():
    # in eval mode it would otherwise read the weights into a fused float kernel
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        before = encoder(x)
        for layer in (encoder.linear1, encoder.linear2):
            dynamic.attach(layer, bits=8)
        dynamic.freeze(encoder)
        assert isinstance(encoder.linear1, DynamicQuantizedLinear)
        torch.testing.assert_close(encoder.eval()(x), before, atol=0.05, rtol=0.05)
