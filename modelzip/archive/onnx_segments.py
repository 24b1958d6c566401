"""The tensors of an ONNX file, found in its protobuf encoding: nothing of it is parsed or kept.

Every TensorProto counts: initializers of the graph and of graphs inside attributes, attributes of
nodes (Constant), functions, sparse tensors. A tensor's bytes are its raw_data, or else its packed
float_data or double_data, which is the same. Integers in int32_data and the like are numbers of
varying width and no tensor here. Field numbers: onnx.proto of ONNX 1.23,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

from modelzip.archive.protobuf import LENGTH, VARINT, Field, fields, varint
from modelzip.archive.spans import MAX_DIMS, Span, span
from modelzip.errors import ArchiveError

MAX_DEPTH = 100  # protobuf's own
MAX_NAME = 1000  # characters that are listed of a name, which stays whole in the file

IR_VERSION, GRAPH = 1, 7  # of a model
NODE_OUTPUT, NODE_NAME = 2, 3
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA, DOUBLE_DATA, DATA_LOCATION = 1, 2, 4, 8, 9, 10, 14
EXTERNAL = 1

# message: its fields that hold messages with tensors in them
CHILDREN = {
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "sparse": {1: "tensor", 2: "tensor"},
}
FLOAT, DOUBLE = 1, 11
DTYPES = {  # TensorProto.DataType; what is not here (FLOAT4E2M1, INT2, ...) is plain bytes
    FLOAT: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    DOUBLE: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    **dict.fromkeys((17, 18, 19, 20, 24), "uint8"),  # the float8 types
    21: "uint4",
    22: "int4",
}


def find_tensors(view: memoryview) -> Iterator[Span]:
    """The tensors of an ONNX file, in the order of their bytes.

    ArchiveError if it is not one, is damaged, or keeps a tensor in another file.
    """
    needed = {(IR_VERSION, VARINT), (GRAPH, LENGTH)}
    for field in fields(view, 0, len(view)):
        needed.discard((field.number, field.wire))
    if needed:
        raise ArchiveError("it has no ONNX version and graph")
    yield from _walk(view, "model", 0, len(view), label="", depth=0)


def _walk(
    view: memoryview, message: str, start: int, end: int, *, label: str, depth: int
) -> Iterator[Span]:
    """The tensors in the message at bytes `start` to `end`, which is inside what `label` says."""
    if depth > MAX_DEPTH:
        raise ArchiveError(f"byte {start} is nested more than {MAX_DEPTH} deep")
    if message == "tensor":
        yield from _tensor(view, start, end, label)
        return
    if message == "node":
        label = _joined(label, _node_label(view, start, end))
    children = CHILDREN[message]
    for field in fields(view, start, end):
        child = children.get(field.number)
        if child is not None and field.wire == LENGTH:
            yield from _walk(view, child, field.start, field.end, label=label, depth=depth + 1)


def _tensor(view: memoryview, start: int, end: int, label: str) -> Iterator[Span]:
    """The tensor's bytes, if it has any in one piece."""
    dims: list[int] = []
    data_type = location = 0
    name = ""
    data: dict[int, list[Field]] = {RAW_DATA: [], FLOAT_DATA: [], DOUBLE_DATA: []}
    for field in fields(view, start, end):
        if field.number == DIMS and len(dims) <= MAX_DIMS:
            dims += _numbers(view, field)
        elif field.number == DATA_TYPE and field.wire == VARINT:
            data_type = field.value
        elif field.number == DATA_LOCATION and field.wire == VARINT:
            location = field.value
        elif field.number == NAME and field.wire == LENGTH:
            name = _text(view, field)
        elif field.number in data and len(data[field.number]) < 2:
            data[field.number].append(field)
    name = _joined(label, name)
    if location == EXTERNAL:
        raise ArchiveError(
            f"tensor {name!r} lies in another file; save the model in one file: "
            "onnx.save_model(onnx.load(path), new_path)"
        )
    used = data[RAW_DATA]
    if not used and data_type in (FLOAT, DOUBLE):
        used = data[FLOAT_DATA if data_type == FLOAT else DOUBLE_DATA]
    if len(used) == 1 and used[0].wire == LENGTH:  # else: several pieces, which few writers make
        at, size = used[0].start, used[0].end - used[0].start
        shape = dims if len(dims) <= MAX_DIMS else [size]
        yield span(name, DTYPES.get(data_type), shape, offset=at, size=size)


def _numbers(view: memoryview, field: Field) -> Iterator[int]:
    """A repeated number: one in a field, or packed. No more than a shape may have."""
    if field.wire == VARINT:
        yield field.value
    elif field.wire == LENGTH:
        at = field.start
        for _ in range(MAX_DIMS + 1):
            if at < field.end:
                value, at = varint(view, at, field.end)
                yield value


def _node_label(view: memoryview, start: int, end: int) -> str:
    """A node's name, or its first output: what its unnamed tensors are known by."""
    name = output = ""
    for field in fields(view, start, end):
        if field.wire == LENGTH and field.number == NODE_NAME:
            name = _text(view, field)
        elif field.wire == LENGTH and field.number == NODE_OUTPUT:
            output = output or _text(view, field)
    return name or output


def _joined(label: str, name: str) -> str:
    return f"{label}/{name}"[-MAX_NAME:] if label and name else label or name


def _text(view: memoryview, field: Field) -> str:
    return bytes(view[field.start : min(field.end, field.start + MAX_NAME)]).decode(
        errors="replace"
    )
