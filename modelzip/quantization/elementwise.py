"""Integer modules for products and activation functions, in the runtime's own arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzip.numerics.logistic import logistic
from modelzip.quantization import symbolic
from modelzip.quantization.integer import Grid, OnGrid, QuantizedAdd

_THREE = Grid(torch.tensor(3.0), 0, 255)


def unit_grid() -> Grid:
    """The grid of all 256 steps from 0 to 1."""
    return Grid(torch.tensor(1.0) / 255, 0, 255)


class QuantizedMultiply(OnGrid):
    """The product of two values on grids, rounded to a third, with an optional ReLU."""

    a_scale: Tensor
    b_scale: Tensor

    def __init__(self, a: Grid, b: Grid, out: Grid, *, relu: bool) -> None:
        super().__init__(out)
        self.relu = relu
        self.register_buffer("a_scale", a.scale)
        self.register_buffer("b_scale", b.scale)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if symbolic.is_exporting():
            return self._emit(F.relu(a * b) if self.relu else a * b)
        ratio = self.a_scale * self.b_scale / self.out_scale
        k = (a / self.a_scale).round_() * (b / self.b_scale).round_()
        # this kernel adds the zero point before it rounds, as the one of average pools does
        k = k.mul_(ratio).add_(self.out_zero_point).round_().clamp_(0, self.out_top)
        return k.sub_(self.out_zero_point).mul_(self.out_scale)


class QuantizedSigmoid(OnGrid):
    """The logistic function from grid to grid."""

    def forward(self, values: Tensor) -> Tensor:
        if symbolic.is_exporting():
            return self._emit(torch.sigmoid(values))
        return self.out.clip(logistic(values) / self.out_scale) * self.out_scale


class QuantizedLeakyRelu(OnGrid):
    """A leaky ReLU from grid to grid."""

    def __init__(self, out: Grid, *, slope: float) -> None:
        super().__init__(out)
        self.slope = slope

    def forward(self, values: Tensor) -> Tensor:
        curve = F.leaky_relu(values, self.slope)
        if symbolic.is_exporting():
            return self._emit(curve)
        return self.out.clip(curve / self.out_scale) * self.out_scale


class QuantizedHardsigmoid(OnGrid):
    """`clip((x + 3) / 6, 0, 1)` from grid to grid, as an integer addition.

    `x + 3` is rounded to a grid with zero point 0 that ends at or below 6, which clips it, and
    what was stored is read as a sixth of that. The scale of `out` is at most 1 / 255.
    """

    def __init__(self, source: Grid, out: Grid) -> None:
        super().__init__(out)
        self.shift = QuantizedAdd(source, _THREE, Grid(out.scale * 6, 0, out.top), relu=False)

    def forward(self, values: Tensor) -> Tensor:
        wide = self.shift.out_scale
        if symbolic.is_exporting():
            three = symbolic.dequantize(
                torch.ones(1, dtype=torch.uint8), self.shift.b_scale, axis=0
            )
            total = values + three
            return symbolic.quantize(total, wide, 0, top=self.out_top, read_as=self.out_scale)
        k: Tensor = self.shift(values, self.shift.b_scale) / wide
        return k.round_() * self.out_scale
