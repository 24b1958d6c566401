"""Counting weights and multiply-accumulates in an ONNX graph, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import inliner, shape_inference

from modelzip.measure.onnx_weights import (
    CONVOLUTIONS,
    KNOWN_FOREIGN,
    PRODUCTS,
    bits_of,
    flag,
    is_foreign,
    nonzero_elements,
    stored_tensors,
    weights_of,
)
from modelzip.measure.size import LayerSize
from modelzip.measure.unpacking import unpacked
from modelzip.runtime import onnx_file

Shape = tuple[int, ...]

# they multiply, in ways not counted here; so may anything in another domain
_UNCOUNTED = {"Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan"}


def count(path: Path, *, example_inputs: Any) -> tuple[tuple[LayerSize, ...], tuple[str, ...]]:
    """Operators of the file that hold weights or multiply, and those that could not be counted.

    The batch, the first dimension of the first input, counts as 1 sample.
    """
    model = inliner.inline_local_functions(onnx_file.read(path))
    batch = _fix_inputs(model.graph, example_inputs)
    packed = unpacked(model.graph)
    stored = stored_tensors(model.graph) | packed.weights
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
        for found in weights_of(node, stored, makers):
            if found.tensor.name in counted:  # a shared one is stored once
                continue
            counted.add(found.tensor.name)
            weight = weight or found.tensor.name
            used = nonzero_elements(found, stored, path.parent)
            elements = used.size
            parameters += elements
            nonzero += int(np.count_nonzero(used))
            bits += elements * packed.bits.get(found.tensor.name, bits_of(found.tensor))
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
    if op in _UNCOUNTED or (is_foreign(node) and op not in KNOWN_FOREIGN):
        return None
    out = shapes.get(node.output[0]) if node.output else None
    first = shapes.get(node.input[0]) if node.input else None
    if op in CONVOLUTIONS or op == "ConvTranspose":
        weight = shapes.get(node.input[3 if op == "QLinearConv" else 1])
        moving = first if op == "ConvTranspose" else out
        return None if moving is None or weight is None else math.prod(moving + weight[1:])
    if op in PRODUCTS:
        if out is None or not first:
            return None
        return math.prod(out) * first[0 if flag(node, "transA") else -1]
    return 0


def _is_scale(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the node multiplies constants, which is done once, when the file is loaded."""
    return node.op_type == "Mul" and all(name in stored for name in node.input)
