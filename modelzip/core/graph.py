"""Tracing a model into a graph that stays a trainable module."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from modelzip.core import surgery
from modelzip.core.base import Context
from modelzip.core.capture import ExampleTracer, recorded_builtins
from modelzip.core.running import call, evaluating, tensors
from modelzip.core.tracing import Tracer, given_arguments, marked_mode, settle_modes
from modelzip.errors import ModelError, ModelzipError

log = logging.getLogger(__name__)

_RECORD = "capture"  # the entry of Context.record that says how a model was traced


def trace(model: nn.Module, context: Context | None = None) -> fx.GraphModule:
    """`model` as an fx GraphModule that shares its submodules; ModelError where it cannot be.

    What asks for `self.training` is traced as in eval mode, but for dropout functions: they become
    modules, so that they still follow the mode.

    The example inputs of `context`, or its first calibration batch, say which arguments there are;
    the graph takes no others. Where fx cannot follow the model, it is captured along the path that
    they take, which `notes_of` then tells, and checked on them and on a batch of twice the size.
    `context.record` keeps what is needed to do the same again without them.

    >>> isinstance(trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), fx.GraphModule)
    True
    """
    if isinstance(model, fx.GraphModule):
        return model
    context = context or Context()
    record: dict[str, Any] = context.record.get(_RECORD, {})
    inputs = context.example_inputs
    if inputs is None and context.calibration:
        inputs = context.calibration[0].inputs
    if "answers" in record:
        return _captured_again(model, record, inputs)
    arguments = record.get("arguments")
    if inputs is not None:
        arguments = list(given_arguments(model, inputs))
        context.record[_RECORD] = {"arguments": arguments}
    try:
        with marked_mode(model):
            graph = Tracer(arguments).trace(model)
    except Exception as error:  # fx raises whatever the model's own forward raises
        if inputs is None:
            raise ModelError(
                f"{type(model).__name__} cannot be traced: {_reason(error)}. Give example_inputs, "
                "to have it captured along the path they take, or use dynamic quantization"
            ) from error
        return _captured(model, inputs, context.record, _reason(error))
    return _module(model, graph)


def captured(model: nn.Module, example_inputs: Any) -> fx.GraphModule | None:
    """A copy of `model` captured on `example_inputs`; None where fx traces it, or capture fails."""
    context = Context(example_inputs=example_inputs)
    try:
        graph = trace(surgery.clone(model).eval(), context)
    except ModelzipError:
        return None
    return graph if notes_of(context.record) else None


def notes_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What a report must say of how the model was traced, from `Context.record`."""
    text = record.get(_RECORD, {}).get("note")
    return (text,) if text else ()


def _captured(model: nn.Module, inputs: Any, record: dict[str, Any], reason: str) -> fx.GraphModule:
    tracer = ExampleTracer(given_arguments(model, inputs), answers=None)
    try:
        graph = _run(tracer, model)
    except Exception as error:  # whatever the model's own forward raises
        raise ModelError(
            f"{type(model).__name__} cannot be traced: {reason}; nor captured by running it on its "
            f"example inputs: {_reason(error)}. Mark the part with torch.fx.wrap, or use dynamic "
            "quantization"
        ) from error
    traced = _module(model, graph)
    _check(traced, model, inputs, places=[*tracer.on_shapes, *tracer.on_values])
    text = tracer.note(reason)
    log.info("%s", text)
    record[_RECORD] |= {
        "note": text,
        "answers": tracer.answers,
        "inputs": _described(inputs),
    }
    return traced


def _captured_again(model: nn.Module, record: Mapping[str, Any], inputs: Any) -> fx.GraphModule:
    """The graph of an earlier `_captured`, along the recorded path."""
    known = _imagined(record["inputs"]) if inputs is None else inputs
    tracer = ExampleTracer(given_arguments(model, known), answers=record["answers"])
    try:
        return _module(model, _run(tracer, model))
    except Exception as error:  # whatever the model's own forward raises
        raise ModelError(
            f"{type(model).__name__} cannot be captured again as the checkpoint says: "
            f"{_reason(error)}; use load_prepared(..., example_inputs=...) with inputs like those "
            "it was prepared with"
        ) from error


def _run(tracer: ExampleTracer, model: nn.Module) -> fx.Graph:
    with torch.no_grad(), marked_mode(model), recorded_builtins(tracer, model):
        graph = tracer.trace(model)
    tracer.drop_answered()
    return graph


def _module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    traced = fx.GraphModule(model, graph, type(model).__name__)
    settle_modes(traced)
    return traced


def _check(graph: fx.GraphModule, model: nn.Module, inputs: Any, *, places: list[str]) -> None:
    """ModelError if `graph` is not `model` on its inputs, or at another batch size."""
    name = type(model).__name__
    with evaluating(model), evaluating(graph):
        if not _equal(_outputs(graph, inputs), _outputs(model, inputs)):
            raise ModelError(
                f"{name} was captured on its example inputs, but the graph has other outputs than "
                "the model; it changes tensors in place or depends on more than its inputs"
            )
        double = _doubled(inputs)
        try:
            wanted = _outputs(model, double)
        except Exception:  # a model of one batch size: there is nothing to compare
            return
        try:
            equal = _equal(_outputs(graph, double), wanted)
        except Exception:
            equal = False
    if not equal:
        where = f" ({'; '.join(places)})" if places else ""
        raise ModelError(
            f"{name} was captured on its example inputs, but the graph works at their batch size "
            f"alone{where}; take sizes from x.shape or x.size(0), without int() or a loop over the "
            "batch"
        )


def _outputs(model: nn.Module, inputs: Any) -> Any:
    # a model may write into what it is given
    return call(model, tree_map_only(Tensor, torch.clone, inputs))


def _equal(ours: Any, theirs: Any) -> bool:
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in pairs
    )


def _doubled(inputs: Any) -> Any:
    """`inputs` with their samples twice; what has no batch dimension stays."""
    batch = next((len(t) for t in tensors(inputs) if t.dim()), 0)
    return tree_map_only(
        Tensor, lambda t: torch.cat([t, t]) if t.dim() and len(t) == batch else t, inputs
    )


def _described(inputs: Any) -> Any:
    """`inputs` as JSON: shapes and types in place of tensors."""
    if isinstance(inputs, Tensor):
        kind = str(inputs.dtype).removeprefix("torch.")
        return {"shape": list(inputs.shape), "dtype": kind}
    if isinstance(inputs, dict):
        return {"dict": {name: _described(value) for name, value in inputs.items()}}
    if isinstance(inputs, (tuple, list)):
        return [_described(value) for value in inputs]
    return inputs


def _imagined(described: Any) -> Any:
    """Zeros of the shapes that `_described` kept."""
    if isinstance(described, list):
        return tuple(_imagined(value) for value in described)
    if isinstance(described, dict) and "dict" in described:
        return {name: _imagined(value) for name, value in described["dict"].items()}
    if isinstance(described, dict):
        return torch.zeros(described["shape"], dtype=getattr(torch, described["dtype"]))
    return described


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)
