import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.numerics.affine import activation_grid
from modelzip.numerics.histogram import mse_range, percentile_range

COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=40).filter(any)


@settings(deadline=None)
@given(COUNTS, st.floats(50, 100), st.floats(-10, 10), st.floats(0.1, 20))
def test_percentile_range_holds_what_it_says_and_no_bin_to_spare(counts, percentile, low, width):
    high = low + width
    start, end = percentile_range(torch.tensor(counts), low, high, percentile=percentile)
    step = width / len(counts)
    first, last = round((start - low) / step), round((end - low) / step)
    assert 0 <= first < last <= len(counts)
    total, tail = sum(counts), (100 - percentile) / 200 * sum(counts)
    assert sum(counts[first:last]) >= total * percentile / 100 - 1e-6 * total
    # one bin more at either end would leave out more than its half of the rest
    assert sum(counts[: first + 1]) > tail - 1e-6 * total
    assert sum(counts[last - 1 :]) > tail - 1e-6 * total


def test_percentile_100_keeps_every_value():
    counts = torch.tensor([1.0, 0.0, 5.0, 1.0])
    assert percentile_range(counts, -2.0, 2.0, percentile=100.0) == (-2.0, 2.0)


def test_percentile_range_agrees_with_numpy_on_many_values():
    values = np.random.default_rng(0).gamma(2.0, size=200_000)
    counts, edges = np.histogram(values, 2048)
    start, end = percentile_range(torch.from_numpy(counts), edges[0], edges[-1], percentile=99.0)
    expected = np.percentile(values, [0.5, 99.5])
    np.testing.assert_allclose([start, end], expected, atol=edges[1] - edges[0])


def brute_force(counts, low, high, *, bits, nonnegative):
    """The least squared error over the same hundred shrunken ranges, in plain Python."""
    width = (high - low) / len(counts)
    centres = [low + (i + 0.5) * width for i in range(len(counts))]
    errors = {}
    for step in range(1, 101):
        scale, zero = activation_grid(
            low * step / 100, high * step / 100, bits=bits, nonnegative=nonnegative
        )
        top = 2**bits - 1 - zero
        errors[step] = sum(
            n * (min(max(round(c / scale), -zero), top) * scale - c) ** 2
            for n, c in zip(counts, centres, strict=True)
        )
    return errors


@settings(max_examples=20, deadline=None)
@given(COUNTS, st.integers(2, 6), st.sampled_from([(-1.0, 1.0), (-0.3, 4.0), (0.0, 1.0)]))
def test_mse_range_has_the_least_error(counts, bits, ends):
    low, high = ends
    nonnegative = low == 0
    found = mse_range(torch.tensor(counts), low, high, bits=bits, nonnegative=nonnegative)
    errors = brute_force(counts, low, high, bits=bits, nonnegative=nonnegative)
    step = round(found[1] / high * 100)
    assert found[0] == pytest.approx(low * step / 100)
    assert errors[step] <= min(errors.values()) * (1 + 1e-9) + 1e-12
