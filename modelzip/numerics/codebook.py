"""Values that weights are rounded to where an even grid would not suit how they are spread."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def look_up(codebook: Tensor, indices: Tensor, used: Tensor) -> Tensor:
    """The entry of `codebook` [entries] at each uint8 index, and 0.0 where `used` is False.

    The gradient of an entry is the mean of those of its uses: it moves as far as gradient descent
    would move the mean of as many values of their own, whatever their number.

    >>> codebook = torch.tensor([1.0, 5.0], requires_grad=True)
    >>> found = look_up(codebook, torch.tensor([0, 1, 1]).byte(), torch.tensor([True, True, True]))
    >>> (found * torch.tensor([1.0, 10.0, 20.0])).sum().backward()
    >>> found.tolist(), codebook.grad.tolist()
    ([1.0, 5.0, 5.0], [1.0, 15.0])
    """
    found: Tensor = _LookUp.apply(codebook, indices, used)  # type: ignore[no-untyped-call]
    return found


class _LookUp(torch.autograd.Function):
    """Indexing, but for the gradient: that of `index_select` would be the sum."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, indices: Tensor, used: Tensor) -> Tensor:
        ctx.save_for_backward(codebook, indices, used)
        values = codebook.index_select(0, indices.flatten().int()).view(indices.shape)
        return values.masked_fill_(~used, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        codebook, indices, used = ctx.saved_tensors
        entries, weights = indices.flatten().int(), used.flatten().float()
        zeros = weights.new_zeros(len(codebook))
        count = zeros.index_add(0, entries, weights)
        total = zeros.index_add(0, entries, upstream.flatten().float() * weights)
        return (total / count.clamp_min(1)).to(codebook.dtype), None, None


def _quantiles(outermost: float, count: int) -> Tensor:
    """Normal quantiles at `count` probabilities from `outermost` down to just above one half."""
    steps = torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1]
    values: Tensor = torch.special.ndtri(steps)
    return values
