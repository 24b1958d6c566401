"""Modules that compute what the runtime computes on the exported integers.

Values passed between them are the float32 numbers that DequantizeLinear yields, (k - z) * scale,
from which each module recovers the integers exactly. In eager mode they do the arithmetic of
onnxruntime's x86 kernels: exact accumulation, one float32 multiplication, rounding half to even.
While exporting they write the operators the runtime fuses into those kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.errors import ModelError
from modelzip.quantization import symbolic

_EXACT = 2**24  # float32 holds every integer up to here


class Grid(NamedTuple):
    """Float32 scale (no dimensions), zero point, and the largest stored integer."""

    scale: Tensor
    zero_point: int
    top: int

    def clip(self, centred: Tensor) -> Tensor:
        """Round in place to the nearest integer, half to even, and clip to the grid."""
        return centred.round_().clamp_(-self.zero_point, self.top - self.zero_point)


class OnGrid(nn.Module):
    """Base of modules whose output lies on a grid, or is plain float where `out` is None."""

    out_scale: Tensor

    def __init__(self, out: Grid | None) -> None:
        super().__init__()
        self.quantized = out is not None
        self.out_zero_point = out.zero_point if out else 0
        self.out_top = out.top if out else 0
        self.register_buffer("out_scale", out.scale if out else torch.tensor(1.0))

    @property
    def out(self) -> Grid:
        return Grid(self.out_scale, self.out_zero_point, self.out_top)

    def _emit(self, values: Tensor) -> Tensor:
        if not self.quantized:
            return values
        scale, zero_point, top = self.out
        return symbolic.quantize(values, scale, zero_point, top=top)

    def extra_repr(self) -> str:
        return f"scale={float(self.out_scale):.4g}, zero_point={self.out_zero_point}"


class Quantize(OnGrid):
    """Rounds float values to a grid: QuantizeLinear, then DequantizeLinear."""

    def forward(self, values: Tensor) -> Tensor:
        if symbolic.is_exporting():
            return self._emit(values)
        return self.out.clip(values / self.out_scale) * self.out_scale


class QuantizedAdd(OnGrid):
    """The sum of two values on grids, rounded to a third, with an optional ReLU."""

    a_scale: Tensor
    b_scale: Tensor

    def __init__(self, a: Grid, b: Grid, out: Grid, *, relu: bool) -> None:
        super().__init__(out)
        self.relu = relu
        self.a_zero_point, self.b_zero_point = a.zero_point, b.zero_point
        self.register_buffer("a_scale", a.scale)
        self.register_buffer("b_scale", b.scale)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if symbolic.is_exporting():
            return self._emit(F.relu(a + b) if self.relu else a + b)
        za, zb, zc = self.a_zero_point, self.b_zero_point, self.out_zero_point
        ratio_a, ratio_b = self.a_scale / self.out_scale, self.b_scale / self.out_scale
        # the kernel's two fused multiply-adds: each a float64 product and sum, rounded once
        offset = zc - (ratio_a.double() * za + (ratio_b * zb).double()).float()
        ka = (a / self.a_scale).round_().add_(za).double()
        kb = (b / self.b_scale).round_().add_(zb).double()
        inner = (kb * ratio_b.double()).add_(offset.double()).float()
        k = (ka * ratio_a.double() + inner.double()).float()  # either may be broadcast
        return k.round_().clamp_(0, self.out_top).sub_(zc).mul_(self.out_scale)


class QuantizedAveragePool(OnGrid):
    """Average pooling from one grid to another, over `dims` or over windows."""

    in_scale: Tensor

    def __init__(
        self,
        source: Grid,
        out: Grid,
        *,
        dims: tuple[int, ...] = (2, 3),
        keepdim: bool = True,
    ) -> None:
        super().__init__(out)
        self.dims = dims
        self.keepdim = keepdim
        self.in_zero_point = source.zero_point
        self.register_buffer("in_scale", source.scale)

    def forward(self, values: Tensor, **window: Any) -> Tensor:
        """`window` holds keywords of `avg_pool2d`; without any it averages over `dims`."""
        if not window:
            return self._over_dims(values)
        if covers(values.shape, **window):
            return self._whole(values)
        if counts_padding_only(**window):
            average = self._padded_average(values, **window)
        else:
            average = F.avg_pool2d(values, **window)
        if symbolic.is_exporting():
            return self._emit(average)
        scale, zero_point, top = self.out
        # this kernel adds the zero point before it rounds, the others after
        k = (average / scale).add_(zero_point).round_().clamp_(0, top)
        return k.sub_(zero_point).mul_(scale)

    def _padded_average(self, values: Tensor, **window: Any) -> Tensor:
        """Zeros put around the image beforehand: the kernel would count what lies outside them."""
        high, wide = pair(window["padding"])
        size, step = pair(window["kernel_size"]), pair(window["stride"] or window["kernel_size"])
        padded = F.pad(values, (wide, wide, high, high))
        if symbolic.is_exporting():
            padded = symbolic.quantize(padded, self.in_scale, self.in_zero_point)
        average = F.avg_pool2d(padded, size, step, ceil_mode=True, count_include_pad=False)
        # torch leaves out a window that would begin in the padding behind the image
        counts = [
            min(n, (length + pad - 1) // s + 1)
            for n, length, pad, s in zip(
                average.shape[2:], values.shape[2:], (high, wide), step, strict=True
            )
        ]
        return average[:, :, : counts[0], : counts[1]]

    def _over_dims(self, values: Tensor) -> Tensor:
        dims = {d % values.dim() for d in self.dims}
        if values.dim() > 2 and dims == set(range(2, values.dim())):
            pooled = self._whole(values)
            return pooled if self.keepdim else pooled.flatten(1)
        average = values.mean(self.dims, keepdim=self.keepdim)  # no integer kernel for these
        if symbolic.is_exporting():
            return self._emit(average)
        return self.out.clip(average / self.out_scale) * self.out_scale

    def _whole(self, values: Tensor) -> Tensor:
        if symbolic.is_exporting():
            return self._emit(symbolic.global_average_pool(values))
        dims = tuple(range(2, values.dim()))
        count = values[0, 0].numel()
        total = (values / self.in_scale).round_().sum(dims, keepdim=True)
        multiplier = self.in_scale / (self.out_scale * float(count))
        return self.out.clip(total * multiplier) * self.out_scale


class QuantizedLayer(OnGrid):
    """Integer weights and bias, shared by convolution and linear layers."""

    weight: Tensor
    bias: Tensor
    weight_scale: Tensor
    in_scale: Tensor

    def __init__(
        self,
        integers: Tensor,
        weight_scale: Tensor,
        bias: Tensor,
        source: Grid,
        out: Grid | None,
        *,
        bits: int,
        relu: bool,
    ) -> None:
        super().__init__(out)
        self.bits = bits
        self.relu = relu
        self.in_zero_point = source.zero_point
        reach = max(source.zero_point, source.top - source.zero_point)
        peak = integers.double().abs().flatten(1).sum(1) * reach + bias.double().abs()
        exact = float(peak.max()) < _EXACT
        self.accumulator = torch.float32 if exact else torch.float64
        self.register_buffer("weight", integers.to(torch.int8))
        self.register_buffer("bias", bias.to(torch.int32))
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("in_scale", source.scale)

    @property
    def bias_scale(self) -> Tensor:
        """Float32 step of the accumulator for each output channel, shape [channels]."""
        return self.in_scale * self.weight_scale

    def _centred(self, values: Tensor) -> Tensor:
        return (values / self.in_scale).round_().to(self.accumulator)

    def _requantize(self, accumulated: Tensor, shape: tuple[int, ...]) -> Tensor:
        # the runtime converts the int32 sum to float32 before it multiplies
        total = accumulated.float()
        if not self.quantized:
            return total.mul_(self.bias_scale.view(shape))
        multiplier = (self.bias_scale / self.out_scale).view(shape)
        return self.out.clip(total.mul_(multiplier)).mul_(self.out_scale)

    def _dequantized_bias(self) -> Tensor:
        return symbolic.dequantize(self.bias, self.bias_scale, axis=0)

    def _finish(self, values: Tensor) -> Tensor:
        return self._emit(F.relu(values) if self.relu else values)


class QuantizedConv(QuantizedLayer):
    """A 1-D or 2-D convolution on integers. A float output is computed in float."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
        }
        self.convolve = F.conv2d if isinstance(conv, nn.Conv2d) else F.conv1d

    def forward(self, values: Tensor) -> Tensor:
        shape = (-1, *[1] * (self.weight.dim() - 2))
        if symbolic.is_exporting():
            weight = symbolic.dequantize(self.weight, self.weight_scale, axis=0)
            return self._finish(
                self.convolve(values, weight, self._dequantized_bias(), **self.geometry)
            )
        if not self.quantized:  # the runtime has no integer convolution with a float output
            scale = self.weight_scale.view(-1, *[1] * (self.weight.dim() - 1))
            bias = self.bias.float() * self.bias_scale
            return self.convolve(values, self.weight.float() * scale, bias, **self.geometry)
        weight, bias = self.weight.to(self.accumulator), self.bias.to(self.accumulator)
        total = self.convolve(self._centred(values), weight, bias, **self.geometry)
        return self._requantize(total, shape)


