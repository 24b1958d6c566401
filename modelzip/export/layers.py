"""Layers with weights and windows, in float, as ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from modelzip.export.writer import Call, NoRuleError, Value, float32, sizes, unless

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def convolution(call: Call, module: _Convolution, x: Value) -> str:
    rank = module.weight.dim() - 2
    if module.padding_mode != "zeros" or len(x.shape) != rank + 2:
        raise NoRuleError(f"{call.label} pads with {module.padding_mode}, or has no batch")
    attributes = convolution_attributes(
        module.weight.shape[2:],
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
    )
    inputs = [parameter(call, module, "weight")]
    if module.bias is not None:
        inputs.append(parameter(call, module, "bias"))
    return call.layer("Conv", x.name, *inputs, **attributes)


def linear(call: Call, module: nn.Linear, x: Value) -> str:
    weight = float32(module.weight, call.label)
    if len(x.shape) == 2:
        inputs = [parameter(call, module, "weight")]
        if module.bias is not None:
            inputs.append(parameter(call, module, "bias"))
        return call.layer("Gemm", x.name, *inputs, transB=1)
    transposed = call.constant(weight.t().contiguous(), f"{call.label}.weight")
    product = call.layer("MatMul", x.name, transposed)
    if module.bias is None:
        return product
    return call.node("Add", product, parameter(call, module, "bias"))


def batch_norm(call: Call, module: _Norm, x: Value) -> str:
    mean = float32(module.running_mean, f"the mean of {call.label}")
    var = float32(module.running_var, f"the variance of {call.label}")
    if not module.affine:
        raise NoRuleError(f"{call.label} has no weight")
    scale_shift = parameter(call, module, "weight"), parameter(call, module, "bias")
    statistics = call.constant(mean), call.constant(var)
    return call.node("BatchNormalization", x.name, *scale_shift, *statistics, epsilon=module.eps)


def layer_norm(call: Call, module: nn.LayerNorm, x: Value) -> str:
    if not module.elementwise_affine:
        raise NoRuleError(f"{call.label} has no weight")
    inputs = [parameter(call, module, "weight")]
    if module.bias is not None:
        inputs.append(parameter(call, module, "bias"))
    axis = -len(module.normalized_shape)
    return call.node("LayerNormalization", x.name, *inputs, axis=axis, epsilon=module.eps)


def parameter(call: Call, module: nn.Module, name: str) -> str:
    """The constant that holds a parameter, by the name it has in the model."""
    tensor = getattr(module, name)
    return call.constant(float32(tensor, f"{call.label}.{name}"), f"{call.label}.{name}")


def max_pool(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> str:
    if return_indices:
        raise NoRuleError(f"{call.label} returns indices")
    rank = len(x.shape) - 2
    attributes = window_attributes(
        rank, kernel_size, stride, padding, ceil_mode, count_include_pad=False
    )
    return call.node(
        "MaxPool", x.name, **attributes, dilations=unless(1, sizes(dilation, rank, "dilation"))
    )


def average_pool(call: Call, x: Value, *args: Any, **kwargs: Any) -> str:
    return call.node("AveragePool", x.name, **window_attributes(len(x.shape) - 2, *args, **kwargs))


def adaptive_average_pool(call: Call, x: Value, output_size: Any) -> str:
    rank = len(x.shape) - 2
    images, cells = x.shape[2:], sizes(output_size, rank)
    if set(cells) == {1}:
        return call.node("GlobalAveragePool", x.name)
    if any(length is None or length % cell for length, cell in zip(images, cells, strict=True)):
        raise NoRuleError(f"{call.label} divides {list(images)} by {cells}")
    kernel = [int(n or 0) // cell for n, cell in zip(images, cells, strict=True)]
    return call.node("AveragePool", x.name, **window_attributes(rank, kernel))


def convolution_attributes(
    kernel: Sequence[int], *, stride: Any, padding: Any, dilation: Any, groups: int
) -> dict[str, Any]:
    """Attributes of Conv; those at their defaults are None. Padding may be "same" or "valid"."""
    rank = len(kernel)
    dilations = sizes(dilation, rank, "dilation")
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = sizes(0 if padding == "valid" else padding, rank, "padding") * 2
    return {
        "strides": unless(1, sizes(stride, rank, "stride")),
        "pads": unless(0, pads),
        "dilations": unless(1, dilations),
        "group": None if groups == 1 else groups,
    }


def window_attributes(
    rank: int,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> dict[str, Any]:
    """Attributes of a pool over `rank` dimensions; those at their defaults are None."""
    if divisor_override is not None:
        raise NoRuleError(f"there is no pool that divides by {divisor_override}")
    kernel = sizes(kernel_size, rank, "kernel size")
    pads = sizes(padding, rank, "padding") * 2
    return {
        "kernel_shape": kernel,
        "strides": unless(1, kernel if stride in (None, []) else sizes(stride, rank, "stride")),
        "pads": unless(0, pads),
        "ceil_mode": 1 if ceil_mode else None,
        "count_include_pad": 1 if count_include_pad and any(pads) else None,
    }
