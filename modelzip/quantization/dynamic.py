"""Linear layers with int8 weights whose input is quantized by its own range at run time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.quantization import symbolic
from modelzip.quantization.fake import WeightQuantizer


class DynamicQuantizedLinear(nn.Module):
    """A linear layer with int8 weights, whose input is quantized by its own range at run time.

    The range is that of the whole input tensor, so a row's result depends on the rows beside it.
    Specification: DynamicQuantizeLinear and MatMulInteger, https://onnx.ai/onnx/operators/.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self, integers: Tensor, weight_scale: Tensor, bias: Tensor | None, *, bits: int = 8
    ) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("weight", integers.to(torch.int8))
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        if symbolic.is_exporting():
            product = symbolic.dynamic_matmul(
                values, self.weight.t().contiguous(), self.weight_scale
            )
        else:
            centred, scale = dynamic_integers(values)
            # 2**24 is passed by wide layers, and a float32 sum would then round
            total = F.linear(centred.double(), self.weight.double()).float()
            product = total * (scale * self.weight_scale)
        return product if self.bias is None else product + self.bias


def dynamic_integers(values: Tensor) -> tuple[Tensor, Tensor]:
    """Centred integers of `values` on the grid of their own range, and its scale.

    >>> q, scale = dynamic_integers(torch.tensor([-1.0, 0.0, 1.55]))
    >>> q.tolist(), round(float(scale), 4)
    ([-100.0, 0.0, 155.0], 0.01)
    """
    low = values.amin().clamp_max(0.0)
    high = values.amax().clamp_min(0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).clamp(0, 255).round()
    return ((values / scale).round() + zero).clamp(0, 255) - zero, scale


def attach(linear: nn.Linear, *, bits: int) -> None:
    """Make `linear` round its weight and, by each input's own range, its input."""
    weight = surgery.original_tensor(linear).detach()
    surgery.attach(linear, WeightQuantizer(weight, bits=bits, method="fixed"))
    linear.register_forward_pre_hook(_round_input)


def freeze(model: nn.Module) -> None:
    """Replace, in place, every linear layer that `attach` worked on by its integer form."""
    for name, linear, quantizer in list(surgery.all_attached(model, WeightQuantizer)):
        integers, scale = quantizer.integers(surgery.original_tensor(linear))
        bias = linear.bias if isinstance(linear.bias, Tensor) else None
        surgery.replace(
            model, name, DynamicQuantizedLinear(integers, scale, bias, bits=quantizer.bits)
        )
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # off its fused path, which reads float weights


def _round_input(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    (values,) = args
    integers, scale = dynamic_integers(values.detach())
    return values + (integers * scale - values).detach()  # gradients pass straight
