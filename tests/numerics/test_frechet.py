import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.errors import DataError
from modelzip.numerics.frechet import frechet_distance

scales = st.lists(st.floats(0.1, 10), min_size=3, max_size=3)
means = st.lists(st.floats(-10, 10), min_size=3, max_size=3)


def cross(mean, deviation):
    """Six points with that mean and, along the axes alone, those standard deviations."""
    reach = torch.diag(torch.tensor(deviation, dtype=torch.float64)) * math.sqrt(5 / 2)
    return torch.tensor(mean, dtype=torch.float64) + torch.cat([reach, -reach])


@given(means, scales, means, scales)
def test_it_is_the_closed_form_of_diagonal_gaussians(mean1, dev1, mean2, dev2):
    shift = sum((a - b) ** 2 for a, b in zip(mean1, mean2, strict=True))
    spread = sum((a - b) ** 2 for a, b in zip(dev1, dev2, strict=True))
    found = frechet_distance(cross(mean1, dev1), cross(mean2, dev2))
    assert found == pytest.approx(shift + spread, rel=1e-6, abs=1e-6)


@given(st.integers(0, 1000))
def test_it_is_symmetric_and_does_not_change_with_a_rotation(seed):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    second = 2 + torch.randn(30, 4, generator=generator, dtype=torch.float64) * 3
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    found = frechet_distance(first, second)
    assert frechet_distance(second, first) == pytest.approx(found)
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(found)


def test_it_is_that_of_scipys_matrix_root():
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    first = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    second = first[:40] @ torch.randn(5, 5, generator=generator, dtype=torch.float64) + 1
    cov1, cov2 = first.T.cov().numpy(), second.T.cov().numpy()
    shift = float((first.mean(0) - second.mean(0)).square().sum())
    expected = shift + (cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real).trace()
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_the_same_vectors_are_at_no_distance_even_if_they_span_less():
    flat = torch.arange(12.0).view(6, 2) @ torch.ones(2, 3)
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_vectors_of_other_dimensions_are_refused():
    with pytest.raises(DataError, match=r"the same dimensions.*got \[3, 2\] and \[3, 4\]"):
        frechet_distance(torch.zeros(3, 2), torch.zeros(3, 4))


def test_one_vector_is_refused():
    with pytest.raises(DataError, match="two vectors at least, got 1 and 5"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))