class QuantizedLinear(QuantizedLayer):
    """A linear layer on integers, to integers or to float.

    With `rows_only`, set where a batch norm was folded in, the input must have two dimensions.
    """

    rows_only = False

    def forward(self, values: Tensor) -> Tensor:
        if self.rows_only and values.dim() != 2:
            raise ModelError(
                f"a batch norm after a linear layer got an input of {values.dim()} dimensions, "
                "of which it normalises the second; add the layer to skip"
            )
        if symbolic.is_exporting():
            return self._finish(self._export(values))
        weight = self.weight.to(self.accumulator)
        if values.dim() == 2:
            bias = self.bias.to(self.accumulator)
            return self._requantize(F.linear(self._centred(values), weight, bias), (-1,))
        # more dimensions run as a matrix product to float, then a float addition
        total = F.linear(self._centred(values), weight).float() * self.bias_scale
        total = total + self.bias.float() * self.bias_scale
        if self.relu:
            total = total.relu_()
        if not self.quantized:
            return total
        return self.out.clip(total / self.out_scale) * self.out_scale

    def _export(self, values: Tensor) -> Tensor:
        if values.dim() == 2:
            weight = symbolic.dequantize(self.weight, self.weight_scale, axis=0)
            return F.linear(values, weight, self._dequantized_bias())
        transposed = symbolic.dequantize(self.weight.t().contiguous(), self.weight_scale, axis=1)
        return torch.matmul(values, transposed) + self.bias.float() * self.bias_scale


def pair(size: Any) -> tuple[int, int]:
    """Height and width from one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def counts_padding_only(
    *, ceil_mode: bool = False, count_include_pad: bool = True, padding: Any = 0, **_: Any
) -> bool:
    """Whether an average counts the zeros around the image, but not what a last window exceeds.

    >>> counts_padding_only(ceil_mode=True, padding=1), counts_padding_only(padding=1)
    (True, False)
    """
    return bool(ceil_mode and count_include_pad and pair(padding) != (0, 0))


def covers(shape: Sequence[int | None], kernel_size: Any, padding: Any = 0, **_: Any) -> bool:
    """Whether an average-pooling window is the whole image of a batch of this shape.

    >>> covers((1, 3, 7, 7), kernel_size=7), covers((1, 3, 7, 7), kernel_size=3)
    (True, False)
    """
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    return len(shape) == 4 and size == tuple(shape[2:]) and padding in (0, (0, 0), [0, 0])
