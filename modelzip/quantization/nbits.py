"""Large linear layers multiplied in int8, block by block, from weights that stay packed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.numerics.blocks import join, split
from modelzip.quantization import symbolic


def round_blocks(values: Tensor, block_size: int) -> Tensor:
    """`values` [..., inputs] rounded to int8 in each block of inputs, by its own largest |value|.

    As onnxruntime's MatMulNBits does with its input at accuracy_level 4.

    >>> round_blocks(torch.tensor([[1.27, 0.014, 127.0, 0.6]]), 2)
    tensor([[1.2700e+00, 1.0000e-02, 1.2700e+02, 1.0000e+00]])
    """
    rows = values.reshape(-1, values.shape[-1])
    blocks = split(rows, block_size)
    scale = blocks.abs().amax(2, keepdim=True) / 127
    rounded = torch.where(scale > 0, (blocks / scale).round() * scale, 0.0)
    return join(rounded, rows.shape).view(values.shape)


class _RoundInput:
    """Hook that rounds a layer's input as the runtime will; gradients pass straight."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        (values,) = args
        rounded = round_blocks(values.detach(), self.block_size)
        return values + (rounded - values).detach()


def suited(model: nn.Module, *, block_size: int) -> dict[str, nn.Linear]:
    """The linear layers with a block of inputs or more, but for those that attention reads."""
    read = {
        inside
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inside in module.modules()
    }
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in read and module.in_features >= block_size
    }


def attach(linear: nn.Linear, *, block_size: int) -> None:
    """Make `linear` round its input to int8 in blocks."""
    linear.register_forward_pre_hook(_RoundInput(block_size))


def store(linear: nn.Linear, *, bits: int, block_size: int) -> None:
    """Make `linear`, whose weight `blocks.store` has stored, a MatMulNBits when exported."""
    for key, hook in list(linear._forward_pre_hooks.items()):
        if isinstance(hook, _RoundInput):
            del linear._forward_pre_hooks[key]
    kind, state = type(linear), linear.state_dict()
    packed = _packed(split(state["weight"], block_size), bits)
    linear.register_buffer("weight_packed", packed, persistent=False)
    linear.register_buffer("flat_scale", state["weight_scale"].reshape(-1), persistent=False)

    def forward(self: Any, values: Tensor) -> Tensor:
        if symbolic.is_exporting():
            product = _matmul(values, self.weight_packed, self.flat_scale, bits, block_size)
            return product if self.bias is None else product + self.bias
        return F.linear(round_blocks(values, block_size), self.weight, self.bias)

    linear.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Bytes of `codes` [outputs, blocks, length], as offsets from the smallest code."""
    offsets = (codes.int() + (1 << (bits - 1))).to(torch.uint8)
    # two to a byte, the first in the low half
    return offsets if bits == 8 else offsets[..., 0::2] | offsets[..., 1::2] << 4


def _matmul(values: Tensor, packed: Tensor, scale: Tensor, bits: int, block_size: int) -> Tensor:
    """com.microsoft's MatMulNBits of `values` [..., inputs] with `packed` weights.

    Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    outputs = len(packed)
    return torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        (values, packed, scale),
        attrs={
            "K": int(values.shape[-1]),
            "N": outputs,
            "bits": bits,
            "block_size": block_size,
            "accuracy_level": 4,  # int8 products; lower levels unpack to float at every run
        },
        dtype=torch.float32,
        shape=(*values.shape[:-1], outputs),
        version=1,
    )


def keep_off_fused_paths(model: nn.Module) -> None:
    """Keep torch's encoder layers from the path that reads their weights and calls no layer."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
