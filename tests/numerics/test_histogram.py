import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from modelzip.numerics.affine import activation_grid
from modelzip.numerics.histogram import Histogram, entropy_range, mse_range, percentile_range

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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), min_size=1, max_size=5))
@example([[262145.0, -0.015625]])
def test_a_histogram_counts_what_numpy_counts_however_often_its_bins_widen(batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(torch.tensor(batch))
    counts, low, high = histogram.trimmed()
    values = np.concatenate([np.float32(b) for b in batches]).astype(np.float64)
    assert counts.sum() == len(values)
    slack = 2**-22 * histogram.top  # bins are found in float32
    assert low - slack <= values.min()
    assert high + slack >= values.max()
    # the mean of the bins' centres is within half a bin of the mean of the values
    width = (high - low) / len(counts)
    centres = low + (np.arange(len(counts)) + 0.5) * width
    assert abs((counts.numpy() * centres).sum() / len(values) - values.mean()) <= width * 0.51


def test_of_many_values_a_histogram_counts_a_sample():
    values = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))
    histogram = Histogram()
    histogram.add(values)
    counts, _, _ = histogram.trimmed()
    assert 2**16 < float(counts.sum()) < 2**18
    expected = counts.sum() / len(counts)
    assert float((counts / expected - 1).abs().mean()) < 0.2


def test_a_histogram_of_nothing_or_of_zeros_is_usable():
    histogram = Histogram()
    histogram.add(torch.zeros(0))
    histogram.add(torch.zeros(7))
    counts, low, high = histogram.trimmed()
    assert (float(counts.sum()), low <= 0.0 <= high) == (7.0, True)


def test_entropy_range_keeps_all_where_nothing_is_lost():
    # two values of the grid in use, one bin each
    counts = torch.zeros(16)
    counts[0], counts[1], counts[15] = 5.0, 5.0, 5.0
    assert entropy_range(counts, 0.0, 16.0, bits=4, nonnegative=True) == (0.0, 16.0)


def test_entropy_range_against_scipy():
    counts = torch.from_numpy(np.random.default_rng(0).gamma(2.0, 20.0, 64).round())
    counts[0] = min(counts[0], counts[1])  # zeros are exact
    found = entropy_range(counts, 0.0, 64.0, bits=3, nonnegative=True, candidates=64)
    losses = {}
    for bins in range(9, 65):
        kept = counts[:bins].numpy()
        exact = kept.copy()
        exact[-1] += counts[bins:].sum()
        scale = bins / 7
        value = np.minimum(np.rint((np.arange(bins) + 0.5) / scale), 7)
        coarse = np.zeros(bins)
        for v in range(8):
            mine = (value == v) & (kept > 0)
            coarse[mine] = kept[value == v].sum() / max(mine.sum(), 1)
        coarse = np.maximum(coarse, 1e-9 * kept.sum())
        losses[bins] = stats.entropy(exact, coarse)
    assert losses[round(found[1])] == pytest.approx(min(losses.values()), rel=1e-9)
