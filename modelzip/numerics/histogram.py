"""Ranges chosen from a histogram of values, for grids that clip the rare ones."""

from __future__ import annotations

import torch
from torch import Tensor

from modelzip.numerics.affine import activation_grid, levels


def percentile_range(
    counts: Tensor, low: float, high: float, *, percentile: float
) -> tuple[float, float]:
    """The range inside [low, high] that holds `percentile` percent of the counted values.

    `counts` are those of equal bins over [low, high]; each end gives up half of the rest.

    >>> percentile_range(torch.tensor([1.0, 98.0, 0.0, 1.0]), 0.0, 4.0, percentile=98.0)
    (1.0, 2.0)
    """
    share = torch.cumsum(counts.double(), 0) / counts.double().sum()
    tail = (100.0 - percentile) / 200.0
    width = (high - low) / counts.numel()
    first = int((share <= tail + 1e-12).sum())
    last = int((share < 1.0 - tail - 1e-12).sum()) + 1
    return low + first * width, low + min(last, counts.numel()) * width


def mse_range(
    counts: Tensor, low: float, high: float, *, bits: int, nonnegative: bool, candidates: int = 100
) -> tuple[float, float]:
    """The shrunken range whose grid has the least squared error on the counted values.

    Both ends shrink by the same fraction, from 1 down to 1 / `candidates`. Sung et al. 2015,
    https://arxiv.org/abs/1511.06488.

    >>> counts = torch.zeros(100)
    >>> counts[:10], counts[99] = 1000.0, 1.0
    >>> low, high = mse_range(counts, 0.0, 1.0, bits=2, nonnegative=True)
    >>> 0.05 < high < 0.4
    True
    """
    width = (high - low) / counts.numel()
    centres = low + (torch.arange(counts.numel(), dtype=torch.float64) + 0.5) * width
    weights = counts.double()
    top = levels(bits)
    best = (torch.inf, low, high)
    for step in range(candidates, 0, -1):
        fraction = step / candidates
        scale, zero = activation_grid(
            low * fraction, high * fraction, bits=bits, nonnegative=nonnegative
        )
        rounded = (centres / scale).round_().clamp_(-zero, top - zero) * scale
        error = float(((rounded - centres).square_() * weights).sum())
        if error < best[0]:
            best = (error, low * fraction, high * fraction)
    return best[1], best[2]
