"""A module in eval mode becomes one ONNX file that onnxruntime loads."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import ExportError, OutputError, SettingError
from modelzip.quantization import symbolic

if TYPE_CHECKING:
    import onnx

_ONE_FILE = 2_000_000_000  # protobuf's limit, less room for the graph


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    opset: int = symbolic.OPSET,
    dynamic_batch: bool = True,
) -> Path:
    """Write `model` to the ONNX file `path`, checked and loaded by onnxruntime, and return it.

    Integers are stored as integers, and what only debuggers read is left out. The file appears
    whole or not at all; past 2 GB its weights go to `path` with ".data" appended.

    Args:
        example_inputs: one batch: a tensor, a tuple of arguments, or a dict of keyword arguments.
        opset: at least 21, https://onnx.ai/onnx/operators/.
        dynamic_batch: the first dimension of every input may then be of any size.

    Raises:
        SettingError: an opset below 21, or parametrizations that were not converted.
        ExportError: the model cannot be exported, or onnxruntime refuses the file.
        OutputError: the file cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> export_onnx(nn.Linear(4, 2), torch.zeros(1, 4), folder / "linear.onnx").name
    'linear.onnx'
    """
    path = Path(path)
    if opset < symbolic.OPSET:
        raise SettingError(f"opset must be at least {symbolic.OPSET}, got {opset}")
    for name, module in model.named_modules():
        if nn.utils.parametrize.is_parametrized(module):
            raise SettingError(f"{name or 'the model'} is still being compressed; convert() first")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    proto = _to_proto(model, example_inputs, opset=opset, dynamic_batch=dynamic_batch)
    _strip(proto)
    _write(proto, path)
    return path


def _to_proto(
    model: nn.Module, example_inputs: Any, *, opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    frozen = surgery.clone(model).eval().requires_grad_(False)
    args, kwargs, names = _arguments(example_inputs)
    batch = torch.export.Dim("batch")
    shapes: Any = None
    if dynamic_batch:
        shapes = _dynamic_shapes(kwargs or args, batch)
    with evaluating(frozen):
        outputs = _count_outputs(call(frozen, example_inputs))
    output_names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    try:
        with symbolic.exporting(), _quiet():
            program = torch.onnx.export(
                frozen,
                args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                input_names=names,
                output_names=output_names,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever any of its stages raises
        raise ExportError(
            f"{type(model).__name__} cannot be exported to ONNX: {_reason(error)}"
        ) from error
    if program is None:
        raise ExportError(f"{type(model).__name__} cannot be exported to ONNX: no program came")
    return program.model_proto


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any] | None, list[str]]:
    """Positional arguments, keyword arguments, and a name for each tensor."""
    if isinstance(inputs, dict):
        return (), inputs, list(inputs)
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    count = len(list(tensors(args)))
    names = ["input"] if count == 1 else [f"input_{i}" for i in range(count)]
    if args and isinstance(args[-1], dict):
        names = [n for i, a in enumerate(args) for n in _names_of(a, i)]
        return args, {}, names  # without it the exporter takes the last dict for keywords
    return args, None, names


def _names_of(argument: Any, index: int) -> list[str]:
    return list(argument) if isinstance(argument, dict) else [f"input_{index}"]


def _dynamic_shapes(inputs: Any, batch: Any) -> Any:
    if isinstance(inputs, Tensor):
        return {0: batch} if inputs.dim() else None
    if isinstance(inputs, dict):
        return {name: _dynamic_shapes(value, batch) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(_dynamic_shapes(value, batch) for value in inputs)
    return None


def _count_outputs(outputs: Any) -> int:
    return len(list(tensors(outputs)))


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what only debuggers read: up to 40 % of a small file."""
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for function in proto.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]


def _write(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    from modelzip.runtime import session

    partial = path.with_name(f".{path.stem}.partial.onnx")
    large = proto.ByteSize() > _ONE_FILE
    data = path.with_name(f"{path.name}.data")
    try:
        if large:
            onnx.save(proto, partial, save_as_external_data=True, location=data.name)
        else:
            onnx.checker.check_model(proto, full_check=True)
            partial.write_bytes(proto.SerializeToString(deterministic=True))
        session.load(partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {_reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress lines and its warnings about itself are kept from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
