import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip.numerics.affine import (
    SMALLEST_SCALE,
    activation_grid,
    fake_quantize,
    levels,
    mse_scale,
    round_to_grid,
    symmetric_scale,
    weight_levels,
)

ENDS = st.floats(-1e6, 1e6)
BITS = st.integers(2, 8)
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-1e3, 1e3, width=32),
)


@pytest.mark.parametrize(("bits", "top", "signed"), [(2, 3, 1), (4, 15, 7), (8, 255, 127)])
def test_levels(bits, top, signed):
    assert (levels(bits), weight_levels(bits)) == (top, signed)


@given(ENDS, ENDS, BITS, st.booleans())
def test_grid_covers_the_range_and_holds_zero(a, b, bits, nonnegative):
    low, high = min(a, b), max(a, b)
    scale, zero = activation_grid(low, high, bits=bits, nonnegative=nonnegative)
    top = 2**bits - 1
    assert scale >= SMALLEST_SCALE
    assert 0 <= zero <= top
    if nonnegative:
        assert zero == 0
    else:  # the zero point is rounded, so an end may be cut by half a step
        assert -zero * scale <= min(low, 0) + 0.501 * scale
    assert (top - zero) * scale >= max(high, 0) - 0.501 * scale


@given(WEIGHTS, BITS)
def test_largest_weight_of_each_channel_is_the_last_integer(weight, bits):
    tensor = torch.from_numpy(weight)
    scale = symmetric_scale(tensor, bits=bits).numpy()
    peak = np.abs(weight).reshape(len(weight), -1).max(1)
    np.testing.assert_allclose(scale, np.maximum(peak / (2 ** (bits - 1) - 1), 2.0**-40), rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(WEIGHTS, BITS)
def test_mse_scale_is_no_worse_than_the_largest_weight(weight, bits):
    tensor, top = torch.from_numpy(weight), weight_levels(bits)

    def error(scale):
        shaped = scale.view(-1, *[1] * (tensor.dim() - 1))
        rounded = round_to_grid(tensor, shaped, low=-top, high=top) * shaped
        return (rounded - tensor).square().flatten(1).sum(1)

    best, full = mse_scale(tensor, bits=bits), symmetric_scale(tensor, bits=bits)
    assert (error(best) <= error(full) * 1.000001).all()
    assert (best <= full).all()
    assert (best >= 0.299 * full).all()


def test_mse_scale_clips_an_outlier_at_few_bits():
    weight = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([2.0])])[None]
    assert float(mse_scale(weight, bits=3)) < 0.7 * float(symmetric_scale(weight, bits=3))


@given(hnp.arrays(np.float32, 20, elements=st.floats(-300, 300, width=32)), BITS)
def test_rounding_is_to_the_nearest_half_to_even(values, bits):
    values = np.round(values * 2) / 2  # many ties
    top = 2**bits - 1
    ours = round_to_grid(torch.from_numpy(values), torch.tensor(0.5), low=-3, high=top - 3)
    expected = np.clip(np.rint(values / np.float32(0.5)), -3, top - 3)
    np.testing.assert_array_equal(ours.numpy(), expected)


def test_rounding_leaves_its_input_alone():
    values = torch.tensor([0.3])
    round_to_grid(values, torch.tensor(1.0), low=0, high=1)
    assert values.tolist() == [pytest.approx(0.3)]


@given(hnp.arrays(np.float32, 20, elements=st.floats(-20, 20, width=32)))
def test_fake_quantize_lies_on_the_grid(values):
    scale = torch.tensor(0.37)
    result = fake_quantize(torch.from_numpy(values), scale, low=-3, high=12)
    expected = np.clip(np.rint(values / np.float32(0.37)), -3, 12) * np.float32(0.37)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_the_lsq_paper():
    # Esser et al. 2020, equations 3 and 5
    values = torch.tensor([-5.0, -0.9, -0.2, 0.0, 0.26, 1.3, 2.9, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    low, high = -2, 5
    upstream = torch.arange(1.0, 9.0)
    (fake_quantize(values, scale, low=low, high=high) * upstream).sum().backward()
    ratio = (values / scale).detach()
    inside = (ratio > low) & (ratio < high)
    by_hand = torch.where(
        inside, ratio.round() - ratio, torch.where(ratio <= low, float(low), float(high))
    )
    assert values.grad.tolist() == (upstream * inside).tolist()
    assert float(scale.grad) == pytest.approx(float((upstream * by_hand).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (1, 3, 1)])
def test_gradients_equal_those_of_automatic_differentiation(shape):
    torch.manual_seed(0)
    values = torch.randn(4, 3, 50, requires_grad=True)
    scale = (torch.rand(shape) / 5 + 0.1).requires_grad_()
    upstream = torch.randn(4, 3, 50)
    (fake_quantize(values, scale, low=-3, high=7, scale_factor=0.5) * upstream).sum().backward()
    ours = values.grad.clone(), scale.grad.clone()
    values.grad = scale.grad = None
    inside = torch.clamp(values / scale, -3, 7)
    rounded = (inside + (inside.round() - inside).detach()) * scale
    (rounded * upstream).sum().backward()
    torch.testing.assert_close(ours[0], values.grad)
    torch.testing.assert_close(ours[1], 0.5 * scale.grad, rtol=1e-4, atol=1e-4)


def test_gradient_of_the_scale_survives_halves_of_16_bits():
    torch.manual_seed(0)
    values, upstream = torch.rand(100_000).bfloat16(), torch.randn(100_000).bfloat16()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        scale = torch.tensor(1 / 200, requires_grad=True)
        rounded = fake_quantize(values.to(dtype), scale, low=0, high=150)
        assert rounded.dtype == dtype
        rounded.backward(upstream.to(dtype))
        found.append(float(scale.grad))
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_scale_that_needs_no_gradient_gets_none():
    values = torch.tensor([0.3], requires_grad=True)
    fake_quantize(values, scale := torch.tensor(0.5), low=-1, high=1).backward()
    assert scale.grad is None
    assert values.grad.tolist() == [1.0]
