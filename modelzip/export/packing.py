"""Integer weights stored in the bits they have, and unpacked when a runtime loads the file.

Four bits are the INT4 of ONNX, in the weight's own shape. Others are digits of words: k values
v = sum over planes p of base**p * digit_p, where word p holds digit_p of all k, base**i * digit_i
summed up. Operators that every runtime knows take them apart, Cast, Div, Mod and MatMul, and a
Gather from a table gives the int8 weight. All inputs are constant, so runtimes compute it once and
then see an int8 weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from ml_dtypes import int4
from onnx import numpy_helper

from modelzip.export.writer import Array, Graph

_TOGETHER = 2**22  # weights unpacked at once, at 4 bytes each and a few copies
_Weight = tuple[str, Array]  # a weight's name, and its integers in steps


@dataclass(frozen=True)
class Words:
    """How values below base**planes are stored: `count` of them in `planes` words."""

    dtype: type[np.integer[Any]]
    base: int
    count: int
    planes: int = 1


# Symmetric weights of b bits have 2**b - 1 values: 5 of 3 fit a byte (1.6 bits each), 11 of 7 fit
# 31 bits (2.9 each). Others are taken apart into digits that fill bytes.
_WORDS = {
    2: Words(np.uint8, base=3, count=5),
    3: Words(np.int32, base=7, count=11),
    5: Words(np.uint8, base=2, count=8, planes=5),
    6: Words(np.uint8, base=4, count=4, planes=3),
    7: Words(np.uint8, base=2, count=8, planes=7),
}


def pack(proto: onnx.ModelProto, bits: Mapping[str, int]) -> None:
    """Store the int8 initializers that `bits` names in as many bits, where that saves bytes.

    Weights of b bits are integers up to 2**(b - 1) - 1, or those times 2**(7 - b). What is neither
    stays as it is.
    """
    graph = Graph(name for node in proto.graph.node for name in (*node.input, *node.output))
    groups: dict[tuple[int, int], list[_Weight]] = {}
    kept = []
    for tensor in proto.graph.initializer:
        narrow = bits.get(tensor.name, 8)
        weight = numpy_helper.to_array(tensor) if narrow < 8 else np.zeros(0)
        step = _step(weight, narrow) if weight.dtype == np.int8 else None
        if step is None:
            kept.append(tensor)
        else:
            groups.setdefault((narrow, step), []).append((tensor.name, weight // step))
    for (narrow, step), weights in groups.items():
        if narrow == 4:
            for name, values in weights:
                _write_int4(graph, name, values, step)
            continue
        for part in _parts(weights):
            _write(graph, part, narrow, step)
    nodes = [*graph.nodes, *proto.graph.node]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend([*graph.initializers.values(), *kept])


def _step(weight: Array, bits: int) -> int | None:
    """What the weights are multiples of, if they are multiples that `bits` bits can hold."""
    top = 2 ** (bits - 1) - 1
    for step in (2 ** max(7 - bits, 0), 1):
        values, rest = np.divmod(weight.astype(np.int32), step)
        if not rest.any() and np.abs(values).max(initial=0) <= top:
            return step
    return None


def _parts(weights: list[_Weight]) -> Iterator[list[_Weight]]:
    """Weights that are unpacked together: fewer operators, and not all of the memory at once."""
    part: list[_Weight] = []
    for weight in weights:
        if part and sum(values.size for _, values in [*part, weight]) > _TOGETHER:
            yield part
            part = []
        part.append(weight)
    yield part


def _write_int4(graph: Graph, name: str, values: Array, step: int) -> None:
    """Store a weight as INT4, and add the operators that unpack it."""
    index = graph.node("Cast", graph.constant(values.astype(int4)), to=onnx.TensorProto.INT32)
    table = np.roll(np.arange(-8, 8), 8)  # an index below 0 counts from the end
    graph.node("Gather", graph.constant(_steps(table, step)), index)
    graph.nodes[-1].output[0] = name


def _steps(table: Array, step: int) -> Array:
    found: Array = (table * step).clip(-128, 127).astype(np.int8)  # -8 * 16 alone is out of range
    return found


def _write(graph: Graph, weights: list[_Weight], bits: int, step: int) -> None:
    """Store `weights` in one constant, and add the operators that unpack them."""
    flat = np.concatenate([values.ravel() for _, values in weights]).astype(np.int32)
    top = 2 ** (bits - 1) - 1
    lengths = [values.size for _, values in weights]
    words = _WORDS[bits]
    index = digits(graph, flat + top, words)
    lengths += [-flat.size % words.count] if flat.size % words.count else []
    table = graph.constant(_steps(np.arange(-top, top + 1), step))
    unpacked = graph.node("Gather", table, index)
    unpacked = graph.node("Reshape", unpacked, graph.constant(np.array([-1], np.int64)))
    sizes = graph.constant(np.array(lengths, np.int64))
    found = graph.nodes_outputs("Split", unpacked, sizes, names=[""] * len(lengths))
    for (name, values), one in zip(weights, found, strict=False):
        graph.node("Reshape", one, graph.constant(np.array(values.shape, np.int64)))
        graph.nodes[-1].output[0] = name


def digits(graph: Graph, values: Array, words: Words) -> str:
    """An int32 value that holds `values`, from 0 upwards and with zeros behind, row by row."""
    powers = words.base ** np.arange(words.count, dtype=np.int32)
    places = words.base ** np.arange(words.planes, dtype=np.int32)
    padded = np.append(values, np.zeros(-values.size % words.count, np.int32))
    digits = padded.reshape(-1, words.count, 1) // places % words.base
    stored = (digits * powers[:, None]).sum(1, keepdims=True).astype(words.dtype)
    name = graph.constant(stored if words.planes > 1 else stored[:, :, 0])
    if words.dtype is not np.int32:
        name = graph.node("Cast", name, to=onnx.TensorProto.INT32)
    column = graph.constant(powers[:, None] if words.planes > 1 else powers)
    quotients = graph.node("Div", name, column)
    name = graph.node("Mod", quotients, graph.constant(np.int32(words.base)))
    return graph.node("MatMul", name, graph.constant(places)) if words.planes > 1 else name
