"""Weights stored in 8 or 4 bits with a scale for each block, and computed with as floats."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.numerics.affine import SMALLEST_SCALE
from modelzip.numerics.blocks import join, split
from modelzip.numerics.codebook import nearest, normal_float
from modelzip.quantization.fake import WeightQuantizer


class BlockQuantizer(WeightQuantizer):
    """Parametrization that rounds each block of a weight to a symmetric grid of its own.

    Blocks are those of `modelzip.numerics.blocks.split`.
    """

    def __init__(self, weight: Tensor, *, bits: int, block_size: int | None) -> None:
        super().__init__(_rows(weight, block_size), bits=bits, method="fixed")
        self.block_size = block_size

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Int8 codes shaped like `weight`, 0 for 0.0, and scales as `dequantize` takes them."""
        codes, scale = super().integers(_rows(weight, self.block_size))
        return self._joined(codes, weight).to(torch.int8), _shaped(scale, weight)

    def forward(self, weight: Tensor) -> Tensor:
        return self._joined(super().forward(_rows(weight, self.block_size)), weight)

    def _joined(self, rows: Tensor, weight: Tensor) -> Tensor:
        return join(rows.view(len(weight), -1, rows.shape[1]), weight.shape)


class NormalFloatQuantizer(BlockQuantizer):
    """Parametrization that rounds each block to NormalFloat4 times the block's largest |w|.

    Codes run downwards, from 7 for -1.0 over 0 for 0.0 to -8 for 1.0.
    """

    def __init__(self, weight: Tensor, *, block_size: int | None) -> None:
        super().__init__(weight, bits=4, block_size=block_size)

    def _fit(self, weight: Tensor) -> Tensor:
        return weight.detach().abs().amax(1).clamp_min(SMALLEST_SCALE)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = _rows(weight.detach(), self.block_size)
        scale = self.current_scale(rows)
        codes = 7 - nearest(rows / scale[:, None], normal_float().to(rows.device))
        return self._joined(codes, weight).to(torch.int8), _shaped(scale, weight)

    def forward(self, weight: Tensor) -> Tensor:
        codes, scale = self.integers(weight)
        rounded = dequantize(codes, scale, self.block_size, codebook=codebook(weight.device))
        return weight + (rounded - weight).detach()  # gradients pass straight


def codebook(device: torch.device) -> Tensor:
    """NormalFloat4 in the order of its codes, which start at -8: float32 [16, 1]."""
    return normal_float().flip(0).unsqueeze(1).to(device)


def dequantize(
    codes: Tensor, scale: Tensor, block_size: int | None, *, codebook: Tensor | None = None
) -> Tensor:
    """Float32 weights of int8 `codes` [outputs, *inputs].

    A code is a multiple of its scale, or with `codebook` stands for that entry times the scale.
    Scales are [outputs, 1, ...] with as many dimensions as `codes`, or [outputs, blocks, 1].

    >>> dequantize(torch.tensor([[1, 2, 3]]), torch.tensor([[[1.0], [0.5]]]), 2).tolist()
    [[1.0, 2.0, 1.5]]
    """
    if codebook is None:
        values = codes.float()
    else:
        values = F.embedding(codes.int() + 8, codebook).squeeze(-1)
    if scale.numel() == len(codes):
        return values * scale
    return join(split(values, block_size) * scale, codes.shape)


def store(layer: nn.Module) -> None:
    """Replace the quantizer of `layer`, in place, by codes and scales that its weight is read from.

    The layer keeps its class and names. Its `weight` reads as float32; the state dict holds the
    codes as `weight`, with `weight_scale` and, for NormalFloat4, `weight_codebook`.
    """
    quantizer = surgery.attached(layer, BlockQuantizer)
    if quantizer is None:
        raise TypeError(f"{type(layer).__name__} has no BlockQuantizer")
    codes, scale = quantizer.integers(surgery.original_tensor(layer))
    surgery.detach(layer)
    del layer.weight
    layer.register_buffer("weight", codes)
    layer.register_buffer("weight_scale", scale.clone())
    named = isinstance(quantizer, NormalFloatQuantizer)
    layer.register_buffer("weight_codebook", codebook(codes.device) if named else None)
    kind, block_size = type(layer), quantizer.block_size

    def read(self: Any) -> Tensor:
        stored = self._buffers
        return dequantize(
            stored["weight"], stored["weight_scale"], block_size, codebook=stored["weight_codebook"]
        )

    layer.__class__ = type(kind.__name__, (kind,), {"weight": property(read)})


def _rows(weight: Tensor, block_size: int | None) -> Tensor:
    """Every block of `weight` as a row of its own."""
    return split(weight, block_size).flatten(0, 1)


def _shaped(scale: Tensor, weight: Tensor) -> Tensor:
    blocks = scale.numel() // len(weight)
    return scale.view(len(weight), *([1] * (weight.dim() - 1) if blocks == 1 else [blocks, 1]))
