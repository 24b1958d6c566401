"""What the nodes of a traced graph are, as far as integer arithmetic is concerned."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from modelzip.quantization.fake import ActivationQuantizer, Form

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CATS = {torch.cat, torch.concat, torch.concatenate}
_RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
_RELU6S = {F.relu6}
_CLAMPS = {torch.clamp, "clamp", "clamp_", F.hardtanh}
_AVERAGES = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}
_SAME_VALUES = {  # their output holds values of their input, and zeros, alone
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.chunk, torch.split, torch.unbind, torch.narrow, F.max_pool1d, F.max_pool2d,
    torch.max_pool1d, torch.max_pool2d, F.dropout, operator.getitem,
    "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split",
    "unbind", "narrow", "contiguous", "clone", "detach", "expand", "t",
}  # fmt: skip
_SAME_VALUE_MODULES = (
    nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.Identity, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ChannelShuffle,
)  # fmt: skip


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a node calls, or None if it calls none."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_quantizer(graph: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(module_of(graph, node), ActivationQuantizer)


def is_batch_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(graph, node)
    # without running statistics there is nothing fixed to fold
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats


def relu_form(graph: fx.GraphModule, node: fx.Node) -> Form | None:
    """ "relu" or "relu6" where the node is one, else None."""
    module = module_of(graph, node)
    if isinstance(module, nn.ReLU6) or node.target in _RELU6S:
        return "relu6"
    if isinstance(module, nn.Hardtanh):
        return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
    if isinstance(module, nn.ReLU) or node.target in _RELUS:
        return "relu"
    if node.target in _CLAMPS and not module:
        bounds = [*node.args[1:], *node.kwargs.values()]
        return "relu6" if bounds == [0, 6] else None
    return None


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two computed tensors and nothing else."""
    two = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return node.target in _ADDS and two and not node.kwargs


def is_cat(node: fx.Node) -> bool:
    return node.target in _CATS


def average_pool(graph: fx.GraphModule, node: fx.Node) -> dict[str, Any] | None:
    """Keywords for QuantizedAveragePool where the node averages over the image, else None."""
    module = module_of(graph, node)
    if isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
        size = module.output_size if module else _argument(node, 1, "output_size", None)
        return {"whole": True} if size in (1, (1, 1), [1, 1]) else None
    if isinstance(module, nn.AvgPool2d):
        return {"whole": False} if not module.ceil_mode else None
    if node.target is F.avg_pool2d:
        return {"whole": False}
    if node.target in (torch.mean, "mean"):
        dims = _argument(node, 1, "dim", None)
        image = isinstance(dims, (list, tuple)) and tuple(dims) in ((2, 3), (-2, -1))
        keepdim = bool(_argument(node, 2, "keepdim", False))
        return {"whole": True, "keepdim": keepdim} if image else None
    return None


def keeps_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node only moves, selects or zero-pads values, so that a grid stays a grid."""
    if node.target in (F.pad, "pad"):
        constant = _argument(node, 2, "mode", "constant") == "constant"
        return not constant or _argument(node, 3, "value", None) in (None, 0)
    if relu_form(graph, node) == "relu":
        return True
    module = module_of(graph, node)
    if module is not None:
        return isinstance(module, _SAME_VALUE_MODULES)
    return node.target in _SAME_VALUES


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors an addition, a concatenation or a pool works on, in order, repeats kept."""
    if is_add(node):
        return [a for a in node.args if isinstance(a, fx.Node)]
    if is_cat(node):
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        return [a for a in parts if isinstance(a, fx.Node)]  # type: ignore[union-attr]
    return node.all_input_nodes[:1]


def only_user(node: fx.Node) -> fx.Node | None:
    """The single node that uses `node`, or None if there are several or none."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
