"""What quantization shifts on average, put right in biases and batch norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.running import tensors
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.nodes import is_batch_norm, module_of, only_user
from modelzip.quantization.pairs import Pairs, walk
from modelzip.quantization.rounding import Rounding, round_layer

_SAMPLES = 32  # sharp enough, as both models see the same ones
_RATIO = 4.0  # beyond it a channel's deviation is noise


def refine(
    graph: fx.GraphModule,
    batches: Sequence[Batch],
    *,
    rounding: Rounding,
    bias_correction: bool,
) -> None:
    """Round the weights of `graph` anew, correct means and deviations, layer by layer, in place.

    Each layer is matched with the float model while everything before it is quantized already.
    Means and deviations alone are taken from the first samples.
    """
    if rounding == "nearest":
        batches = _first(batches)
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1

    def visit(pairs: Pairs, node: fx.Node) -> None:
        if calls.get(str(node.target)) != 1:  # a shared layer fits one of its places at most
            return
        module = module_of(graph, node)
        quantizer = None if module is None else surgery.attached(module, WeightQuantizer)
        if module is not None and quantizer is not None:
            correctable = bias_correction and _has_bias(graph, node, module, calls)
            if rounding == "least_squares":
                round_layer(pairs, node, module, quantizer, centred=correctable)
            if correctable and not _norm_after(graph, node, calls):
                _correct_bias(pairs, node, module)
        elif bias_correction and _follows_layer(graph, node):
            _correct_norm(pairs, node, module)

    walk(graph, batches, before=visit)


def _first(batches: Sequence[Batch]) -> list[Batch]:
    """As many samples of the first batch as are enough."""
    size = max(len(t) for t in tensors(batches[0].inputs))
    inputs = tree_map_only(
        Tensor, lambda t: t[:_SAMPLES] if len(t) == size else t, batches[0].inputs
    )
    return [Batch(inputs, None)]


def _norm_after(graph: fx.GraphModule, node: fx.Node, calls: dict[str, int]) -> bool:
    user = only_user(node)
    return user is not None and _follows_layer(graph, user) and calls[str(user.target)] == 1


def _follows_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a batch norm that folds into the quantized layer before it."""
    if node.op != "call_module" or not node.all_input_nodes:
        return False
    source = node.all_input_nodes[0]
    layer = module_of(graph, source)
    return (
        layer is not None
        and surgery.attached(layer, WeightQuantizer) is not None
        and only_user(source) is node
        and is_batch_norm(graph, node, after=source)
    )


def _has_bias(
    graph: fx.GraphModule, node: fx.Node, layer: nn.Module, calls: dict[str, int]
) -> bool:
    return layer.bias is not None or _norm_after(graph, node, calls)


def _correct_bias(pairs: Pairs, node: fx.Node, layer: nn.Module) -> None:
    """Shift the bias of `layer` by what its output's channels lose on average."""
    pairs.run(node, quantized=True)
    exact, rounded = (mean for mean, _ in _moments(pairs.at(node), node, layer))
    bias = surgery.original_tensor(layer, tensor="bias")
    bias.data += (exact - rounded).to(bias.dtype)


def _correct_norm(pairs: Pairs, node: fx.Node, norm: nn.Module | None) -> None:
    """Make `norm` give each channel the mean and deviation that the float model gives it."""
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        raise TypeError(f"{node.target} is not a batch norm")
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise TypeError(f"{node.target} has no running statistics")
    (exact, exact_var), (rounded, rounded_var) = _moments(
        pairs.at(node.all_input_nodes[0]), node, norm
    )
    ratio = (rounded_var / exact_var.clamp_min(1e-30)).clamp(1 / _RATIO**2, _RATIO**2)
    ratio = torch.where(exact_var > 1e-12, ratio, torch.ones_like(ratio))
    shift = (mean.double() - exact) * ratio.sqrt()
    mean.copy_(rounded + shift)
    var.copy_(((var.double() + norm.eps) * ratio - norm.eps).clamp_min(0.0))


def _moments(
    batches: Sequence[tuple[Tensor, Tensor]], node: fx.Node, layer: nn.Module
) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of each channel, in float64, of the exact values and the rounded ones."""
    found = []
    for which in (0, 1):
        sums: list[Tensor] = []
        for pair in batches:
            values = pair[which].detach()
            channels = values.dim() - 1 if isinstance(layer, nn.Linear) else 1
            dims = [d for d in range(values.dim()) if d != channels]
            var, mean = (t.double() for t in torch.var_mean(values.float(), dims, correction=0))
            size = values.numel() // len(mean)
            sums.append(
                torch.stack([torch.full_like(mean, size), mean * size, (var + mean**2) * size])
            )
        count, total, squares = torch.stack(sums).sum(0)
        mean = total / count
        found.append((mean, (squares / count - mean**2).clamp_min(0.0)))
    return found
