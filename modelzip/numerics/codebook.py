"""Values that weights are rounded to where an even grid would not suit how they are spread."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def normal_float() -> Tensor:
    """NormalFloat4: 16 float32 values from -1 to 1, ascending, dense where a normal density is.

    Quantiles of the standard normal distribution, eight of them above zero, zero itself, and seven
    below; the outermost probability is the mean of those that 15 and 16 levels would leave out.
    Dettmers et al. 2023, https://arxiv.org/abs/2305.14314.

    >>> [round(v, 3) for v in normal_float()[6:10].tolist()]
    [-0.091, 0.0, 0.08, 0.161]
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    above = _quantiles(outermost, 8)
    below = -_quantiles(outermost, 7)
    values = torch.cat((below, torch.zeros(1, dtype=torch.float64), above)).sort().values
    return (values / values.abs().max()).float()


def nearest(values: Tensor, codebook: Tensor) -> Tensor:
    """Index of the entry of the ascending `codebook` nearest to each value, the lower on a tie.

    >>> nearest(torch.tensor([-2.0, 0.4, 0.5, 0.6]), torch.tensor([0.0, 1.0])).tolist()
    [0, 0, 0, 1]
    """
    return torch.bucketize(values, (codebook[1:] + codebook[:-1]) / 2)


def _quantiles(outermost: float, count: int) -> Tensor:
    """Normal quantiles at `count` probabilities from `outermost` down to just above one half."""
    steps = torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1]
    values: Tensor = torch.special.ndtri(steps)
    return values
