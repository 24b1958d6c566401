"""Affine grids: the values that a few bits can hold, and rounding to them.

A grid of `bits` bits with step `scale` and integer `zero_point` z holds (k - z) * scale for k in
0 .. 2**bits - 1. Functions here work on centred integers q = k - z, so zero is always 0.
Specification: QuantizeLinear, https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_SCALE = 2.0**-40  # keeps products of two scales well inside float32's normal range


def levels(bits: int) -> int:
    """The largest integer of an unsigned grid.

    >>> levels(8)
    255
    """
    return (1 << bits) - 1


def weight_levels(bits: int) -> int:
    """The largest integer of a symmetric signed grid, which runs from minus it to plus it.

    >>> weight_levels(8)
    127
    """
    return (1 << (bits - 1)) - 1


def activation_grid(
    low: float, high: float, *, bits: int, nonnegative: bool = False
) -> tuple[float, int]:
    """Scale and zero point of the unsigned grid that covers [low, high] and holds 0 exactly.

    `nonnegative` forces zero point 0, which runtimes need to fuse a ReLU into the step before.

    >>> activation_grid(-64.0, 191.0, bits=8)
    (1.0, 64)
    >>> activation_grid(-3.0, 255.0, bits=8, nonnegative=True)
    (1.0, 0)
    """
    low, high = (0.0 if nonnegative else min(low, 0.0)), max(high, 0.0)
    top = levels(bits)
    scale = max((high - low) / top, SMALLEST_SCALE)
    return scale, min(max(round(-low / scale), 0), top)


def symmetric_scale(weight: Tensor, *, bits: int) -> Tensor:
    """Scale for each slice along axis 0 at which its largest |w| is the last integer.

    >>> symmetric_scale(torch.tensor([[1.27, -0.5], [0.0, 0.254]]), bits=8)
    tensor([0.0100, 0.0020])
    """
    peak = weight.detach().abs().flatten(1).amax(1)
    return (peak / weight_levels(bits)).clamp_min(SMALLEST_SCALE)


def mse_scale(weight: Tensor, *, bits: int, candidates: int = 60) -> Tensor:
    """Scale for each slice along axis 0 that minimises its squared rounding error.

    Tries `candidates` fractions of the largest |w|, from 1 down to 0.3.

    >>> mse_scale(torch.tensor([[1.0, 1.0, -1.0]]), bits=2)
    tensor([1.])
    """
    top = weight_levels(bits)
    full = symmetric_scale(weight, bits=bits)
    flat = weight.detach().flatten(1)
    best, best_error = full, torch.full_like(full, torch.inf)
    for fraction in torch.linspace(1.0, 0.3, candidates).tolist():
        scale = full * fraction
        step = scale[:, None]
        error = ((flat / step).round_().clamp_(-top, top) * step - flat).square_().sum(1)
        better = error < best_error
        best = torch.where(better, scale, best)
        best_error = torch.where(better, error, best_error)
    return best


def round_to_grid(values: Tensor, scale: Tensor, *, low: int, high: int) -> Tensor:
    """Centred integers nearest to `values / scale`, half to even, clipped to [low, high].

    >>> round_to_grid(torch.tensor([0.5, 1.5, 9.0]), torch.tensor(1.0), low=-2, high=5)
    tensor([0., 2., 5.])
    """
    return (values / scale).round_().clamp_(low, high)


def fake_quantize(
    values: Tensor, scale: Tensor, *, low: int, high: int, scale_factor: float = 1.0
) -> Tensor:
    """`values` rounded to the grid, with gradients for `values` and `scale`.

    `scale` has no dimensions, or those of `values` with 1 where it is shared. The gradient of
    rounding is taken as 1 inside the grid's range and 0 outside it, from which follows LSQ's
    gradient for the scale, here times `scale_factor` (Esser et al. 2020, equations 3 and 5,
    https://arxiv.org/abs/1902.08153).

    >>> x = torch.tensor([0.26, 9.0], requires_grad=True)
    >>> fake_quantize(x, torch.tensor(0.5), low=0, high=3).sum().backward()
    >>> x.grad.tolist()
    [1.0, 0.0]
    """
    rounded: Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
        values, scale, low, high, scale_factor
    )
    return rounded


class _FakeQuantize(torch.autograd.Function):
    """One step forth and back: as single operations it would take three times as long."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, low: int, high: int, scale_factor: float
    ) -> Tensor:
        rounded = round_to_grid(values, scale, low=low, high=high).mul_(scale)
        ctx.save_for_backward(values, scale, rounded)
        ctx.range = low, high
        ctx.scale_factor = scale_factor
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, rounded = ctx.saved_tensors
        # the gradient where low < values / scale < high, in one pass
        inside = torch.ops.aten.hardtanh_backward(upstream, values / scale, *ctx.range)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None, None
        # (rounded - values) / scale inside the range and rounded / scale outside: differences
        # first, since a product of halves of 16 bits would lose them
        within = (rounded - values).mul_(upstream).sum_to_size(scale.shape)
        beyond = (upstream - inside).mul_(values).sum_to_size(scale.shape)
        gradient = (within.float() + beyond.float()) * (ctx.scale_factor / scale)
        return inside, gradient, None, None, None
