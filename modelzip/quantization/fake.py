"""Quantizers that train: they round to the grid in float and let gradients through."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from modelzip.numerics.affine import (
    SMALLEST_SCALE,
    activation_grid,
    fake_quantize,
    levels,
    mse_scale,
    symmetric_scale,
    weight_levels,
)

Form = Literal["any", "relu", "relu6", "unit"]
Method = Literal["fixed", "straight_through", "lsq"]

_CAPS = {"relu6": 6.0, "unit": 1.0}  # what a form never exceeds
_MOMENTUM = 0.01  # of the running range in straight-through training


class WeightQuantizer(nn.Module):
    """Parametrization that rounds a weight to a symmetric grid, one scale for each output channel.

    With "lsq" the scale is learned; otherwise it follows the weight: the largest |w| above four
    bits, the least squared error at four and below, where clipping pays. While `observing` it
    passes the weight through.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, *, bits: int, method: Method) -> None:
        super().__init__()
        self.bits = bits
        self.learned = method == "lsq"
        self.kept = False
        self.observing = False
        start = self._fit(weight)
        if self.learned:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    def _fit(self, weight: Tensor) -> Tensor:
        choose = symmetric_scale if self.bits > 4 else mse_scale
        return choose(weight, bits=self.bits)

    def keep(self, scale: Tensor | None = None) -> None:
        """Stop following the weight, with `scale` from now on where it is given."""
        self.kept = True
        if scale is not None:
            self.scale.copy_(scale)

    def current_scale(self, weight: Tensor) -> Tensor:
        """Positive scale of each output channel, shape [channels]."""
        if self.learned:
            return self.scale.abs().clamp_min(SMALLEST_SCALE)
        if self.training and not self.kept:
            # a tensor of its own: another call before backward must not change this one's
            fresh = self._fit(weight)
            self.scale.copy_(fresh)
            return fresh
        return self.scale

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer-valued floats shaped like `weight`, and the scale of each output channel."""
        scale = self.current_scale(weight).detach()
        top = weight_levels(self.bits)
        shaped = scale.view(-1, *[1] * (weight.dim() - 1))
        return (weight.detach() / shaped).round_().clamp_(-top, top), scale

    def forward(self, weight: Tensor) -> Tensor:
        if self.observing:
            return weight
        top = weight_levels(self.bits)
        shaped = self.current_scale(weight).view(-1, *[1] * (weight.dim() - 1))
        factor = 1 / math.sqrt(top * weight[0].numel())
        return fake_quantize(weight, shaped, low=-top, high=top, scale_factor=factor)


class ActivationQuantizer(nn.Module):
    """Module that rounds its input to an unsigned grid with one scale and zero point.

    `form` says what precedes it: after a ReLU the zero point is 0, after a ReLU6 the scale is also
    at most 6 / (2**bits - 1), so that the runtime can fuse the clamp; "unit" is a gate from 0 to 1,
    with a scale of at most 1 / (2**bits - 1). While `observing` it passes its input through.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, *, bits: int, form: Form, method: Method) -> None:
        super().__init__()
        self.bits = bits
        self.form = form
        self.method = method
        self.observing = False
        if method == "lsq":
            self.scale = nn.Parameter(torch.tensor(1.0))
        else:
            self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    @property
    def nonnegative(self) -> bool:
        return self.form != "any"

    def set_range(self, low: float, high: float) -> None:
        """Choose the grid that covers [low, high]."""
        high = min(high, _CAPS.get(self.form, high))
        scale, zero = activation_grid(low, high, bits=self.bits, nonnegative=self.nonnegative)
        with torch.no_grad():
            self.low.fill_(low)
            self.high.fill_(high)
            self.scale.fill_(scale)
            self.zero_point.fill_(zero)

    def grid(self) -> tuple[Tensor, int]:
        """Positive float32 scale (no dimensions) and zero point, as deployed."""
        scale = self.scale.detach().abs().clamp_min(SMALLEST_SCALE)
        if self.form in _CAPS:
            scale = scale.clamp_max(_CAPS[self.form] / levels(self.bits))
        return scale.clone(), int(self.zero_point)

    def forward(self, values: Tensor) -> Tensor:
        if self.observing:
            return values
        if self.training and self.method == "straight_through":
            self._follow(values.detach())
        # a copy: one quantizer may serve two places, and following moves it between them
        scale, zero_point = self.scale.clone(), int(self.zero_point)
        if self.method == "lsq":
            scale = scale.abs().clamp_min(SMALLEST_SCALE)
            if self.form in _CAPS:
                scale = scale.clamp_max(_CAPS[self.form] / levels(self.bits))
        high = levels(self.bits) - zero_point
        factor = 1 / math.sqrt(levels(self.bits) * max(values[0].numel(), 1))
        return fake_quantize(values, scale, low=-zero_point, high=high, scale_factor=factor)

    def _follow(self, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        low = self.low + _MOMENTUM * (low - self.low)
        high = self.high + _MOMENTUM * (high - self.high)
        self.set_range(float(low), float(high))
