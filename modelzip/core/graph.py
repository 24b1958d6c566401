"""Tracing a model into a graph that stays a trainable module."""

from __future__ import annotations

from torch import fx, nn

from modelzip.errors import ModelError


class _Tracer(fx.Tracer):
    """fx's tracer, with subclasses of torch's own layers kept whole as well."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name):
            return True
        return not list(m.children()) and isinstance(
            m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.LayerNorm)
        )


def trace(model: nn.Module) -> fx.GraphModule:
    """`model` as an fx GraphModule that shares its submodules; ModelError where it cannot be.

    >>> isinstance(trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), fx.GraphModule)
    True
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # fx raises whatever the model's own forward raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"{type(model).__name__} cannot be traced: {reason}. Move data-dependent branches out "
            "of forward, mark the part with torch.fx.wrap, or use dynamic quantization"
        ) from error
    return fx.GraphModule(model, graph, type(model).__name__)
