"""Weights of few different values, stored as these values and the number of one for each weight.

Numbers take as many bits as the values need, and are unpacked by operators on constants: runtimes
compute them once, when they load the file, and then see the same float weight as before.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from ml_dtypes import int4
from onnx import numpy_helper

from modelzip.export.packing import Words, digits
from modelzip.export.writer import Array, Graph

_PATTERNS: dict[int, type[np.unsignedinteger[Any]]] = {
    onnx.TensorProto.FLOAT: np.uint32,
    onnx.TensorProto.FLOAT16: np.uint16,
}
_MOST = 256  # values, whose numbers fit a byte
_LOOK = 4096  # weights that tell whether it is worth to look at all
_OPERATORS_BYTES = 400  # that unpacking adds to a file, at most


def share_values(proto: onnx.ModelProto) -> None:
    """Store float initializers of 2 to 256 different values so, in place, where it saves bytes.

    Vectors stay as they are. What is unpacked is equal to the last bit.
    """
    graph = Graph(name for node in proto.graph.node for name in (*node.input, *node.output))
    kept = []
    for tensor in proto.graph.initializer:
        table = _table(tensor)
        if table is None or not _write(graph, tensor, table):
            kept.append(tensor)
    nodes = [*graph.nodes, *proto.graph.node]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend([*graph.initializers.values(), *kept])


def _table(tensor: onnx.TensorProto) -> Array | None:
    """The bit patterns of the different values of `tensor`, if they are few."""
    if tensor.data_type not in _PATTERNS or len(tensor.dims) < 2:
        return None
    patterns = _patterns(tensor)
    if len(np.unique(patterns[:_LOOK])) > _MOST:
        return None
    table = np.unique(patterns)
    return table if 2 <= len(table) <= _MOST else None


def _patterns(tensor: onnx.TensorProto) -> Array:
    # as integers, among which 0.0 is not -0.0 and NaN is NaN
    return numpy_helper.to_array(tensor).ravel().view(_PATTERNS[tensor.data_type])


def _write(graph: Graph, tensor: onnx.TensorProto, table: Array) -> bool:
    """Whether `tensor` is smaller as numbers of its values; if so they and operators are added."""
    shape = tuple(tensor.dims)
    patterns = _patterns(tensor)
    bits = (len(table) - 1).bit_length()
    if patterns.size % 8:  # digits fill whole bytes
        bits = 4 if bits <= 4 else 8
    if bits * patterns.size / 8 + table.nbytes + _OPERATORS_BYTES > patterns.nbytes:
        return False
    numbers = np.searchsorted(table, patterns).astype(np.int32).reshape(shape)
    values = table.view(numpy_helper.to_array(tensor).dtype)
    if bits == 4:
        # an int4 is -8 to 7, and one below 0 counts from the end: 16 values, turned by 8
        values = np.roll(np.append(values, np.zeros(16 - len(values), values.dtype)), 8)
        stored = graph.constant((numbers - 8).astype(int4))
        index = graph.node("Cast", stored, to=onnx.TensorProto.INT32)
    elif bits == 8:
        stored = graph.constant(numbers.astype(np.uint8))
        index = graph.node("Cast", stored, to=onnx.TensorProto.INT32)
    else:
        index = digits(graph, numbers.ravel(), _words(bits))
        index = graph.node("Reshape", index, graph.constant(np.array(shape, np.int64)))
    graph.node("Gather", graph.constant(values), index)
    graph.nodes[-1].output[0] = tensor.name
    return True


def _words(bits: int) -> Words:
    """Bytes that hold numbers of `bits` bits, in as many planes as it takes to fill them."""
    filled = math.gcd(bits, 8)
    return Words(np.uint8, base=2**filled, count=8 // filled, planes=bits // filled)
