"""Cross-layer equalization: channels between two layers scaled so that their ranges agree.

Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.quantization.nodes import average_pool, is_batch_norm, module_of, relu_form

KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)

_SWEEPS = 100
_SETTLED = 1e-3  # largest relative change of a scale in a sweep that counts as none
_NEGLIGIBLE = 1e-6  # of a layer's largest range; such channels have nothing to equalize
_ANYWHERE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.LeakyReLU, nn.PReLU)
_ON_IMAGES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.ZeroPad1d, nn.ZeroPad2d,
    nn.Upsample,
)  # fmt: skip
_FUNCTIONS_ANYWHERE = {F.leaky_relu, F.dropout, "contiguous"}
_FUNCTIONS_ON_IMAGES = {
    F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d, F.avg_pool1d, F.avg_pool2d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.interpolate,
}  # fmt: skip
_SHAPE_QUESTIONS = {"size", "dim"}


class Pair(NamedTuple):
    """Two layers by name, with nothing in between that a positive scale does not pass through."""

    first: str
    norm: str | None
    second: str


def find_pairs(graph: fx.GraphModule, layers: Collection[str]) -> tuple[list[Pair], dict[str, str]]:
    """Pairs among `layers`, in the order of the graph, and why the others begin none.

    >>> graph = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    >>> find_pairs(graph, ["0", "2"])
    ([Pair(first='0', norm=None, second='2')], {'2': "its output is the model's"})
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    pairs, reasons = [], {}
    for name in layers:
        found = calls.get(name, [])
        if len(found) != 1:
            reasons[name] = f"it is called {len(found)} times"
            continue
        walk = _Walk(graph, found[0])
        end = walk.end()
        if isinstance(end, str):
            reasons[name] = end
        elif end.target not in layers or len(calls[str(end.target)]) != 1:
            reasons[name] = f"{end.target}, which follows, was not selected or is called twice"
        else:
            pairs.append(Pair(name, walk.norm, str(end.target)))
    return pairs, reasons


class _Walk:
    """From a layer along its output to the next one."""

    def __init__(self, graph: fx.GraphModule, start: fx.Node) -> None:
        self.graph = graph
        self.start = start
        self.norm: str | None = None
        layer = module_of(graph, start)
        self.linear = isinstance(layer, nn.Linear)
        self.channels = _output_count(layer)
        self.rows = self.linear  # channels are the last dimension
        self.images = not self.rows

    def end(self) -> fx.Node | str:
        """The layer that follows, or why there is none."""
        node = self.start
        while True:
            users = [user for user in node.users if not _asks_shape(user)]
            if len(users) != 1:
                return "its output is used in several places" if users else "its output is unused"
            (user,) = users
            if user.op == "output":
                return "its output is the model's"
            if self._is_layer(user):
                return user if self._takes(user) else f"{user.target} mixes its output's positions"
            if not self._passes(user, after=node):
                return f"it is followed by {_described(self.graph, user)}"
            node = user

    def _is_layer(self, node: fx.Node) -> bool:
        return isinstance(module_of(self.graph, node), KINDS)

    def _takes(self, node: fx.Node) -> bool:
        layer = module_of(self.graph, node)
        if isinstance(layer, nn.Linear):
            blocks, rest = divmod(layer.in_features, self.channels)
            return self.rows and rest == 0 and (blocks == 1 or not self.linear)
        inputs = layer.in_channels if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else None
        return self.images and inputs == self.channels

    def _passes(self, node: fx.Node, *, after: fx.Node) -> bool:
        """Whether scaling a channel before the node is scaling it afterwards."""
        module = module_of(self.graph, node)
        if after is self.start and is_batch_norm(self.graph, node, after=after):
            self.norm = str(node.target)
            return module is not None and isinstance(module.weight, Tensor)
        if relu_form(self.graph, node) == "relu" or isinstance(module, _ANYWHERE):
            return True
        if node.target in _FUNCTIONS_ANYWHERE:
            return True
        if self.rows:
            return False
        if _flattens(self.graph, node):
            self.rows, self.images = True, False
            return True
        average = average_pool(self.graph, node)
        if average is not None and not average.keepdim:
            self.rows, self.images = True, False
            return len(average.dims) == 2
        return (
            average is not None
            or isinstance(module, _ON_IMAGES)
            or node.target in _FUNCTIONS_ON_IMAGES
        )


