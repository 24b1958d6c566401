"""Norms whose output linear layers read, and scales that can move from one to the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating
from modelzip.errors import ModelError

NORMS = (nn.LayerNorm, nn.RMSNorm)
_PASSING = (nn.Dropout, nn.Identity)  # what scales each channel alike before and after


def smoothing_scales(activations: Tensor, weights: Tensor, *, alpha: float) -> Tensor:
    """What each input channel is divided by and its weights are multiplied by, above 0.

    `activations` and `weights`, [channels], hold the largest magnitude of each channel; a channel
    that is 0 in either is left alone. Xiao et al. 2022, https://arxiv.org/abs/2211.10438.

    >>> smoothing_scales(torch.tensor([16.0, 1.0]), torch.tensor([0.25, 0.25]), alpha=0.5).tolist()
    [8.0, 2.0]
    """
    scales = activations.pow(alpha) / weights.pow(1 - alpha)
    used = (activations > 0) & (weights > 0) & torch.isfinite(scales)
    return torch.where(used, scales, torch.ones_like(scales))


def readers(
    graph: fx.GraphModule, norms: Collection[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The linear layers that alone read each norm's output, and why other norms have none.

    Names are those of modules in `graph`, which traces the model they belong to.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    shared = _shared(graph)
    found: dict[str, tuple[str, ...]] = {}
    misfits: dict[str, str] = {}
    for name in norms:
        reason = _misfit(graph, calls, name)
        if not reason:
            users = _users(graph, calls[name][0])
            layers = tuple(dict.fromkeys(str(user.target) for user in users))
            reason = next((shared[n] for n in (name, *layers) if n in shared), "")
            found[name] = layers
        if reason:
            found.pop(name, None)
            misfits[name] = reason
    return found, misfits


def _shared(graph: fx.GraphModule) -> dict[str, str]:
    """Why the tensors of a module cannot be changed: others use them as well."""
    reasons = {}
    for group in surgery.tied_parameters(graph):
        for name in group:
            reasons[name.rpartition(".")[0]] = f"{' and '.join(group)} are one tensor"
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            reasons[str(node.target).rpartition(".")[0]] = f"{node.target} is used by itself too"
    return reasons


def _misfit(graph: fx.GraphModule, calls: Mapping[str, list[fx.Node]], name: str) -> str:
    """Why the scales of a norm cannot move, or nothing."""
    if len(calls.get(name, [])) != 1:
        return f"it is called {len(calls.get(name, []))} times"
    norm = graph.get_submodule(name)
    if not isinstance(norm.weight, Tensor) or norm.weight.dim() != 1:
        return "it has no weight for each channel of the last dimension"
    users = list(_users(graph, calls[name][0]))
    for user in users:
        layer = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        if not isinstance(layer, nn.Linear):
            kind = user.name if layer is None else f"{user.target}, a {type(layer).__name__}"
            return f"its output is read by {kind}"
        if any(other not in users for other in calls[str(user.target)]):
            return f"{user.target} reads other values too"
    return "" if users else "nothing reads its output"


def _users(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that use the value of `node`, past any dropout."""
    for user in node.users:
        passing = user.op == "call_module" and isinstance(
            graph.get_submodule(str(user.target)), _PASSING
        )
        if passing:
            yield from _users(graph, user)
        else:
            yield user


def largest_outputs(
    model: nn.Module, norms: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """The largest |output| of each channel of each norm over `batches`; ModelError for NaN."""
    largest: dict[str, Tensor] = {}

    def watch(name: str, output: Tensor) -> None:
        seen = output.detach().float().abs().flatten(0, -2).amax(dim=0)
        largest[name] = torch.maximum(largest.get(name, seen), seen)

    handles = [
        norm.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, norm in norms.items()
    ]
    try:
        with evaluating(model):
            for batch in batches:
                call(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name in norms:
        if name not in largest or not bool(torch.isfinite(largest[name]).all()):
            raise ModelError(
                f"the output of {name} is NaN or infinite, or was never computed, on the "
                "calibration data; check the weights and the data's range"
            )
    return largest


@torch.no_grad()
def smooth(
    norm: nn.Module, linears: Sequence[nn.Module], largest: Tensor, *, alpha: float
) -> Tensor:
    """Divide `norm`'s output by scales, in place, and multiply the weights that read it.

    The scales are returned; `largest` is the largest |output| of each channel.
    """
    weights = [surgery.original_tensor(linear) for linear in linears]
    heaviest = torch.cat([w.float().abs() for w in weights]).amax(dim=0)
    scales = smoothing_scales(largest, heaviest, alpha=alpha)
    for tensor in norm.parameters(recurse=False):  # its weight, and its bias if it has one
        tensor.div_(scales)
    for weight in weights:
        weight.mul_(scales)
    return scales
