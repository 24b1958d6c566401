"""What the nodes of a traced graph are, as far as integer arithmetic is concerned."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from modelzip.quantization.fake import ActivationQuantizer, Form

Curve = Literal["sigmoid", "hardsigmoid", "silu", "hardswish", "leaky_relu"]

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CATS = {torch.cat, torch.concat, torch.concatenate}
_RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
_RELU6S = {F.relu6}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_CURVES: dict[Any, Curve] = {
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), "sigmoid"),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), "hardsigmoid"),
    **dict.fromkeys((nn.SiLU, F.silu), "silu"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "hardswish"),
    **dict.fromkeys((nn.LeakyReLU, F.leaky_relu), "leaky_relu"),
}
_CLAMPS = {torch.clamp, "clamp", "clamp_", F.hardtanh}
_ADAPTIVE: tuple[tuple[tuple[int, ...], type[nn.Module], Any], ...] = (
    ((-2, -1), nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    ((-1,), nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d),
)
_IMAGE_DIMS = ({2, 3}, {-2, -1}, {2}, {-1})
_WINDOW = {  # parameters of avg_pool2d after the first, and their defaults
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
_SAME_VALUES = {  # their output holds values of their input, and zeros, alone
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.chunk, torch.split, torch.unbind, torch.narrow, F.max_pool1d, F.max_pool2d,
    torch.max_pool1d, torch.max_pool2d, F.dropout, F.pixel_shuffle, operator.getitem,
    "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split",
    "unbind", "narrow", "contiguous", "clone", "detach", "expand", "t",
}  # fmt: skip
_SAME_VALUE_MODULES = (
    nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.Identity, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ChannelShuffle, nn.PixelShuffle,
)  # fmt: skip


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a node calls, or None if it calls none."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_quantizer(graph: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(module_of(graph, node), ActivationQuantizer)


def is_batch_norm(graph: fx.GraphModule, node: fx.Node, *, after: fx.Node) -> bool:
    """Whether the node is a batch norm that folds into the layer `after`."""
    norm, layer = module_of(graph, node), module_of(graph, after)
    # without running statistics there is nothing fixed to fold
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or not norm.track_running_stats:
        return False
    # after a linear layer on more than two dimensions a norm is not over the layer's outputs
    return norm.num_features == getattr(layer, "out_channels", getattr(layer, "out_features", None))


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
        bounds = [*node.args[1:], *(v for k, v in node.kwargs.items() if k != "inplace")]
        return "relu6" if bounds == [0, 6] else None
    return None


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two computed tensors and nothing else."""
    two = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return node.target in _ADDS and two and not node.kwargs


def is_product(node: fx.Node) -> bool:
    """Whether the node multiplies two computed tensors and nothing else."""
    two = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return node.target in _PRODUCTS and two and not node.kwargs


def curve(graph: fx.GraphModule, node: fx.Node) -> Curve | None:
    """Which activation function with an integer form the node is, ReLUs aside, or None."""
    module = module_of(graph, node)
    return _CURVES.get(type(module) if module is not None else node.target)


def slope(graph: fx.GraphModule, node: fx.Node) -> float:
    """The slope of a leaky ReLU below zero."""
    module = module_of(graph, node)
    if isinstance(module, nn.LeakyReLU):
        return float(module.negative_slope)
    return float(_argument(node, 1, "negative_slope", 0.01))


def is_cat(node: fx.Node) -> bool:
    return node.target in _CATS


class Average(NamedTuple):
    """An average over `dims`, or over the windows that keywords of `avg_pool2d` describe."""

    dims: tuple[int, ...] = (2, 3)
    keepdim: bool = True
    window: Mapping[str, Any] = MappingProxyType({})  # its values may be nodes


def average_pool(graph: fx.GraphModule, node: fx.Node) -> Average | None:
    """What the node averages over where that is an image or windows of one, else None."""
    module = module_of(graph, node)
    for dims, kind, function in _ADAPTIVE:
        if isinstance(module, kind) or node.target is function:
            size = module.output_size if module else _argument(node, 1, "output_size", None)
            return Average(dims) if size in (1, (1,) * len(dims), [1] * len(dims)) else None
    if isinstance(module, nn.AvgPool2d) or node.target is F.avg_pool2d:
        window = {
            name: getattr(module, name) if module else _argument(node, place, name, default)
            for place, (name, default) in enumerate(_WINDOW.items(), start=1)
        }
        return _window(**window)
    if node.target in (torch.mean, "mean") and "dtype" not in node.kwargs:
        dims = _argument(node, 1, "dim", None)
        dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
        if set(dims) in _IMAGE_DIMS:
            return Average(dims, keepdim=bool(_argument(node, 2, "keepdim", False)))
    return None


def _window(
    *, divisor_override: int | None, ceil_mode: bool, padding: Any, **window: Any
) -> Average | None:
    padded = padding not in (0, (0, 0), [0, 0])
    if divisor_override is not None:
        return None
    if ceil_mode and not padded:  # the same in torch; the runtime counts what is not there
        window["count_include_pad"] = False
    return Average(window={"padding": padding, "ceil_mode": ceil_mode, **window})


def keeps_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node only moves, selects or zero-pads values, so that a grid stays a grid."""
    if node.target in (F.pad, "pad"):
        constant = _argument(node, 2, "mode", "constant") == "constant"
        return not constant or _argument(node, 3, "value", None) in (None, 0)
    if relu_form(graph, node) == "relu":
        return True
    module = module_of(graph, node)
    if isinstance(module, nn.Upsample):
        return module.mode == "nearest"
    if node.target is F.interpolate:
        return bool(_argument(node, 3, "mode", "nearest") == "nearest")
    if module is not None:
        return isinstance(module, _SAME_VALUE_MODULES)
    return node.target in _SAME_VALUES


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors an operation works on, in order, repeats kept."""
    if is_add(node) or is_product(node):
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
