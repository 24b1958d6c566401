"""Quantizers put on a model's layers and activations, and what is reported of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Batch, Context, LayerReport, Pass, PassReport
from modelzip.core.graph import notes_of, trace
from modelzip.core.selection import matches, select
from modelzip.errors import ModelError, SelectionError, SettingError, did_you_mean
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
    refuse_unusable(pass_, model)
    return layers, protected


def check_layer_bits(layer_bits: object) -> dict[str, int] | None:
    """The setting `layer_bits` in its proper type, or SettingError; None where it is empty.

    >>> check_layer_bits({"conv1": 8, "type:Linear": 8})
    {'conv1': 8, 'type:Linear': 8}
    """
    if layer_bits is None or layer_bits == {}:
        return None
    if not isinstance(layer_bits, Mapping) or not all(isinstance(k, str) for k in layer_bits):
        raise SettingError(f"layer_bits must map layer names to bits, got {layer_bits!r}")
    return {
        pattern: checks.integer(f"layer_bits[{pattern!r}]", bits, low=2, high=8)
        for pattern, bits in layer_bits.items()
    }


def bits_of(
    layers: Mapping[str, nn.Module], bits: int, layer_bits: Mapping[str, int] | None
) -> dict[str, int]:
    """The weight bits of each of `layers`: those of the first pattern that names it, else `bits`.

    Patterns are globs over layer names, or "type:Linear". SelectionError for one that names none.

    >>> bits_of({"stem": nn.Conv2d(1, 1, 1), "head": nn.Linear(1, 1)}, 4, {"type:Linear": 8})
    {'stem': 4, 'head': 8}
    """
    named = named_bits(layers, layer_bits)
    return {name: named.get(name, bits) for name in layers}


def named_bits(
    layers: Mapping[str, nn.Module], layer_bits: Mapping[str, int] | None
) -> dict[str, int]:
    """The weight bits of those of `layers` that a pattern of `layer_bits` names, as `bits_of`."""
    found: dict[str, int] = {}
    for pattern, bits in (layer_bits or {}).items():
        hit = [name for name, layer in layers.items() if matches(name, layer, pattern)]
        if not hit:
            known = [*layers, *{f"type:{type(layer).__name__}" for layer in layers.values()}]
            raise SelectionError(
                f"layer_bits: {pattern!r} matches none of the {len(layers)} layers to quantize"
                f"{did_you_mean(pattern, known)}"
            )
        for name in hit:
            found.setdefault(name, bits)
    return found


def _is_composite(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    own = type(module).__module__.startswith("torch.nn")
    return own and not isinstance(module, (*containers, *KINDS)) and any(module.children())


def refuse_unusable(pass_: Pass, model: nn.Module) -> None:
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
    context: Context,
    layer_bits: Mapping[str, int] | None = None,
    weight_quantizer: type[WeightQuantizer] = WeightQuantizer,
) -> fx.GraphModule:
    """`model` traced, with quantizers on the weights of `layers` and on activations.

    `layer_bits` gives some layers bits of their own, and their inputs at least as many (`bits_of`).
    `weight_quantizer` is the class of those on weights.
    Ranges come from `batches`; with none, as when a checkpoint is read, they are left for later.
    `context` is for tracing; layers off a captured path join `context.record["protected"]`.
    """
    named = named_bits(layers, layer_bits)
    graph = trace(model, context)
    called = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    unseen = [name for name in layers if name not in called]
    if unseen and notes_of(context.record) and len(unseen) < len(layers):
        reason = "not on the path that was captured"
        context.record["protected"] |= dict.fromkeys(unseen, reason)
        layers = {name: layer for name, layer in layers.items() if name in called}
    elif unseen:
        raise ModelError(
            f"{unseen[0]} is never called as a module in forward, so it cannot be quantized; "
            f"add skip: [{', '.join(unseen)}]"
        )
    placed = place(
        graph,
        layers,
        bits=activation_bits,
        method=method,
        everywhere=everywhere,
        input_bits=named,
    )
    if batches:
        calibrate(graph, placed, batches, calibrator=calibrator, percentile=percentile)
    graph.get_submodule(CONTAINER).train(graph.training)
    for name, layer in layers.items():
        weight = surgery.original_tensor(layer)
        quantizer = weight_quantizer(weight, bits=named.get(name, bits), method=method)
        surgery.attach(layer, quantizer.train(layer.training))
    return graph


def report(
    pass_: Pass,
    before: Mapping[str, nn.Module],
    after: nn.Module,
    protected: Mapping[str, str],
    *,
    notes: tuple[str, ...] = (),
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
        name=pass_.name,
        settings=pass_.settings(),
        layers=tuple(rows),
        protected=dict(protected),
        notes=notes,
    )


def _note(module: QuantizedConv | QuantizedLinear | DynamicQuantizedLinear) -> str:
    if isinstance(module, DynamicQuantizedLinear):
        return "input quantized at run time"
    if isinstance(module, QuantizedConv) and not module.quantized:
        return "integer weights, computed in float: its output is the model's"
    return "" if module.quantized else "integer, with a float output"
