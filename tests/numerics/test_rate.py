import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.numerics.rate import TOP, code_lengths, rate_distortion_integers


def problem(seed: int, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 4 * size, generator=generator)
    inputs[1:] += 0.5 * inputs[:-1]  # columns that can stand in for each other
    return torch.randn(rows, size, generator=generator), inputs @ inputs.T


def error(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> float:
    left = (rounded - weight).double()
    return float(((left @ gram.double()) * left).sum())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 12), st.floats(0.05, 2))
def test_without_a_price_the_output_is_nearer_than_by_rounding_to_nearest(seed, rows, size, step):
    weight, gram = problem(seed, rows, size)
    integers, scale = rate_distortion_integers(weight, gram, step=step, price=0.0)
    assert torch.equal(integers, integers.round())
    assert integers.abs().max() <= TOP
    nearest = (weight / step).round().clamp(-TOP, TOP) * step
    # the least squares are damped by a hundredth
    slack = 0.02 * float(gram.diagonal().mean()) * step * step * weight.numel()
    assert error(weight, integers * scale[:, None], gram) <= error(weight, nearest, gram) + slack


def test_a_higher_price_takes_fewer_bits_and_costs_more():
    weight, gram = problem(0, 32, 64)
    found = []
    for price in (0.0, 0.1, 0.5):
        integers, scale = rate_distortion_integers(weight, gram, step=0.5, price=price)
        lengths = code_lengths(integers, top=TOP)
        bits = float(lengths[(integers.flatten() + TOP).long()].sum())
        found.append((bits, error(weight, integers * scale[:, None], gram)))
    assert sorted(found, reverse=True) == found == sorted(found, key=lambda pair: pair[1])


def test_scales_are_multiples_of_a_part_of_the_step():
    weight, gram = problem(1, 8, 16)
    _, scale = rate_distortion_integers(weight, gram, step=0.3, price=0.05)
    shares = scale.double() / 0.3 * 64
    torch.testing.assert_close(shares, shares.round(), rtol=1e-5, atol=1e-5)
    assert shares.min() >= 32
    assert shares.max() <= 128


def test_zeros_stay_zero():
    weight, gram = problem(2, 4, 10)
    weight[:, ::2] = 0
    integers, _ = rate_distortion_integers(weight, gram, step=0.2, price=0.0)
    assert not integers[:, ::2].any()


def test_what_a_layer_was_meant_to_see_is_made_up_for():
    weight, gram = problem(3, 4, 6)
    seen_twice = 2 * gram  # inputs of twice the size: y = x / 2, so half the weight
    integers, scale = rate_distortion_integers(
        weight, 2 * seen_twice, step=0.01, price=0.0, cross=seen_twice
    )
    torch.testing.assert_close(integers * scale[:, None], weight / 2, atol=0.05, rtol=0)


def test_code_lengths_by_hand():
    lengths = code_lengths(torch.tensor([0.0, 0.0, 1.0, -1.0]), top=1)
    counts = torch.tensor([1.3, 2.3, 1.3], dtype=torch.float64)
    torch.testing.assert_close(lengths, -(counts / counts.sum()).log2())
    assert float((2**-lengths).sum()) == pytest.approx(1)
