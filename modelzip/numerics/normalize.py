"""Putting scores of different groups on one scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_TINY = 1e-30  # in place of 0 where all scores are 0 or equal


def none(scores: Tensor) -> Tensor:
    """The scores themselves."""
    return scores


def mean(scores: Tensor) -> Tensor:
    """Scores (n,), none negative, with mean 1.

    >>> mean(torch.tensor([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    return scores / scores.mean().clamp(min=_TINY)


def maximum(scores: Tensor) -> Tensor:
    """Scores (n,), none negative, the largest of which is 1.

    >>> maximum(torch.tensor([1.0, 4.0])).tolist()
    [0.25, 1.0]
    """
    return scores / scores.max().clamp(min=_TINY)


def total(scores: Tensor) -> Tensor:
    """Scores (n,), none negative, with sum 1.

    >>> total(torch.tensor([1.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    return scores / scores.sum().clamp(min=_TINY)


def standard(scores: Tensor) -> Tensor:
    """Scores (n,) from 0 for the least to 1 for the largest; 0 where all are equal.

    >>> standard(torch.tensor([1.0, 2.0, 5.0])).tolist()
    [0.0, 0.25, 1.0]
    """
    least = scores.min()
    return (scores - least) / (scores.max() - least).clamp(min=_TINY)


def gaussian(scores: Tensor) -> Tensor:
    """Scores (n,) with mean 0 and variance 1; 0 where all are equal.

    >>> gaussian(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    if bool(scores.max() == scores.min()):  # they differ from their mean by rounding alone
        return torch.zeros_like(scores)
    centred = scores - scores.mean()
    return centred / centred.square().mean().sqrt()


def lamp(scores: Tensor) -> Tensor:
    """Each of the scores (n,), none negative, over the sum of those at least as large.

    Lee et al. 2021, https://arxiv.org/abs/2010.07611, of squared weights. Equal scores stay equal.

    >>> lamp(torch.tensor([4.0, 8.0, 4.0])).tolist()
    [0.25, 1.0, 0.25]
    """
    ordered = scores.sort().values
    sums = ordered.flip(0).cumsum(0).flip(0)
    first = torch.searchsorted(ordered, scores)
    return scores / sums[first].clamp(min=_TINY)


NORMALIZERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": none,
    "mean": mean,
    "max": maximum,
    "sum": total,
    "standard": standard,
    "gaussian": gaussian,
    "lamp": lamp,
}
