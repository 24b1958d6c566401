"""Reading ONNX files that may come from strangers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from modelzip.errors import ExportError

MAX_BYTES = 2**31 - 1  # protobuf's own limit; weights past it are external data


def check(path: Path) -> None:
    """ExportError unless `path` is a valid ONNX file that reads nothing outside its folder."""
    read(path)


def read(path: str | Path, *, weights: bool = False) -> onnx.ModelProto:
    """The model in the file `path`, checked; external data are loaded only with `weights`.

    Raises:
        ExportError: there is no such file, it is too large, damaged or invalid, or its external
            data lie outside its folder or are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"there is no file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ExportError(
            f"{path} has {path.stat().st_size} bytes, over the {MAX_BYTES} that protobuf reads; "
            "save its weights as external data"
        )
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own, which onnx does not export
        raise ExportError(f"{path} is not an ONNX file: {_one_line(error)}") from error
    if not model.graph.node and not model.graph.output:
        raise ExportError(f"{path} is not an ONNX file: it holds no graph")
    known = onnx.TensorProto.DataType.values()
    for tensor in tensors(model):
        if tensor.data_type not in known:
            raise ExportError(
                f"{path}: tensor {tensor.name} has the unknown data type {tensor.data_type}"
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ExportError(f"{path} is not a valid ONNX model: {_one_line(error)}") from error
    if weights:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names, relative to the file, of the files that its tensors are read from."""
    return {
        entry.value
        for tensor in tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in `model`: initializers and constants, subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    pure = (PurePosixPath(location), PureWindowsPath(location))
    absolute = any(p.is_absolute() or p.drive or p.root for p in pure)
    folder = path.resolve().parent
    if not location or absolute or any(".." in p.parts for p in pure):
        raise ExportError(
            f"{path}: tensor {tensor.name} reads {location!r}, which is not a file in its folder"
        )
    target = (folder / location).resolve()  # follows links
    if not target.is_relative_to(folder):
        raise ExportError(
            f"{path}: tensor {tensor.name} reads {location!r}, a link out of its folder"
        )
    if not target.is_file():
        raise ExportError(f"{path}: its external data {location!r} are missing")
    try:
        start, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise ExportError(f"{path}: tensor {tensor.name} has a broken offset or length") from error
    if start < 0 or length < 0 or start + length > target.stat().st_size:
        raise ExportError(
            f"{path}: tensor {tensor.name} reads bytes {start} to {start + length} of "
            f"{location!r}, which has {target.stat().st_size}"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
