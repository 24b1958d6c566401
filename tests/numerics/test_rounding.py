import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.numerics.affine import mse_scale, weight_levels
from modelzip.numerics.rounding import least_squares_integers


def problem(seed, rows=4, size=12):
    """A weight, and inputs that are correlated, as neighbouring pixels are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator) + 2
    inputs = mix @ torch.randn(size, 200, generator=generator)
    return torch.randn(rows, size, generator=generator), inputs


def loss(weight, rounded, inputs):
    return ((weight - rounded) @ inputs).square().sum(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_outputs_are_kept_better_than_by_rounding_to_nearest(seed, bits):
    weight, inputs = problem(seed)
    integers, scale = least_squares_integers(weight, inputs @ inputs.T, bits=bits)
    step = mse_scale(weight, bits=bits)[:, None]
    top = weight_levels(bits)
    nearest = (weight / step).round().clamp(-top, top) * step
    ours = loss(weight, integers * scale[:, None], inputs)
    assert float(ours.sum()) < float(loss(weight, nearest, inputs).sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_integers_are_of_the_grid_and_scales_positive(seed, bits):
    weight, inputs = problem(seed)
    weight[1] = 0.0
    integers, scale = least_squares_integers(weight, inputs @ inputs.T, bits=bits)
    assert torch.equal(integers, integers.round())
    assert float(integers.abs().max()) <= weight_levels(bits)
    assert bool((scale > 0).all())
    assert not integers[1].any()


def test_pruned_weights_stay_zero():
    weight, inputs = problem(0)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.0
    integers, _ = least_squares_integers(weight, inputs @ inputs.T, bits=4)
    assert not integers[weight == 0].any()
    assert integers.any()


def test_a_weight_on_a_grid_is_found_again():
    integers = torch.tensor([[7.0, -3.0, 0.0, 2.0, 5.0], [1.0, -7.0, 4.0, 0.0, -2.0]])
    weight = integers * torch.tensor([[0.3], [0.05]])
    _, inputs = problem(0, size=5)
    found, scale = least_squares_integers(weight, inputs @ inputs.T, bits=4)
    assert torch.equal(found, integers)
    torch.testing.assert_close(scale, torch.tensor([0.3, 0.05]))


def test_no_single_integer_is_better_one_up_or_down():
    weight, inputs = problem(4, rows=3, size=8)
    gram = inputs @ inputs.T
    gram += 0.01 * gram.diagonal().mean() * torch.eye(8)  # as it is damped
    integers, scale = least_squares_integers(weight, inputs @ inputs.T, bits=4)

    def error(q):
        left = q * scale[:, None] - weight
        return ((left @ gram) * left).sum(1)

    for column, step in itertools.product(range(8), (-1, 1)):
        other = integers.clone()
        other[:, column] = (other[:, column] + step).clamp(-7, 7)
        assert bool((error(integers) <= error(other) * (1 + 1e-3)).all())


def test_inputs_that_shrank_are_made_up_for():
    weight, inputs = problem(1)
    seen = inputs / 2
    integers, scale = least_squares_integers(weight, seen @ seen.T, bits=8, cross=inputs @ seen.T)
    wanted, given = weight @ inputs, (integers * scale[:, None]) @ seen
    # 0.25 of it would be lost without
    assert float((wanted - given).square().mean()) < 0.03 * float(wanted.square().mean())


def test_inputs_that_are_always_zero_do_no_harm():
    weight, inputs = problem(2)
    inputs[3:] = 0.0
    integers, scale = least_squares_integers(weight, inputs @ inputs.T, bits=8)
    assert bool(torch.isfinite(integers).all() and torch.isfinite(scale).all())
    assert float(loss(weight, integers * scale[:, None], inputs).sum()) < 0.01 * float(
        (weight @ inputs).square().sum()
    )


def test_half_precision_is_not_asked_for():
    weight, inputs = problem(0)
    integers, scale = least_squares_integers(weight, inputs @ inputs.T, bits=4)
    assert (integers.dtype, scale.dtype) == (torch.float32, torch.float32)
    assert scale.shape == (4,)


@pytest.mark.parametrize("size", [31, 32, 70])
def test_blocks_of_columns_of_any_number(size):
    weight, inputs = problem(0, size=size)
    integers, scale = least_squares_integers(weight, inputs @ inputs.T, bits=8)
    error = loss(weight, integers * scale[:, None], inputs).sum()
    assert float(error) < 1e-3 * float((weight @ inputs).square().sum())
