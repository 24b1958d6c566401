"""Weight quantizers whose bits are learned, and the price that their size has in the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modelzip.numerics.widths import (
    NARROWEST,
    WIDEST,
    add_noise,
    all_scales,
    scale_at,
    weight_scale,
)
from modelzip.quantization.fake import Method, WeightQuantizer

_SPEED = 4.0  # of the logits: widths must settle within a few hundred steps of small gradients
_PULL = 1.0  # of the size on the loss, for a bit of gap squared
_PRICE_STEP = 0.05  # by which the price follows a gap of one bit, at each optimizer step


class LearnedWidthQuantizer(WeightQuantizer):
    """Parametrization that learns how many bits a weight needs, then rounds it to that many.

    In training it adds noise of a grid's step at `width` bits, a fraction from 2 to 8, until it is
    `settled`; then it rounds as a WeightQuantizer of the method "lsq". In evaluation it always
    rounds, to whole `bits`.
    """

    scales: Tensor

    def __init__(self, weight: Tensor, *, bits: int, method: Method = "lsq") -> None:
        super().__init__(weight, bits=bits, method="lsq")
        self.settled = False
        self.logit = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("scales", all_scales(weight.detach()))

    def start(self, width: float) -> None:
        """Learn from `width` bits on."""
        share = (width - NARROWEST) / (WIDEST - NARROWEST)
        share = min(max(share, 0.01), 0.99)  # the ends of the sigmoid have no gradient
        nn.init.constant_(self.logit, math.log(share / (1 - share)) / _SPEED)

    @property
    def width(self) -> Tensor:
        """Bits a weight, from 2 to 8, no dimensions, differentiable."""
        return NARROWEST + (WIDEST - NARROWEST) * torch.sigmoid(_SPEED * self.logit)

    def choose(self, weight: Tensor, *, bits: int) -> None:
        """Round to `bits` from now on, with scales that fit `weight`."""
        self.bits = bits
        with torch.no_grad():
            self.scales.copy_(all_scales(weight.detach()))
            self.scale.copy_(weight_scale(weight.detach(), bits=bits))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training and not self.settled:
            return add_noise(weight, scale_at(self.width, self.scales))
        return super().forward(weight)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.bits, int(self.settled)])

    def set_extra_state(self, state: Tensor) -> None:
        self.bits, self.settled = int(state[0]), bool(state[1])


class SizePrice(nn.Module):
    """What a bit costs in the loss: a Lagrange multiplier that follows the gap to a target.

    The loss gets `value * gap + gap**2 / 2` for a mean of `gap` bits a weight above the target
    (an augmented Lagrangian: Hestenes 1969, https://doi.org/10.1007/BF00927673), so that widths
    are traded between tensors at their mean of the target.
    """

    value: Tensor
    step: Tensor

    def __init__(self, *, settle_step: int) -> None:
        super().__init__()
        self.settle_step = settle_step
        self.register_buffer("value", torch.tensor(0.0))
        self.register_buffer("step", torch.tensor(0))

    @property
    def settled(self) -> bool:
        """Whether the widths are whole and fixed, so that size is no longer traded."""
        return int(self.step) >= self.settle_step

    def penalty(self, gap: Tensor) -> Tensor:
        """The term for the loss, differentiable in `gap`; no dimensions."""
        return self.value.clone() * gap + _PULL / 2 * gap.square()

    def follow(self, gap: float, *, step: int) -> bool:
        """Adapt the price after optimizer step `step`; False if that was done before."""
        if step <= int(self.step):
            return False
        self.step.fill_(step)
        self.value.add_(_PRICE_STEP * gap)
        return True
