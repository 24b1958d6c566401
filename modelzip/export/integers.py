"""Integer modules as the ONNX operators that the runtime fuses into integer kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from torch import Tensor

from modelzip.export.layers import convolution_attributes, window_attributes
from modelzip.export.writer import Call, NoRuleError, Value
from modelzip.quantization.dynamic import DynamicQuantizedLinear
from modelzip.quantization.elementwise import (
    QuantizedHardsigmoid,
    QuantizedLeakyRelu,
    QuantizedMultiply,
    QuantizedSigmoid,
)
from modelzip.quantization.integer import (
    OnGrid,
    Quantize,
    QuantizedAdd,
    QuantizedAveragePool,
    QuantizedConv,
    QuantizedLayer,
    QuantizedLinear,
    counts_padding_only,
    covers,
)


def quantize(call: Call, module: Quantize, x: Value) -> str:
    return _emit(call, module, x.name)


def add(call: Call, module: QuantizedAdd, a: Value, b: Value) -> str:
    return _emit(call, module, call.node("Add", a.name, b.name), relu=module.relu)


def average_pool(call: Call, module: QuantizedAveragePool, x: Value, **window: Any) -> str:
    rank = len(x.shape)
    image = {*range(2, rank)}
    if window:
        if counts_padding_only(**window):
            raise NoRuleError(f"{call.label} counts its padding and has ceil_mode")
        if not covers(x.shape, **window):
            pooled = call.node("AveragePool", x.name, **window_attributes(rank - 2, **window))
            return _emit(call, module, pooled)
    elif not image or {d % rank for d in module.dims} != image:
        axes = call.constant(np.array(module.dims, np.int64))
        mean = call.node("ReduceMean", x.name, axes, keepdims=None if module.keepdim else 0)
        return _emit(call, module, mean)
    flat = not window and not module.keepdim
    pooled = _emit(call, module, call.node("GlobalAveragePool", x.name))
    return call.reshape(pooled) if flat else pooled


def convolution(call: Call, module: QuantizedConv, x: Value) -> str:
    weight, bias = _weight(call, module), _bias(call, module)
    attributes = convolution_attributes(module.weight.shape[2:], **module.geometry)
    product = call.layer("Conv", x.name, weight, bias, **attributes)
    return _emit(call, module, product, relu=module.relu)


def linear(call: Call, module: QuantizedLinear, x: Value) -> str:
    if len(x.shape) == 2:
        product = call.layer("Gemm", x.name, _weight(call, module), _bias(call, module), transB=1)
    else:
        transposed = _weight(call, module, transposed=True)
        bias = call.constant(module.bias.float() * module.bias_scale)
        product = call.node("Add", call.layer("MatMul", x.name, transposed), bias)
    return _emit(call, module, product, relu=module.relu)


def dynamic_linear(call: Call, module: DynamicQuantizedLinear, x: Value) -> str:
    q, step, zero = call.graph.nodes_outputs("DynamicQuantizeLinear", x.name, names=["", "", ""])
    weight = call.constant(module.weight.t().contiguous(), f"{call.label}.weight")
    total = call.layer("MatMulInteger", q, weight, zero)
    scale = call.node("Mul", step, call.constant(module.weight_scale))
    product = call.node("Mul", call.node("Cast", total, to=onnx.TensorProto.FLOAT), scale)
    if module.bias is None:
        return product
    return call.node("Add", product, call.constant(module.bias))


def multiply(call: Call, module: QuantizedMultiply, a: Value, b: Value) -> str:
    return _emit(call, module, call.node("Mul", a.name, b.name), relu=module.relu)


def sigmoid(call: Call, module: QuantizedSigmoid, x: Value) -> str:
    return _emit(call, module, call.node("Sigmoid", x.name))


def leaky_relu(call: Call, module: QuantizedLeakyRelu, x: Value) -> str:
    return _emit(call, module, call.node("LeakyRelu", x.name, alpha=module.slope))


def hardsigmoid(call: Call, module: QuantizedHardsigmoid, x: Value) -> str:
    one = call.constant(np.ones(1, np.uint8))
    three = call.node("DequantizeLinear", one, call.constant(module.shift.b_scale))
    total = call.node("Add", x.name, three)
    return _emit(call, module, total, stored_with=module.shift.out_scale)


def _emit(
    call: Call, module: OnGrid, name: str, *, relu: bool = False, stored_with: Tensor | None = None
) -> str:
    """The value `name` on the module's grid, where it has one.

    `stored_with` is the scale to quantize with, where it is another than that of the grid.
    """
    if not module.quantized:
        return call.node("Relu", name) if relu else name
    if relu and module.out_zero_point:
        raise NoRuleError(f"{call.label}: the runtime cuts off at a zero point of 0 alone")
    # rounding to integers from 0 upwards is a ReLU in itself
    scale, zero_point, top = module.out
    grid = call.constant(scale), call.constant(np.uint8(zero_point))
    stored = call.constant(scale if stored_with is None else stored_with)
    q = call.node("QuantizeLinear", name, stored, grid[1])
    if top < 255:  # a grid of fewer bits, kept in bytes
        q = call.node("Clip", q, call.constant(np.uint8(0)), call.constant(np.uint8(top)))
    return call.node("DequantizeLinear", q, *grid, name=f"{call.label}_quantized")


def _weight(call: Call, module: QuantizedLayer, *, transposed: bool = False) -> str:
    weight = module.weight.t().contiguous() if transposed else module.weight
    inputs = [call.constant(weight, f"{call.label}.weight"), call.constant(module.weight_scale)]
    if isinstance(module, QuantizedLinear):  # its kernels alone want to be told that it is 0
        inputs.append(call.constant(np.zeros(len(module.weight), np.int8)))
    return call.node("DequantizeLinear", *inputs, axis=int(transposed))


def _bias(call: Call, module: QuantizedLayer) -> str:
    # the step of the sum, which the runtime computes once, when it loads the file
    scale = call.node("Mul", call.constant(module.in_scale), call.constant(module.weight_scale))
    return call.node("DequantizeLinear", call.constant(module.bias), scale, axis=0)
