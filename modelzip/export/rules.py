"""Which rule writes which module, function or method; the rest is left to torch's exporter."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modelzip.export import integers, layers, operations
from modelzip.export.operations import Rule, binary, unary
from modelzip.quantization.dynamic import DynamicQuantizedLinear
from modelzip.quantization.elementwise import (
    QuantizedHardsigmoid,
    QuantizedLeakyRelu,
    QuantizedMultiply,
    QuantizedSigmoid,
)
from modelzip.quantization.integer import (
    Quantize,
    QuantizedAdd,
    QuantizedAveragePool,
    QuantizedConv,
    QuantizedLinear,
)

RELU = unary("Relu")

# rules that take the module itself
LAYERS: dict[type[nn.Module], Rule] = {
    Quantize: integers.quantize,
    QuantizedAdd: integers.add,
    QuantizedAveragePool: integers.average_pool,
    QuantizedConv: integers.convolution,
    QuantizedLinear: integers.linear,
    QuantizedMultiply: integers.multiply,
    QuantizedSigmoid: integers.sigmoid,
    QuantizedLeakyRelu: integers.leaky_relu,
    QuantizedHardsigmoid: integers.hardsigmoid,
    DynamicQuantizedLinear: integers.dynamic_linear,
    nn.Linear: layers.linear,
    nn.LayerNorm: layers.layer_norm,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), layers.convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), layers.batch_norm),
}
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
# rules that take settings of the module, by these names
MODULES: dict[type[nn.Module], tuple[Rule, tuple[str, ...]]] = {
    nn.ReLU: (RELU, ()),
    nn.ReLU6: (operations.relu6, ()),
    nn.Hardtanh: (operations.hardtanh, ("min_val", "max_val")),
    nn.LeakyReLU: (operations.leaky_relu, ("negative_slope",)),
    nn.Sigmoid: (unary("Sigmoid"), ()),
    nn.Tanh: (unary("Tanh"), ()),
    nn.Hardsigmoid: (unary("HardSigmoid", alpha=1 / 6), ()),
    nn.Hardswish: (unary("HardSwish"), ()),
    nn.SiLU: (operations.silu, ()),
    nn.GELU: (operations.gelu, ("approximate",)),
    nn.Softmax: (operations.softmax, ("dim",)),
    nn.AvgPool1d: (layers.average_pool, (*_POOL, "count_include_pad")),
    nn.AvgPool2d: (layers.average_pool, (*_POOL, "count_include_pad", "divisor_override")),
    nn.Upsample: (operations.interpolate, ("size", "scale_factor", "mode", "align_corners")),
    nn.PixelShuffle: (operations.pixel_shuffle, ("upscale_factor",)),
    **dict.fromkeys(
        (nn.MaxPool1d, nn.MaxPool2d),
        (layers.max_pool, (*_POOL, "dilation", "return_indices")),
    ),
    **dict.fromkeys(
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
        (layers.adaptive_average_pool, ("output_size",)),
    ),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d), (operations.pad_module, ("padding",))),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), (operations.reshape, ())),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), (operations.same, ())),
}
FUNCTIONS: dict[Any, Rule] = {
    F.relu6: operations.relu6,
    F.hardtanh: operations.hardtanh,
    F.leaky_relu: operations.leaky_relu,
    F.hardsigmoid: unary("HardSigmoid", alpha=1 / 6),
    F.hardswish: unary("HardSwish"),
    F.silu: operations.silu,
    F.gelu: operations.gelu,
    F.pad: operations.pad,
    F.interpolate: operations.interpolate,
    F.pixel_shuffle: operations.pixel_shuffle,
    F.avg_pool2d: layers.average_pool,
    torch.clamp: operations.clip,
    torch.mean: operations.mean,
    **dict.fromkeys((F.relu, torch.relu, torch.relu_), RELU),
    **dict.fromkeys((F.sigmoid, torch.sigmoid), unary("Sigmoid")),
    **dict.fromkeys((F.tanh, torch.tanh), unary("Tanh")),
    **dict.fromkeys((F.softmax, torch.softmax), operations.softmax),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d), layers.adaptive_average_pool),
    **dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d), layers.max_pool
    ),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d), operations.dropout),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), binary("Add")),
    **dict.fromkeys((operator.sub, torch.sub), binary("Sub")),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), binary("Mul")),
    **dict.fromkeys((operator.truediv, torch.div), binary("Div")),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm), operations.matmul),
    **dict.fromkeys(
        (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), operations.reshape
    ),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), operations.concat),
    **dict.fromkeys((torch.chunk, torch.split), operations.split),
    torch.permute: operations.permute,
    torch.transpose: operations.transpose,
    operator.getitem: operations.select,
}
METHODS: dict[str, Rule] = {
    "relu": RELU, "relu_": RELU,
    "sigmoid": unary("Sigmoid"), "tanh": unary("Tanh"),
    "softmax": operations.softmax,
    "clamp": operations.clip, "clamp_": operations.clip,
    "mean": operations.mean,
    "add": binary("Add"), "add_": binary("Add"),
    "sub": binary("Sub"),
    "mul": binary("Mul"), "mul_": binary("Mul"),
    "div": binary("Div"),
    "matmul": operations.matmul, "bmm": operations.matmul,
    **dict.fromkeys(
        ("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten"), operations.reshape
    ),
    **dict.fromkeys(("contiguous", "clone", "detach"), operations.same),
    **dict.fromkeys(("chunk", "split"), operations.split),
    "permute": operations.permute,
    "transpose": operations.transpose,
}  # fmt: skip

# what the runtime computes with them is known to the last bit
EXACT: frozenset[Rule] = frozenset(
    {
        *(integers.quantize, integers.add, integers.average_pool, integers.convolution),
        *(integers.multiply, integers.sigmoid, integers.leaky_relu, integers.hardsigmoid),
        *(
            integers.linear,
            integers.dynamic_linear,
            layers.max_pool,
            operations.same,
            operations.dropout,
            RELU,
        ),
        *(operations.reshape, operations.permute, operations.transpose, operations.concat),
        *(operations.split, operations.select, operations.pad, operations.pad_module),
        *(operations.interpolate, operations.pixel_shuffle),
    }
)
