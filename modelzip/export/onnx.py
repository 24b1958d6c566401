"""A module in eval mode becomes one ONNX file that onnxruntime loads."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from modelzip.core import surgery
from modelzip.core.graph import captured
from modelzip.core.running import evaluating, tensors
from modelzip.errors import ExportError, ModelError, OutputError, SettingError
from modelzip.export import exporter
from modelzip.export.arguments import arguments, input_names
from modelzip.export.narrow import narrow
from modelzip.export.unquantized import keep_unquantized
from modelzip.quantization import symbolic
from modelzip.quantization.dynamic import DynamicQuantizedLinear
from modelzip.quantization.integer import QuantizedLayer
from modelzip.runtime.session import Session

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

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

    A model that branches on values is written along the path that `example_inputs` take, which the
    log tells. Integers are stored as integers, and what only debuggers read is left out. The file
    appears whole or not at all; past 2 GB its weights go to `path` with ".data" appended.

    Args:
        example_inputs: one batch: a tensor, a tuple of arguments, or a dict of keyword arguments.
        opset: at least 21, https://onnx.ai/onnx/operators/.
        dynamic_batch: the first dimension of every input may then be of any size.

    Raises:
        SettingError: an opset that is too low or unknown, parametrizations that were not converted,
            or example inputs that do not fit the model's forward.
        ModelError: a parameter holds NaN.
        ExportError: the model cannot be exported, onnxruntime refuses the file, or the file does
            not give the model's outputs on the example inputs.
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
            raise SettingError(
                f"{name or 'the model'} is still being compressed; convert() first, and make plain "
                "what you parametrized with torch.nn.utils.parametrize.remove_parametrizations"
            )
    for name, parameter in model.named_parameters():
        if bool(torch.isnan(parameter).any()):
            raise ModelError(f"{name} holds NaN; nothing was exported")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    model = surgery.clone(model).eval().requires_grad_(False)
    settings = _Settings(opset=opset, dynamic_batch=dynamic_batch)
    check = _comparison(model, example_inputs)
    if not _write_directly(model, example_inputs, path, settings, check):
        proto = _exported(model, example_inputs, settings)
        _pack(proto, model)
        _write(proto, path, check=check)
    return path


class _Settings(TypedDict):
    opset: int
    dynamic_batch: bool


def _write_directly(
    model: nn.Module,
    example_inputs: Any,
    path: Path,
    settings: _Settings,
    compare: Callable[[Session], None],
) -> bool:
    """Whether the file could be written operator by operator, and repeats the model's outputs."""
    # imported here, as onnx is
    from modelzip.export import direct, verify
    from modelzip.export.writer import NoRuleError

    args, kwargs = arguments(model, example_inputs)
    try:
        written = direct.write(model, args, kwargs, **settings)
        _pack(written.proto, model)

        def check(session: Session) -> None:
            verify.verify(session, written)  # with the traced graph, at two batch sizes
            compare(session)  # with the model itself, which tracing may have misread

        _write(written.proto, path, check=check)
    except (NoRuleError, ExportError) as error:
        log.debug("%s is left to torch's exporter: %s", path, error)
        return False
    return True


def _comparison(model: nn.Module, example_inputs: Any) -> Callable[[Session], None]:
    """What refuses a file that computes something else than `model` on the example inputs."""
    from modelzip.export.verify import refuse_other

    def compare(session: Session) -> None:
        args, kwargs = arguments(model, example_inputs)
        inputs = dict(zip(input_names(args, kwargs), tensors((args, kwargs)), strict=True))
        with evaluating(model):
            expected = list(tensors(model(*args, **kwargs)))
        refuse_other(session, inputs, expected)

    return compare


def _exported(model: nn.Module, example_inputs: Any, settings: _Settings) -> onnx.ModelProto:
    args, kwargs = arguments(model, example_inputs)
    try:
        return exporter.write(model, args, kwargs, **settings)
    except ExportError as error:
        graph = captured(model, example_inputs)
        if graph is None:
            raise
        log.warning("%s; exported as it was captured instead", error)
        return exporter.write(graph, args, kwargs, **settings)


def _pack(proto: onnx.ModelProto, model: nn.Module) -> None:
    from modelzip.export.direct import LONE
    from modelzip.export.packing import pack

    layers = (QuantizedLayer, DynamicQuantizedLinear)
    named = model.named_modules()
    pack(proto, {f"{name or LONE}.weight": m.bits for name, m in named if isinstance(m, layers)})


def _write(
    proto: onnx.ModelProto, path: Path, *, check: Callable[[Session], None] | None = None
) -> None:
    """Write, check and load the file in a folder of its own, then move it to its place.

    `check` may still refuse it, by raising, once it is loaded.
    """
    import onnx

    from modelzip.export.codebook import share_values
    from modelzip.runtime import session

    narrow(proto)
    keep_unquantized(proto)
    share_values(proto)
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
            loaded = session.load(file)
            if check is not None:
                check(loaded)
            if data.exists():
                data.replace(path.with_name(data.name))
            file.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path}: the graph is not valid ONNX: {exporter.first_line(error)}"
        ) from error


def _tensor_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the weights; the message itself cannot be measured once it is over 2 GB."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
