"""Models as torch's own exporter writes them: any that it can capture, in some seconds."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelzip.core.running import evaluating, tensors
from modelzip.errors import ExportError, SettingError
from modelzip.export.arguments import (
    Positional,
    batch_of_two,
    dynamic_shapes,
    input_names,
    numbered,
)
from modelzip.quantization import symbolic

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_MOST_FOLDED = 64  # elements of a constant that is computed ahead; shapes have fewer


def write(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    opset: int,
    dynamic_batch: bool,
) -> onnx.ModelProto:
    """`model`, in eval mode, as an ONNX graph; ExportError where the exporter fails.

    SettingError for an opset that it does not know.
    """
    name = type(model).__name__
    if dynamic_batch:
        args, kwargs = batch_of_two((args, kwargs))
    values = (*args, *kwargs.values())
    try:
        with evaluating(model):
            outputs = len(list(tensors(model(*args, **kwargs))))
        with symbolic.exporting(), _quiet():
            program = torch.onnx.export(
                Positional(model, tuple(kwargs)),
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
        raise ExportError(f"{name} cannot be exported to ONNX: {first_line(error)}") from error
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
    _strip(proto)
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


def first_line(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
