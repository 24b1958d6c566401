"""A module in eval mode becomes one ONNX file that onnxruntime loads."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelzip.core import surgery
from modelzip.core.running import evaluating, tensors
from modelzip.errors import ExportError, ModelError, OutputError, SettingError
from modelzip.export.arguments import (
    Positional,
    arguments,
    batch_of_two,
    dynamic_shapes,
    input_names,
    numbered,
)
from modelzip.export.narrow import narrow
from modelzip.quantization import symbolic

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_MOST_FOLDED = 64  # elements of a constant that is computed ahead; shapes have fewer
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
        SettingError: an opset that is too low or unknown, parametrizations that were not converted,
            or example inputs that do not fit the model's forward.
        ModelError: a parameter holds NaN.
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
    for name, parameter in model.named_parameters():
        if bool(torch.isnan(parameter).any()):
            raise ModelError(f"{name} holds NaN; nothing was exported")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    proto = _to_proto(model, example_inputs, opset=opset, dynamic_batch=dynamic_batch)
    _strip(proto)
    narrow(proto)
    _write(proto, path)
    return path


def _to_proto(
    model: nn.Module, example_inputs: Any, *, opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    frozen = surgery.clone(model).eval().requires_grad_(False)
    name = type(model).__name__
    args, kwargs = arguments(
        frozen, batch_of_two(example_inputs) if dynamic_batch else example_inputs
    )
    values = (*args, *kwargs.values())
    try:
        with evaluating(frozen):
            outputs = len(list(tensors(frozen(*args, **kwargs))))
        with symbolic.exporting(), _quiet():
            program = torch.onnx.export(
                Positional(frozen, tuple(kwargs)),
                # a dict in the last place would be taken for keywords
                (*values, {}) if values and isinstance(values[-1], dict) else values,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(dynamic_shapes(values),) if dynamic_batch else None,
                input_names=input_names(args, kwargs),
                output_names=numbered("output", outputs),
                external_data=False,
                optimize=False,
                verbose=False,
            )
            if program is not None:
                _optimize(program.model)
    except Exception as error:  # the exporter raises whatever any of its stages raises
        raise ExportError(f"{name} cannot be exported to ONNX: {_reason(error)}") from error
    if program is None or program.exported_program is None:
        raise ExportError(f"{name} cannot be exported to ONNX: no program came")
    _refuse_unfaithful(program.exported_program, name)
    for value in list(program.model.graph.initializers.values()):
        own = str(value.name).removeprefix("model.")
        value.name = own if "." in own else value.name
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if written != opset:  # it does so without a word
        raise SettingError(f"the exporter does not know opset {opset}; it wrote {written}")
    if dynamic_batch:
        _refuse_fixed_batch(proto)
    return proto


def _optimize(graph: ir.Model) -> None:
    """Fold shape arithmetic and fuse operators, and leave narrow weights narrow.

    The exporter's own call would fold the cast of a float16 weight back into a float32 one.
    """
    from onnxscript import optimizer
    from onnxscript.rewriter import onnx_fusions

    optimizer.optimize(graph, input_size_limit=_MOST_FOLDED)
    onnx_fusions.fuse(graph)


def _refuse_unfaithful(program: torch.export.ExportedProgram, name: str) -> None:
    """ExportError for what the exporter writes as something else, without a word."""
    for node in program.graph.nodes:
        values = [*node.args, *node.kwargs.values()]
        if node.target is torch.ops.aten.avg_pool2d.default and len(values) > 6 and values[6]:
            raise ExportError(
                f"{name} cannot be exported to ONNX: it has no average pool with "
                f"divisor_override={values[6]}; multiply the output of a plain one instead"
            )
        if "dropout" in str(node.target) and True in values:
            raise ExportError(
                f"{name} cannot be exported to ONNX: its dropout works in eval mode too; "
                "give F.dropout(..., training=self.training)"
            )


def _refuse_fixed_batch(proto: onnx.ModelProto) -> None:
    for value in proto.graph.input:
        shape = value.type.tensor_type.shape.dim
        if len(shape) and shape[0].dim_value:
            raise ExportError(
                f"the model works at one batch size alone: the first dimension of {value.name} is "
                f"always {shape[0].dim_value}; export with dynamic_batch=False"
            )


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
    """Write, check and load the file in a folder of its own, then move it to its place."""
    import onnx

    from modelzip.runtime import session

    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file, data = Path(folder, path.name), Path(folder, f"{path.name}.data")
            if _tensor_bytes(proto) > _ONE_FILE:
                onnx.save(
                    proto, file, save_as_external_data=True, location=data.name, size_threshold=1024
                )
            else:
                file.write_bytes(proto.SerializeToString(deterministic=True))
            onnx.checker.check_model(str(file), full_check=True)
            session.load(file)
            if data.exists():
                data.replace(path.with_name(data.name))
            file.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: the graph is not valid ONNX: {_reason(error)}") from error


def _tensor_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the weights; the message itself cannot be measured once it is over 2 GB."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress lines, logs and warnings about itself are kept from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
