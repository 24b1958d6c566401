"""Quantizers put on a model's layers and activations, and what is reported of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.core.base import Batch, LayerReport, Pass, PassReport
from modelzip.core.graph import trace
from modelzip.core.selection import select
from modelzip.errors import ModelError, SelectionError, SettingError
from modelzip.quantization.calibration import Calibrator, calibrate
from modelzip.quantization.dynamic import DynamicQuantizedLinear
from modelzip.quantization.fake import Method, WeightQuantizer
from modelzip.quantization.integer import QuantizedConv, QuantizedLinear
from modelzip.quantization.placement import CONTAINER, place

KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def choose_layers(
    pass_: Pass,
    model: nn.Module,
    *,
    kinds: tuple[type[nn.Module], ...] = KINDS,
    traced: bool = True,
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers `pass_` selects that have an integer form, and why the others have none.

    With `traced`, layers inside a composite module of torch, which tracing keeps whole, have none.
    SettingError if the model is quantized already, SelectionError if nothing is left, ModelError
    for tied weights, and for parameters that are not finite or not float32.
    """
    if next(surgery.all_attached(model, WeightQuantizer), None) is not None:
        raise SettingError(f"{pass_.name}: the model is quantized already; give one such pass")
    selected = select(model, kinds=kinds, targets=pass_.targets, skip=pass_.skip)
    protected = {
        name: f"padding_mode={layer.padding_mode!r} has no integer form"
        for name, layer in selected.items()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.padding_mode != "zeros"
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) or (traced and _is_composite(module)):
            inside = [n for n, _ in module.named_modules(prefix=name) if n in selected]
            reason = f"inside {type(module).__name__}, which runs as one operation"
            protected |= {n: reason for n in inside if n != name}
    layers = {n: m for n, m in selected.items() if n not in protected}
    if not layers:
        reasons = "; ".join(f"{n}: {r}" for n, r in protected.items())
        raise SelectionError(f"{pass_.name} can quantize none of the selected layers ({reasons})")
    surgery.refuse_tied(model, layers, pass_name=pass_.name)
    surgery.refuse_computed(layers, pass_name=pass_.name)
    _refuse_unusable(pass_, model)
    return layers, protected


def _is_composite(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    own = type(module).__module__.startswith("torch.nn")
    return own and not isinstance(module, (*containers, *KINDS)) and any(module.children())


def _refuse_unusable(pass_: Pass, model: nn.Module) -> None:
    """ModelError for parameters that are not finite, or not float32."""
    for name, tensor in (*model.named_parameters(), *_statistics(model)):
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} holds NaN or infinity; nothing was quantized")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name} is {kind}; {pass_.name} works on float32, call model.float() first"
            )


def _statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Running means and variances; other buffers, such as masks, may well be infinite."""
    for name, tensor in model.named_buffers():
        if name.rpartition(".")[2] in ("running_mean", "running_var"):
            yield name, tensor


def attach_static(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    *,
    bits: int,
    activation_bits: int,
    method: Method,
    everywhere: bool,
    batches: Sequence[Batch],
    calibrator: Calibrator,
    percentile: float,
) -> fx.GraphModule:
    """`model` traced, with quantizers on the weights of `layers` and on activations.

    Ranges come from `batches`; with none, as when a checkpoint is read, they are left for later.
    """
    graph = trace(model)
    called = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    unseen = [name for name in layers if name not in called]
    if unseen:
        raise ModelError(
            f"{unseen[0]} is never called as a module in forward, so it cannot be quantized; "
            f"add skip: [{', '.join(unseen)}]"
        )
    placed = place(graph, layers, bits=activation_bits, method=method, everywhere=everywhere)
    if batches:
        calibrate(graph, placed, batches, calibrator=calibrator, percentile=percentile)
    graph.get_submodule(CONTAINER).train(graph.training)
    for layer in layers.values():
        weight = surgery.original_tensor(layer)
        quantizer = WeightQuantizer(weight, bits=bits, method=method)
        surgery.attach(layer, quantizer.train(layer.training))
    return graph


def report(
    pass_: Pass,
    before: Mapping[str, nn.Module],
    after: nn.Module,
    protected: Mapping[str, str],
) -> PassReport:
    """What quantizing the layers `before` made of them, as they are in `after`."""
    rows = []
    for name, module in after.named_modules():
        if not isinstance(module, (QuantizedConv, QuantizedLinear, DynamicQuantizedLinear)):
            continue
        layer = before[name if name in before else name.rpartition("_call")[0]]
        count, nonzero = surgery.parameter_counts(module)
        rows.append(
            LayerReport(
                name=name,
                kind=type(module).__name__,
                parameters_before=surgery.parameter_counts(layer)[0],
                parameters_after=count,
                nonzero=nonzero,
                bits=float(module.bits),
                note=_note(module),
            )
        )
    return PassReport(
        name=pass_.name, settings=pass_.settings(), layers=tuple(rows), protected=dict(protected)
    )


def _note(module: QuantizedConv | QuantizedLinear | DynamicQuantizedLinear) -> str:
    if isinstance(module, DynamicQuantizedLinear):
        return "input quantized at run time"
    if isinstance(module, QuantizedConv) and not module.quantized:
        return "integer weights, computed in float: its output is the model's"
    return "" if module.quantized else "integer, with a float output"
