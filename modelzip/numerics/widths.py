"""Bit widths that are learned: the noise of a fractional width, and rounding to whole ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelzip.numerics.affine import mse_scale, symmetric_scale
from modelzip.numerics.allocation import allocate

NARROWEST, WIDEST = 2, 8
WIDTHS = range(NARROWEST, WIDEST + 1)


def weight_scale(weight: Tensor, *, bits: int) -> Tensor:
    """Scale for each slice along axis 0, from its largest |w| or, up to 4 bits, its least error.

    >>> weight_scale(torch.tensor([[1.27, -0.5], [0.0, 0.254]]), bits=8)
    tensor([0.0100, 0.0020])
    """
    return (symmetric_scale if bits > 4 else mse_scale)(weight, bits=bits)


def all_scales(weight: Tensor) -> Tensor:
    """The scale of each slice along axis 0 at each width, shape [widths, channels]."""
    return torch.stack([weight_scale(weight, bits=bits) for bits in WIDTHS])


def scale_at(width: Tensor, scales: Tensor) -> Tensor:
    """The row of `scales` [widths, channels] at a fractional `width`, between its neighbours.

    A geometric mean, as a bit more halves the scale; differentiable in both.

    >>> scales = torch.tensor([[64.0], [16.0], [4.0], [2.0], [1.0], [0.5], [0.25]])
    >>> scale_at(torch.tensor(2.5), scales)
    tensor([32.])
    """
    place = width.clamp(NARROWEST, WIDEST) - NARROWEST
    below = place.detach().floor().clamp_max(len(WIDTHS) - 2)
    lower, upper = scales[int(below)].log(), scales[int(below) + 1].log()
    return torch.exp(lower + (place - below) * (upper - lower))


def add_noise(values: Tensor, step: Tensor) -> Tensor:
    """`values` plus uniform noise of one `step` in width, that of rounding to its multiples.

    `step` has one value for each slice along axis 0 and gets a gradient. Zeros, such as those of
    pruned weights, stay zeros: rounding has no error there. Défossez et al. 2021,
    https://arxiv.org/abs/2104.09987.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at 0x...>
    >>> noisy = add_noise(torch.ones(1, 1000), torch.tensor([2.0]))
    >>> bool(((noisy - 1).abs() <= 1).all()), round(float(noisy.var()), 1)  # 2 squared / 12
    (True, 0.3)
    """
    noise = torch.rand_like(values).sub_(0.5).mul_(values.detach() != 0)
    return values + noise * step.view(-1, *[1] * (values.dim() - 1))


def round_widths(widths: Sequence[float], counts: Sequence[int], *, mean: float) -> list[int]:
    """Whole widths near `widths` of which the mean over `counts` weights is at most `mean`, >= 2.

    Where widths are at their optimum a weight's share of the loss is the same in each tensor, and
    a bit less quadruples it: the sum of those shares is the least there is.

    >>> round_widths([3.6, 5.4], [900, 100], mean=4.05)
    [4, 4]
    >>> round_widths([3.6, 5.4], [700, 300], mean=4.35)
    [4, 5]
    """
    spare = (mean - NARROWEST) * sum(counts) + 1e-6  # bits beyond the narrowest
    if spare < min(counts):
        return [NARROWEST] * len(widths)
    pairs = list(zip(widths, counts, strict=True))
    costs = [[count * 4.0 ** (width - bits) for bits in WIDTHS] for width, count in pairs]
    sizes = [[count * (bits - NARROWEST) for bits in WIDTHS] for count in counts]
    chosen = [WIDTHS[index] for index in allocate(costs, sizes, budget=spare)]
    spare -= sum((b - NARROWEST) * n for b, n in zip(chosen, counts, strict=True))
    # what rounding of sizes left over: first to those with the least of what they want
    for index in sorted(range(len(widths)), key=lambda i: chosen[i] - widths[i]):
        more = min(int(spare // counts[index]), WIDEST - chosen[index])
        chosen[index] += more
        spare -= more * counts[index]
    return chosen
