"""k-means of numbers: the best partition, against trying all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelzip.numerics import kmeans as module
from modelzip.numerics.codebook import nearest
from modelzip.numerics.kmeans import kmeans

NUMBERS = st.floats(-100, 100, width=32)


def squared_error(values: Tensor, centroids: Tensor) -> float:
    gaps = (values.double().flatten()[:, None] - centroids.double()).abs().amin(1)
    return float(gaps.square().sum())


def least_error(values: Tensor, clusters: int) -> float:
    """Of every partition of the ordered values into at most so many intervals."""
    ordered = values.double().flatten().sort().values
    inner = itertools.combinations(range(1, len(ordered)), min(clusters, len(ordered)) - 1)
    return min(
        sum(
            float((part - part.mean()).square().sum())
            for part in (ordered[a:b] for a, b in itertools.pairwise([0, *cuts, len(ordered)]))
        )
        for cuts in inner
    )


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(1, 6))
def test_no_partition_is_better(numbers: list[float], clusters: int) -> None:
    values = torch.tensor(numbers)
    found = kmeans(values, clusters)
    assert len(found) <= clusters
    best = least_error(values, clusters)
    assert squared_error(values, found) <= best + 1e-6 * (1 + best)


def test_far_from_zero_is_as_good() -> None:
    values = torch.tensor([1.0, 2.0, 10.0, 11.0, 30.0], dtype=torch.float64) * 2**-10
    far = kmeans(values + 1e5, 3) - 1e5
    torch.testing.assert_close(
        far * 2**10, torch.tensor([1.5, 10.5, 30.0]).double(), atol=1e-4, rtol=0
    )


def test_every_centroid_is_the_mean_of_what_is_nearest_to_it() -> None:
    values = torch.randn(60, 500, generator=torch.Generator().manual_seed(0))
    centroids = kmeans(values, 16)
    owner = nearest(values, centroids)
    means = [values[owner == k].double().mean() for k in range(16)]
    torch.testing.assert_close(centroids.double(), torch.stack(means), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clusters", [4, 16, 64])
def test_few_places_to_cut_lose_little(monkeypatch: pytest.MonkeyPatch, clusters: int) -> None:
    values = torch.randn(1500, generator=torch.Generator().manual_seed(1))
    best = squared_error(values, kmeans(values, clusters))
    monkeypatch.setattr(module, "_CUTS", 600)
    assert best <= squared_error(values, kmeans(values, clusters)) <= 1.2 * best


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], [3.0]), ([2.0, 2.0, 2.0], [2.0]), ([1.0, 7.0, 1.0], [1.0, 7.0])],
)
def test_few_values_are_their_own_centroids(values: list[float], expected: list[float]) -> None:
    assert kmeans(torch.tensor(values), 8).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_type_stays(dtype: torch.dtype) -> None:
    assert kmeans(torch.randn(3, 5).to(dtype), 4).dtype == dtype
