"""The Frechet distance of two sets of vectors, each taken for a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from modelzip.errors import DataError


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the moments of `first` and `second`.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in the squared unit of the vectors, at least 0.
    Heusel et al. 2017, https://arxiv.org/abs/1706.08500. The trace of the root is the sum of the
    roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric, in float64.

    Args:
        first, second: [N, dimensions] and [M, dimensions]; at least two vectors each, and many
            more than dimensions for the estimate to be worth something.

    >>> line = torch.tensor([[0.0], [2.0]])  # mean 1, variance 2
    >>> round(frechet_distance(line, 2 * line), 6)  # (2 - 1)^2 + (sqrt(8) - sqrt(2))^2
    3.0
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(
            "a Frechet distance needs vectors of the same dimensions, [N, dimensions], got "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    if min(len(first), len(second)) < 2:
        raise DataError(
            f"a Frechet distance needs two vectors at least, got {len(first)} and {len(second)}"
        )
    (mean1, cov1), (mean2, cov2) = _moments(first), _moments(second)
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    found = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * shared
    return max(0.0, float(found))  # below it by rounding alone


def _moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    exact = vectors.double()
    return exact.mean(dim=0), exact.T.cov().reshape(exact.shape[1], -1)
