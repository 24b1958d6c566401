"""From quantizers that train to integer modules: batch norm folded, one rounding an operation."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.numerics.affine import levels
from modelzip.quantization.elementwise import (
    QuantizedHardsigmoid,
    QuantizedLeakyRelu,
    QuantizedMultiply,
    QuantizedSigmoid,
    unit_grid,
)
from modelzip.quantization.fake import ActivationQuantizer, WeightQuantizer
from modelzip.quantization.integer import (
    Grid,
    Quantize,
    QuantizedAdd,
    QuantizedAveragePool,
    QuantizedConv,
    QuantizedLinear,
)
from modelzip.quantization.nodes import (
    Curve,
    average_pool,
    curve,
    is_add,
    is_batch_norm,
    is_product,
    is_quantizer,
    module_of,
    only_user,
    operands,
    relu_form,
    slope,
)

CONTAINER = "integer_operations"  # submodule of those without a layer's name

_LARGEST_BIAS = 2**22  # in steps of the accumulator; well inside int32 and float32's integers


def freeze(graph: fx.GraphModule) -> None:
    """Replace every quantizer and quantized layer of `graph` by integer modules, in place."""
    grids: dict[fx.Node, Grid] = {}
    calls: dict[str, int] = {}
    for node in list(graph.graph.nodes):
        if node in grids or node.op not in ("call_module", "call_function", "call_method"):
            continue
        module = module_of(graph, node)
        if module is not None and surgery.attached(module, WeightQuantizer) is not None:
            _freeze_layer(graph, node, grids, calls)
        elif is_quantizer(graph, node):
            grids[node] = _grid(graph, node)
        elif is_add(node) or is_product(node) or curve(graph, node) or average_pool(graph, node):
            _freeze_operation(graph, node, grids)
    for node in graph.graph.nodes:
        if is_quantizer(graph, node):  # those left stand between float and integers
            surgery.replace(graph, str(node.target), Quantize(_grid(graph, node)))
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


@dataclass
class _Chain:
    """What the runtime fuses behind a node: an optional batch norm, ReLU and quantizer."""

    batch_norm: fx.Node | None = None
    relu: fx.Node | None = None
    quantizer: fx.Node | None = None

    def collapse_into(self, graph: fx.GraphModule, node: fx.Node) -> None:
        nodes = [n for n in (self.batch_norm, self.relu, self.quantizer) if n is not None]
        if nodes:
            nodes[-1].replace_all_uses_with(node)
            for old in reversed(nodes):
                graph.graph.erase_node(old)


def _chain(graph: fx.GraphModule, node: fx.Node, *, batch_norm: bool) -> _Chain:
    chain = _Chain()
    user = only_user(node)
    if batch_norm and user is not None and is_batch_norm(graph, user, after=node):
        chain.batch_norm, user = user, only_user(user)
    relu = user if user is not None and relu_form(graph, user) else None
    last = only_user(relu) if relu is not None else user
    if last is not None and is_quantizer(graph, last):
        chain.relu, chain.quantizer = relu, last
    return chain


def _freeze_layer(
    graph: fx.GraphModule, node: fx.Node, grids: dict[fx.Node, Grid], calls: dict[str, int]
) -> None:
    layer = module_of(graph, node)
    source = grids[node.all_input_nodes[0]]
    chain = _chain(graph, node, batch_norm=True)
    out = _grid(graph, chain.quantizer) if chain.quantizer is not None else None
    norm = module_of(graph, chain.batch_norm) if chain.batch_norm is not None else None
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        raise TypeError(f"no integer form of {type(layer).__name__}")
    integers, scale, bias, bits = _integers(layer, norm, source)
    relu = chain.relu is not None
    frozen: nn.Module
    if isinstance(layer, nn.Linear):
        frozen = QuantizedLinear(integers, scale, bias, source, out, bits=bits, relu=relu)
        frozen.rows_only = norm is not None
    else:
        frozen = QuantizedConv(layer, integers, scale, bias, source, out, bits=bits, relu=relu)
    node.args, node.kwargs = (node.all_input_nodes[0],), {}
    # each call of a shared layer has grids of its own
    name = str(node.target)
    count = calls[name] = calls.get(name, 0) + 1
    if count > 1:
        node.target = f"{name}_call{count}"
        graph.add_submodule(node.target, frozen)
    elif sum(n.target == name for n in graph.graph.nodes) > 1:
        node.target = f"{name}_call1"
        graph.add_submodule(node.target, frozen)
    else:
        surgery.replace(graph, name, frozen)
    chain.collapse_into(graph, node)
    if out is not None:
        grids[node] = out


def _freeze_operation(graph: fx.GraphModule, node: fx.Node, grids: dict[fx.Node, Grid]) -> None:
    chain = _chain(graph, node, batch_norm=False)
    sources = operands(node)
    inputs = [grids[n] for n in sources if n in grids]
    if chain.quantizer is None or len(inputs) != len(sources):
        return  # stays in float
    out = _grid(graph, chain.quantizer)
    average = average_pool(graph, node)
    frozen: nn.Module
    relu = chain.relu is not None
    kind = curve(graph, node)
    if is_add(node):
        frozen = QuantizedAdd(inputs[0], inputs[1], out, relu=relu)
    elif is_product(node):
        frozen = QuantizedMultiply(inputs[0], inputs[1], out, relu=relu)
    elif kind is not None and not relu:
        frozen = _frozen_curve(graph, node, kind, inputs[0], out)
        sources = operands(node)
    elif average is not None and chain.relu is None:
        frozen = QuantizedAveragePool(inputs[0], out, dims=average.dims, keepdim=average.keepdim)
    else:
        return
    # not the quantizer's own name: it may be called once more, on values that were moved about
    node.op, node.target = "call_module", f"{CONTAINER}.{node.name}"
    node.args, node.kwargs = tuple(sources), dict(average.window) if average else {}
    graph.add_submodule(node.target, frozen)
    chain.collapse_into(graph, node)
    grids[node] = out


def _frozen_curve(
    graph: fx.GraphModule, node: fx.Node, kind: Curve, source: Grid, out: Grid
) -> nn.Module:
    """The module for an activation function; SiLU and hard-swish become products with a gate."""
    if kind == "sigmoid":
        return QuantizedSigmoid(out)
    if kind == "hardsigmoid":
        return QuantizedHardsigmoid(source, out)
    if kind == "leaky_relu":
        return QuantizedLeakyRelu(out, slope=slope(graph, node))
    unit = unit_grid()
    gate = QuantizedSigmoid(unit) if kind == "silu" else QuantizedHardsigmoid(source, unit)
    name = f"{CONTAINER}.{node.name}_gate"
    graph.add_submodule(name, gate)
    (values,) = operands(node)
    with graph.graph.inserting_before(node):
        gated = graph.graph.call_module(name, (values,))
    node.op, node.target, node.args, node.kwargs = (
        "call_function",
        operator.mul,
        (values, gated),
        {},
    )
    return QuantizedMultiply(source, unit, out, relu=False)


def _grid(graph: fx.GraphModule, node: fx.Node) -> Grid:
    quantizer = module_of(graph, node)
    if not isinstance(quantizer, ActivationQuantizer):
        raise TypeError(f"{node.target} is not an ActivationQuantizer")
    scale, zero_point = quantizer.grid()
    return Grid(scale, zero_point, levels(quantizer.bits))


def _integers(
    layer: nn.Conv1d | nn.Conv2d | nn.Linear, norm: nn.Module | None, source: Grid
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Integer weights, their float32 scales, integer bias and bits, with `norm` folded in.

    A batch norm multiplies each output channel by a constant, which its scale takes up: the
    integers stay those that were trained, times a power of two below 7 bits.
    """
    quantizer = surgery.attached(layer, WeightQuantizer)
    if quantizer is None:
        raise TypeError("the layer has no WeightQuantizer")
    weight = surgery.original_tensor(layer).detach()
    integers, scale = quantizer.integers(weight)
    # with few bits the accumulator's step would be coarse, and the bias is rounded to that step;
    # up to 64, where products of two still fit the 16 bits of processors without VNNI
    spread = 2 ** max(7 - quantizer.bits, 0)
    integers, scale64 = integers * spread, scale.double() / spread
    bias = torch.zeros_like(scale64) if layer.bias is None else layer.bias.detach().double()
    if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        mean, var = norm.running_mean, norm.running_var
        if mean is None or var is None:
            raise TypeError("a batch norm without running statistics cannot be folded")
        factor = (var.double() + norm.eps).rsqrt()
        if norm.affine:
            factor = factor * norm.weight.detach().double()
        bias = (bias - mean.double()) * factor
        if norm.affine:
            bias = bias + norm.bias.detach().double()
        integers = integers * torch.sign(factor).float().view(-1, *[1] * (weight.dim() - 1))
        scale64 = scale64 * factor.abs()
    # a channel of nearly zero weights would need a bias of more steps than an int32 holds
    least = bias.abs() / (source.scale.double() * _LARGEST_BIAS)
    widened = torch.maximum(scale64, least.clamp_min(2.0**-60))
    shrink = (scale64 / widened).float().view(-1, *[1] * (weight.dim() - 1))
    integers = torch.where(shrink < 1, (integers * shrink).round(), integers)
    final = widened.float()
    steps = (bias / (source.scale * final).double()).round()
    return integers, final, steps, quantizer.bits
