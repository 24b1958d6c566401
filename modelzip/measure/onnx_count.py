"""Counting weights and multiply-accumulates in an ONNX graph, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import inliner, numpy_helper, shape_inference

from modelzip.errors import ExportError
from modelzip.measure.size import LayerSize
from modelzip.measure.unpacking import unpacked
from modelzip.runtime import onnx_file

Shape = tuple[int, ...]

_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv"}
_PRODUCTS = {"Gemm", "QGemm", "MatMul", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul"}
_PRODUCTS |= {"MatMulIntegerToFloat"}
# they multiply, in ways not counted here; so may anything in another domain
_UNCOUNTED = {"Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan"}

# operators of other domains that are known: com.microsoft, as onnxruntime writes them
_FOREIGN = _CONVOLUTIONS | _PRODUCTS | {"DequantizeLinear", "QuantizeLinear", "QLinearAdd"}
_FOREIGN |= {"QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearMul"}
_FOREIGN |= {"QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "Gelu", "BiasGelu"}
_FOREIGN |= {"FastGelu", "QuickGelu", "SkipLayerNormalization"}

# operators that take integers as they are: where each weight or bias is, and its zero point
_SLOTS: dict[str, dict[int, int | None]] = {
    "ConvInteger": {1: 3},
    "DynamicQuantizeMatMul": {1: 3, 4: None},
    "MatMulInteger": {1: 3},
    "MatMulIntegerToFloat": {1: 5, 6: None},
    "QGemm": {3: 5, 6: None},
    "QLinearConv": {3: 5, 8: None},
    "QLinearMatMul": {3: 5},
}
# operators between a stored tensor and the operator it is a weight of
_TRANSPARENT = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"}
_NO_WEIGHTS = {"Clip", "Pad", "Resize", "Upsample"}  # their constants are settings


@dataclass(frozen=True)
class _Stored:
    """A stored tensor, the name of its zero point if any, and the axis that one runs along."""

    tensor: onnx.TensorProto
    zero_point: str = ""
    axis: int = 1
    dequantized: bool = False


def count(path: Path, *, example_inputs: Any) -> tuple[tuple[LayerSize, ...], tuple[str, ...]]:
    """Operators of the file that hold weights or multiply, and those that could not be counted.

    The batch, the first dimension of the first input, counts as 1 sample.
    """
    model = inliner.inline_local_functions(onnx_file.read(path))
    batch = _fix_inputs(model.graph, example_inputs)
    packed = unpacked(model.graph)
    stored = _stored(model.graph) | packed.weights
    shapes = _shapes(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    counted: set[str] = set()
    layers, uncounted = [], []
    for node in model.graph.node:
        if node.output[0] in packed.operators or _is_scale(node, stored):
            continue
        label = node.name or node.output[0]
        macs = _macs(node, shapes)
        if macs is None:
            uncounted.append(f"{label} ({node.op_type})")
        parameters, nonzero, bits, weight = 0, 0, 0.0, ""
        for found in _weights(node, stored, makers):
            if found.tensor.name in counted:  # a shared one is stored once
                continue
            counted.add(found.tensor.name)
            weight = weight or found.tensor.name
            elements, used = _elements(found, stored, path.parent)
            parameters += elements
            nonzero += used
            bits += elements * packed.bits.get(found.tensor.name, _bits(found.tensor))
        if parameters or macs:
            layers.append(
                LayerSize(
                    name=label,
                    op=node.op_type,
                    weight=weight,
                    parameters=parameters,
                    nonzero=nonzero,
                    bits=bits / parameters if parameters else 0.0,
                    macs=(macs or 0) // batch,
                )
            )
    return tuple(layers), tuple(uncounted)


def _fix_inputs(graph: onnx.GraphProto, example_inputs: Any) -> int:
    """Give inputs the shapes of the examples, or a batch of 1, and return the batch size."""
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if example_inputs is None:
        for value in inputs:
            dims = value.type.tensor_type.shape.dim
            if dims and not dims[0].HasField("dim_value"):
                dims[0].dim_value = 1
    else:
        given = (
            example_inputs
            if isinstance(example_inputs, (Mapping, tuple, list))
            else (example_inputs,)
        )
        pairs = (
            given
            if isinstance(given, Mapping)
            else dict(zip((v.name for v in inputs), given, strict=False))
        )
        for value in inputs:
            if value.name in pairs:
                for dim, length in zip(
                    value.type.tensor_type.shape.dim, pairs[value.name].shape, strict=False
                ):
                    dim.dim_value = length
    for value in graph.output:  # their symbolic dimensions would contradict the inputs' now
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    first = inputs[0].type.tensor_type.shape.dim if inputs else ()
    return max(1, first[0].dim_value) if first else 1


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of the values that shape inference knows in full."""
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except (shape_inference.InferenceError, ValueError, RuntimeError):
        graph = model.graph  # nothing is known, and all of it is listed as uncounted
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        dims = tensor_type.shape.dim
        if tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-accumulates of one operator; None where they cannot be told."""
    op = node.op_type
    if op in _UNCOUNTED or (_is_foreign(node) and op not in _FOREIGN):
        return None
    out = shapes.get(node.output[0]) if node.output else None
    first = shapes.get(node.input[0]) if node.input else None
    if op in _CONVOLUTIONS or op == "ConvTranspose":
        weight = shapes.get(node.input[3 if op == "QLinearConv" else 1])
        moving = first if op == "ConvTranspose" else out
        return None if moving is None or weight is None else math.prod(moving + weight[1:])
    if op in _PRODUCTS:
        if out is None or not first:
            return None
        return math.prod(out) * first[0 if _flag(node, "transA") else -1]
    return 0


def _is_scale(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the node multiplies constants, which is done once, when the file is loaded."""
    return node.op_type == "Mul" and all(name in stored for name in node.input)


