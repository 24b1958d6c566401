"""The ONNX operators that integer modules write in place of their arithmetic while exporting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

OPSET = 21  # the operators' version here; no exported file has an older opset

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


@contextmanager
def exporting() -> Iterator[None]:
    """Integer modules write ONNX operators inside, and compute outside."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def is_exporting() -> bool:
    """Whether an `exporting` block is open in this context."""
    return _exporting.get()


def quantize(
    values: Tensor,
    scale: Tensor,
    zero_point: int,
    *,
    top: int = 255,
    read_as: Tensor | None = None,
) -> Tensor:
    """QuantizeLinear to uint8 and DequantizeLinear back; values above `top` are clipped to it.

    `read_as` is the scale to dequantize with, where it is another.
    """
    zero = torch.tensor(zero_point, dtype=torch.uint8)
    q = _operator("QuantizeLinear", (values, scale, zero), values.shape, torch.uint8)
    if top < 255:  # a grid of fewer bits, kept in bytes
        bounds = torch.tensor(0, dtype=torch.uint8), torch.tensor(top, dtype=torch.uint8)
        q = _operator("Clip", (q, *bounds), values.shape, torch.uint8)
    back = scale if read_as is None else read_as
    return _operator("DequantizeLinear", (q, back, zero), values.shape, torch.float32)


def dequantize(integers: Tensor, scale: Tensor, *, axis: int) -> Tensor:
    """DequantizeLinear of constant `integers` with zero point 0 and a scale along `axis`."""
    zero = torch.zeros(scale.shape, dtype=integers.dtype)
    inputs = (integers, scale, zero)
    return _operator("DequantizeLinear", inputs, integers.shape, torch.float32, axis=axis)


def global_average_pool(values: Tensor) -> Tensor:
    """GlobalAveragePool over all dimensions after the second, each left with size 1."""
    shape = (*values.shape[:2], *[1] * (values.dim() - 2))
    return _operator("GlobalAveragePool", (values,), shape, torch.float32)


def dynamic_matmul(values: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """DynamicQuantizeLinear, MatMulInteger with int8 `weight` [in, out], and back to float."""
    q, step, zero = torch.onnx.ops.symbolic_multi_out(
        "DynamicQuantizeLinear",
        (values,),
        dtypes=(torch.uint8, torch.float32, torch.uint8),
        shapes=(values.shape, (), ()),
        version=OPSET,
    )
    shape = (*values.shape[:-1], weight.shape[1])
    product = _operator("MatMulInteger", (q, weight, zero), shape, torch.int32)
    return product.to(torch.float32) * (step * scale)


def _operator(
    name: str,
    inputs: Sequence[Tensor],
    shape: Sequence[int | torch.SymInt],
    dtype: torch.dtype,
    **attributes: int,
) -> Tensor:
    return torch.onnx.ops.symbolic(
        name, inputs, attrs=dict(attributes), dtype=dtype, shape=shape, version=OPSET
    )
