"""Tracing a model into a graph that stays a trainable module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import fx, nn

from modelzip.errors import ModelError

_DROPOUTS = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}


class _Tracer(fx.Tracer):
    """fx's tracer, with subclasses of torch's own layers kept whole as well."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name):
            return True
        return not list(m.children()) and isinstance(
            m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.LayerNorm)
        )


class _Mode(int):
    """False, recognisable: what `self.training` is while a model is traced."""


_MODE = _Mode(0)


def trace(model: nn.Module) -> fx.GraphModule:
    """`model` as an fx GraphModule that shares its submodules; ModelError where it cannot be.

    What asks for `self.training` is traced as in eval mode, but for dropout functions: they become
    modules, so that they still follow the mode.

    >>> isinstance(trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), fx.GraphModule)
    True
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        with _marked_mode(model):
            graph = _Tracer().trace(model)
    except Exception as error:  # fx raises whatever the model's own forward raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"{type(model).__name__} cannot be traced: {reason}. Move data-dependent branches out "
            "of forward, mark the part with torch.fx.wrap, or use dynamic quantization"
        ) from error
    traced = fx.GraphModule(model, graph, type(model).__name__)
    _settle_modes(traced)
    return traced


@contextmanager
def _marked_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = _MODE  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _settle_modes(traced: fx.GraphModule) -> None:
    """Replace the mark in the arguments of nodes: by a module for dropout, else by False."""
    for node in list(traced.graph.nodes):
        given = [*node.args, *node.kwargs.values()]
        if not any(value is _MODE for value in given):
            continue
        if node.target in _DROPOUTS:
            settings = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False))
            settings |= node.kwargs
            name = f"{node.name}_module"
            dropout = _DROPOUTS[node.target](settings.get("p", 0.5), settings.get("inplace", False))
            traced.add_submodule(name, dropout.train(traced.training))
            node.op, node.target = "call_module", name
            node.args, node.kwargs = (settings["input"],), {}
        else:
            node.args = tuple(False if value is _MODE else value for value in node.args)
            node.kwargs = {k: False if v is _MODE else v for k, v in node.kwargs.items()}
    traced.recompile()
