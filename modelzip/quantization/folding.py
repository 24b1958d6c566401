"""Batch norms folded into the layers before them."""

from __future__ import annotations

import torch
from torch import fx, nn

from modelzip.core import surgery
from modelzip.quantization.nodes import is_batch_norm, module_of, only_user

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def fold_norms(graph: fx.GraphModule) -> list[str]:
    """Fold each batch norm into the layer whose only reader it is; the names of those gone.

    Weights take the norm's scale and biases its shift, so that nothing else is computed; a layer
    without a bias is given one. Both must run in one place alone.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)).eval()
    >>> fold_norms(graph := fx.symbolic_trace(net)), graph.get_submodule("0").bias is None
    (['1'], False)
    """
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    found = []
    for node in graph.graph.nodes:
        layer, norm = module_of(graph, node), only_user(node)
        if norm is None or not isinstance(layer, _LAYERS):
            continue
        alone = calls[str(node.target)] == calls.get(str(norm.target)) == 1
        if alone and is_batch_norm(graph, norm, after=node):
            found.append((node, norm))
    for node, norm in found:
        _fold(graph.get_submodule(str(node.target)), graph.get_submodule(str(norm.target)))
        norm.replace_all_uses_with(node)
        graph.graph.erase_node(norm)
        graph.delete_submodule(str(norm.target))
    graph.recompile()
    return [str(norm.target) for _, norm in found]


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        raise TypeError(f"{type(norm).__name__} is no batch norm")
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise TypeError("a batch norm without running statistics")
    weight = surgery.original_tensor(layer)
    with torch.no_grad():
        scale = (var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -mean.double()
        if layer.bias is not None:
            shift = shift + surgery.original_tensor(layer, tensor="bias").double()
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        weight.mul_(scale.to(weight).view(-1, *[1] * (weight.dim() - 1)))
        if layer.bias is None:
            layer.bias = nn.Parameter(shift.to(weight))
        else:
            surgery.original_tensor(layer, tensor="bias").copy_(shift)
