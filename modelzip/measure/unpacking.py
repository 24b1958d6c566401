"""Weights that a file stores packed, and unpacks by operators on constants alone."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_OPERATORS = {"Cast", "Div", "Gather", "MatMul", "Mod", "Reshape", "Split"}
_VALUES = {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


@dataclass(frozen=True)
class Unpacked:
    """The packed weights of a graph.

    Attributes:
        weights: each as it is computed with, by the name of the value that it is unpacked into.
        bits: that an element of each is stored in.
        operators: that do nothing but unpack them, by their first output.
    """

    weights: dict[str, onnx.TensorProto]
    bits: dict[str, float]
    operators: frozenset[str]


def unpacked(graph: onnx.GraphProto) -> Unpacked:
    """The weights of `graph` that are looked up in a table of values when it is loaded."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    # the largest constant that each value is computed from, for values of constants alone
    origin = {name: name for name in stored}
    makers: dict[str, onnx.NodeProto] = {}
    tabled: set[str] = set()
    read: set[str] = set()
    for node in graph.node:
        if node.op_type not in _OPERATORS or not all(name in origin for name in node.input):
            read.update(node.input)
            continue
        largest = max((origin[name] for name in node.input), key=lambda n: _bytes(stored[n]))
        looked_up = node.op_type == "Gather" and _is_table(stored.get(node.input[0]))
        for name in node.output:
            origin[name], makers[name] = largest, node
            if looked_up or tabled.intersection(node.input):
                tabled.add(name)
    names = [name for name in makers if name in tabled and name in read]
    operators = _ancestors(names, makers)
    values = _evaluate(operators, stored, names)
    elements: dict[str, int] = {}
    for name, tensor in values.items():
        elements[origin[name]] = elements.get(origin[name], 0) + _size(tensor)
    bits = {name: 8 * _bytes(stored[origin[name]]) / elements[origin[name]] for name in values}
    return Unpacked(values, bits, frozenset(node.output[0] for node in operators))


def _is_table(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type in _VALUES and len(tensor.dims) == 1


def _ancestors(names: list[str], makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The operators that `names` are computed by, in the order of the graph."""
    needed, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name in makers and makers[name].output[0] not in needed:
            needed.add(makers[name].output[0])
            pending += makers[name].input
    return [node for name, node in makers.items() if name in needed]


def _evaluate(
    operators: list[onnx.NodeProto], stored: dict[str, onnx.TensorProto], names: list[str]
) -> dict[str, onnx.TensorProto]:
    if not names:
        return {}
    constants = {name: stored[name] for node in operators for name in node.input if name in stored}
    outputs = [helper.make_tensor_value_info(n, onnx.TensorProto.INT8, None) for n in names]
    graph = helper.make_graph(operators, "unpacking", [], outputs, [*constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    arrays = ReferenceEvaluator(model).run(None, {})
    return {n: numpy_helper.from_array(a, n) for n, a in zip(names, arrays, strict=True)}


def _bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) or tensor.ByteSize()


def _size(tensor: onnx.TensorProto) -> int:
    return int(numpy_helper.to_array(tensor).size)
