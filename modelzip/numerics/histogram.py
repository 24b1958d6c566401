"""Ranges chosen from a histogram of values, for grids that clip the rare ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelzip.numerics.affine import activation_grid, levels

_HALF = 2048  # bins on each side of zero
_SAMPLED = 2**17
_LEAST = 2.0**-60


class Histogram:
    """Counts of values in equal bins around zero; the bins widen when a value outgrows them.

    They double, which merges pairs of them, so that no count is ever divided. Many values are
    counted by a sample of about 130,000, evenly spaced.

    >>> histogram = Histogram()
    >>> for batch in torch.tensor([0.3, -0.1]), torch.tensor([0.7]):
    ...     histogram.add(batch)
    >>> counts, low, high = histogram.trimmed()
    >>> int(counts.sum()), low, high
    (3, -0.10009765625, 0.7001953125)
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * _HALF, dtype=torch.float64)
        self.top = 0.0

    def add(self, values: Tensor) -> None:
        """Count finite `values`."""
        flat = values.detach().float().flatten()
        # an odd step, so that it does not keep to some columns of an image
        flat = flat[:: max(1, flat.numel() // _SAMPLED) | 1]
        if not flat.numel():
            return
        self._reach(max(float(flat.abs().amax()), _LEAST))
        self.counts += torch.histc(flat, 2 * _HALF, -self.top, self.top).double().cpu()

    def _reach(self, peak: float) -> None:
        if self.top == 0.0:
            self.top = 2.0 ** math.ceil(math.log2(peak))
        while peak > self.top:
            merged = self.counts.view(_HALF, 2).sum(1)
            self.counts = torch.nn.functional.pad(merged, (_HALF // 2, _HALF // 2))
            self.top *= 2

    def trimmed(self) -> tuple[Tensor, float, float]:
        """The counts from the first bin in use to the last, and where those begin and end."""
        used = self.counts.nonzero().flatten()
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (_HALF, _HALF + 1)
        width = self.top / _HALF
        return self.counts[first:last], (first - _HALF) * width, (last - _HALF) * width


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


def entropy_range(
    counts: Tensor, low: float, high: float, *, bits: int, nonnegative: bool, candidates: int = 100
) -> tuple[float, float]:
    """The shrunken range whose grid loses the least information on the counted values.

    The loss is the KL divergence from the counts, those outside the range added to its ends, to
    the counts within it, spread evenly over the bins that share a value of the grid. Both ends
    shrink by the same fraction, down to one bin a value. Migacz 2017, 8-bit inference with
    TensorRT, https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf.

    >>> counts = torch.zeros(1000)
    >>> counts[:100], counts[999] = 1000.0, 1.0
    >>> low, high = entropy_range(counts, 0.0, 1.0, bits=4, nonnegative=True)
    >>> 0.09 < high < 0.2
    True
    """
    width = (high - low) / counts.numel()
    centres = low + (torch.arange(counts.numel(), dtype=torch.float64) + 0.5) * width
    counts = counts.double().clone()
    # a grid holds zero exactly, so the many zeros behind a ReLU cost nothing
    zero_bin = round(-low / width)
    if 0 <= zero_bin < counts.numel() - 1:
        counts[zero_bin] = torch.minimum(counts[zero_bin], counts[zero_bin + 1])
    top = levels(bits)
    best = (math.inf, low, high)
    for step in range(candidates, 0, -1):
        ends = low * step / candidates, high * step / candidates
        inside = (centres >= ends[0]) & (centres <= ends[1])
        if int(inside.sum()) <= top and step < candidates:
            break
        scale, zero = activation_grid(*ends, bits=bits, nonnegative=nonnegative)
        values = ((centres[inside] / scale).round_() + zero).clamp_(0, top).long()
        loss = _divergence(counts, inside, values, top)
        if loss < best[0]:
            best = (loss, *ends)
    return best[1], best[2]


def _divergence(counts: Tensor, inside: Tensor, values: Tensor, top: int) -> float:
    """KL divergence of what a range keeps; `values` are the grid's, of the bins inside."""
    kept = counts[inside]
    exact = kept.clone()
    first, last = int(inside.nonzero()[0]), int(inside.nonzero()[-1])
    exact[0] += counts[:first].sum()
    exact[-1] += counts[last + 1 :].sum()
    zeros = torch.zeros(top + 1, dtype=torch.float64)
    share = zeros.index_add(0, values, kept) / zeros.index_add(0, values, (kept > 0).double())
    coarse = torch.where(kept > 0, share[values], 0.0).clamp_min(1e-9 * float(kept.sum()))
    p, q = exact / exact.sum(), coarse / coarse.sum()
    return float(torch.xlogy(p, p / q).sum())