def _is_foreign(node: onnx.NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx")


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and constants, by the name that operators know them by."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                found[tensor.name] = tensor
    return found


def _weights(
    node: onnx.NodeProto,
    stored: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
) -> Iterator[_Stored]:
    """The stored tensors that are weights or biases of `node`."""
    if node.op_type in _TRANSPARENT or node.op_type in _NO_WEIGHTS:
        return
    slots = _SLOTS.get(node.op_type)
    for index, name in enumerate(node.input):
        if slots is not None and index not in slots:
            continue
        if slots is not None and name in stored:
            zero = slots[index]
            has_zero = zero is not None and zero < len(node.input)
            # per channel: the output channels, first in a convolution and last in a product
            first = node.op_type in _CONVOLUTIONS or _flag(node, "transB")
            axis = 0 if first else -1
            yield _Stored(stored[name], node.input[zero] if has_zero and zero else "", axis)
            continue
        found = _trace(name, stored, makers)
        if found is None or not found.tensor.dims or not _is_weight(found):
            continue
        # integers that an unknown operator takes may hold several weights each
        if not (_is_foreign(node) and node.op_type not in _FOREIGN and _is_integer(found.tensor)):
            yield found


def _trace(
    name: str, stored: Mapping[str, onnx.TensorProto], makers: Mapping[str, onnx.NodeProto]
) -> _Stored | None:
    """The stored tensor that `name` is, but for its type, layout and scale."""
    zero_point, axis, dequantized = "", 1, False
    while name not in stored:
        maker = makers.get(name)
        if maker is None or maker.op_type not in _TRANSPARENT:
            return None
        if maker.op_type == "DequantizeLinear":
            dequantized = True
            zero_point = maker.input[2] if len(maker.input) > 2 else ""
            axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
        name = maker.input[0]
    if not _is_integer(stored[name]):  # a float that is quantized as it is used
        zero_point, dequantized = "", False
    return _Stored(stored[name], zero_point, axis, dequantized)


def _is_integer(tensor: onnx.TensorProto) -> bool:
    name: str = onnx.TensorProto.DataType.Name(tensor.data_type)
    return name.startswith(("INT", "UINT", "BOOL"))


def _is_weight(found: _Stored) -> bool:
    """Wide integers are shapes and indices, unless they are dequantized."""
    narrow = _bits(found.tensor) <= 8 and found.tensor.data_type != onnx.TensorProto.BOOL
    return found.dequantized or narrow or not _is_integer(found.tensor)


def _bits(tensor: onnx.TensorProto) -> int:
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    digits = "".join(c for c in name.split("E")[0] if c.isdigit())  # FLOAT8E4M3FN, INT4
    if digits:
        return int(digits)
    return {"FLOAT": 32, "DOUBLE": 64}.get(name, 8)


def _elements(
    found: _Stored, stored: Mapping[str, onnx.TensorProto], folder: Path
) -> tuple[int, int]:
    """Elements of a tensor, and how many differ from zero or their zero point."""
    values = _values(found.tensor, folder)
    if found.zero_point not in stored:
        return values.size, int(np.count_nonzero(values))
    zero = _values(stored[found.zero_point], folder)
    try:
        if zero.ndim == 1 and values.ndim > 1:
            along = [1] * values.ndim
            along[found.axis] = -1
            zero = zero.reshape(along)
        elif zero.ndim > 1:  # a block has a zero point each
            length = values.shape[found.axis]
            zero = np.repeat(zero, -(-length // zero.shape[found.axis]), found.axis)
            zero = np.take(zero, np.arange(length), found.axis)
        return values.size, int(np.count_nonzero(values != zero))
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ExportError(
            f"the zero point of tensor {found.tensor.name}, {list(zero.shape)}, does not fit its "
            f"shape {list(values.shape)}"
        ) from error


def _values(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[np.float32]:
    try:
        return numpy_helper.to_array(tensor, str(folder)).astype(np.float32)
    except (ValueError, TypeError) as error:
        raise ExportError(f"tensor {tensor.name} of the file is damaged: {error}") from error