def _output_count(layer: nn.Module | None) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 0


def _flattens(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether everything but the batch becomes one dimension, channels outermost."""
    module = module_of(graph, node)
    if module is not None:
        return isinstance(module, nn.Flatten) and [module.start_dim, module.end_dim] == [1, -1]
    if node.target in (torch.flatten, "flatten"):
        return [*node.args[1:], *node.kwargs.values()] == [1]
    return node.target in ("view", "reshape") and node.args[2:] == (-1,)


def _asks_shape(node: fx.Node) -> bool:
    shape = node.target is getattr and node.args[1] == "shape"
    return shape or node.target in _SHAPE_QUESTIONS


def _described(graph: fx.GraphModule, node: fx.Node) -> str:
    module = module_of(graph, node)
    return f"{type(module).__name__} {str(node.target)!r}" if module else node.name


def equalize(model: nn.Module, pairs: Sequence[Pair]) -> dict[Pair, Tensor]:
    """Scale the channels between each of `pairs`, in place, and return what each was divided by.

    Channel i of the first layer is divided by `s_i = sqrt(r1_i / r2_i)` and the second layer's
    input multiplied by it, r1 and r2 being the largest magnitudes of the channel's weights with a
    batch norm folded in: both become `sqrt(r1_i * r2_i)`. Repeated until nothing changes, as a
    layer in the middle of a chain belongs to two pairs.
    """
    totals: dict[Pair, Tensor] = {}
    with torch.no_grad():
        for _ in range(_SWEEPS):
            largest = 0.0
            for pair in pairs:
                scale = _balance(model, pair)
                totals[pair] = totals[pair] * scale if pair in totals else scale
                largest = max(largest, float(scale.log().abs().max()))
            if largest < _SETTLED:
                break
    return totals


def _balance(model: nn.Module, pair: Pair) -> Tensor:
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    norm = None if pair.norm is None else model.get_submodule(pair.norm)
    weight = surgery.original_tensor(first)
    out_range = weight.abs().flatten(1).amax(1)
    if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_var is not None:
        out_range = out_range * norm.weight.abs() * (norm.running_var + norm.eps).rsqrt()
    in_range = _input_ranges(second, channels=len(out_range))
    scale = (out_range / in_range).sqrt()
    tiny = (out_range <= _NEGLIGIBLE * out_range.max()) | (in_range <= _NEGLIGIBLE * in_range.max())
    scale = torch.where(tiny, torch.ones_like(scale), scale)
    for tensor in _output_tensors(first if norm is None else norm):
        tensor.div_(scale.view(-1, *[1] * (tensor.dim() - 1)))
    _scale_inputs(second, scale)
    return scale


def _output_tensors(module: nn.Module) -> list[Tensor]:
    """The weight and bias whose first dimension is the output channel."""
    bias = module.bias
    weight = surgery.original_tensor(module)
    return [weight, bias] if isinstance(bias, Tensor) else [weight]


def _input_ranges(layer: nn.Module, *, channels: int) -> Tensor:
    """Largest |w| that each input channel meets, shape [channels]."""
    weight = surgery.original_tensor(layer).abs()
    if isinstance(layer, nn.Linear):  # behind a flatten a channel has several inputs
        return weight.amax(0).view(channels, -1).amax(1)
    columns = weight.flatten(2).amax(2)  # [outputs, inputs of a group]
    groups = channels // columns.shape[1]
    return columns.view(groups, -1, columns.shape[1]).amax(1).flatten()


def _scale_inputs(layer: nn.Module, scale: Tensor) -> None:
    weight = surgery.original_tensor(layer)
    if isinstance(layer, nn.Linear):
        weight.mul_(scale.repeat_interleave(layer.in_features // len(scale)))
        return
    outputs, inputs = weight.shape[:2]
    groups = len(scale) // inputs
    rows = scale.view(groups, 1, inputs).expand(groups, outputs // groups, inputs)
    weight.mul_(rows.reshape(outputs, inputs, *[1] * (weight.dim() - 2)))
