import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.widths import (
    WIDTHS,
    add_noise,
    all_scales,
    round_widths,
    scale_at,
    weight_scale,
)

TENSORS = st.lists(st.tuples(st.floats(2, 8), st.integers(1, 10_000)), min_size=1, max_size=4)

EVERY = list(itertools.product(WIDTHS, repeat=4))


@given(TENSORS, st.floats(2, 8))
def test_rounded_widths_keep_to_the_mean_and_use_it_up(tensors, mean):
    widths, counts = zip(*tensors, strict=True)
    found = round_widths(widths, counts, mean=mean)
    assert all(bits in WIDTHS for bits in found)
    spare = mean * sum(counts) - sum(n * b for n, b in zip(counts, found, strict=True))
    assert spare >= -1e-5
    assert all(b == 8 or n > spare - 1e-5 for n, b in zip(counts, found, strict=True))


@pytest.mark.parametrize("mean", [2.0, 2.7, 4.05, 5.3, 8.0])
def test_rounded_widths_cost_the_least(mean):
    def cost(bits):
        return sum(n * 4.0 ** (w - b) for n, w, b in zip(counts, widths, bits, strict=True))

    widths, counts = [5.6, 4.4, 3.7, 3.3], [432, 2304, 9216, 36864]
    found = cost(round_widths(widths, counts, mean=mean))
    sizes = ((sum(n * b for n, b in zip(counts, bits, strict=True)), bits) for bits in EVERY)
    least = min(cost(bits) for size, bits in sizes if size <= mean * sum(counts))
    assert found == pytest.approx(least, rel=0.01)


def test_whole_widths_of_the_mean_stay():
    assert round_widths([3.0, 6.0, 4.0], [500, 70, 60], mean=2130 / 630) == [3, 6, 3]
    assert round_widths([4.0, 4.0], [500, 3], mean=4.0) == [4, 4]


def test_scale_at_whole_widths_is_that_of_the_width():
    weight = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    scales = all_scales(weight)
    for bits in WIDTHS:
        found = scale_at(torch.tensor(float(bits)), scales)
        torch.testing.assert_close(found, weight_scale(weight, bits=bits))


@given(st.floats(2, 8), st.floats(2, 8))
def test_a_wider_grid_has_a_finer_step(a, b):
    weight = torch.linspace(-1, 1, 50)[None]
    scales = all_scales(weight)
    low, high = (float(scale_at(torch.tensor(w), scales)) for w in sorted([a, b]))
    assert high <= low * (1 + 1e-5)


def test_gradient_of_the_scale_is_its_logarithm_a_bit():
    scales = torch.tensor([[4.0 ** (1 - k)] for k in range(7)])
    width = torch.tensor(4.3, requires_grad=True)
    found = scale_at(width, scales)
    found.sum().backward()
    # d/dw 4**(3 - w) = -log(4) 4**(3 - w)
    assert float(width.grad) == pytest.approx(-1.3862944 * float(found.detach()), rel=1e-5)


def test_noise_has_the_moments_of_rounding_and_its_gradient():
    torch.manual_seed(0)
    step = torch.tensor([0.5, 2.0], requires_grad=True)
    values = torch.ones(2, 20_000)
    noise = add_noise(values, step) - 1
    assert (noise.abs() <= step[:, None] / 2).all()
    torch.testing.assert_close(
        noise.detach().var(1), torch.tensor([0.25, 4.0]) / 12, rtol=0.03, atol=0
    )
    noise.sum().backward()
    torch.testing.assert_close(
        step.grad, (noise / step[:, None]).sum(1).detach(), rtol=1e-3, atol=1e-3
    )
