"""How much each channel of a layer matters, by its weights or by data.

Every measure is a function from a slot to the scores of its channels, None where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from modelzip.core import surgery
from modelzip.core.answers import logits
from modelzip.core.channels.resize import LAYERS, Slot, axes
from modelzip.core.running import call, evaluating
from modelzip.errors import DataError

SlotScores = Callable[[Slot], Tensor | None]
Labelled = Sequence[tuple[Any, Tensor]]  # inputs, as `call` takes them, and class indices


def norms(model: nn.Module, *, power: int) -> SlotScores:
    """The sum of |w|^`power` over the weights that make or read a channel, BatchNorm scales too."""

    def slot_scores(slot: Slot) -> Tensor | None:
        module = model.get_submodule(slot.layer)
        if isinstance(module, _BatchNorm):
            return module.weight.detach().abs().pow(power) if module.affine else None
        filters = _filters(module, slot.side, lambda w: _magnitudes(w.detach(), power))
        return None if filters is None else filters.sum(1)

    return slot_scores


def _magnitudes(weight: Tensor, power: int) -> Tensor:
    """|weight|^power in float32 or better: sums of it rank channels, and large models have many."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    return weight.abs() if power == 1 else weight.square()


def scales(model: nn.Module) -> SlotScores:
    """The magnitude of the scale that a BatchNorm gives a channel."""

    def slot_scores(slot: Slot) -> Tensor | None:
        module = model.get_submodule(slot.layer)
        if not isinstance(module, _BatchNorm) or not module.affine:
            return None
        return module.weight.detach().abs()

    return slot_scores


def distances(model: nn.Module) -> SlotScores:
    """The sum of the distances of a channel's filter to the others of its layer."""

    def slot_scores(slot: Slot) -> Tensor | None:
        if slot.side == "in":
            return None
        module = model.get_submodule(slot.layer)
        filters = _filters(module, slot.side, lambda w: w.detach().double())
        return None if filters is None else torch.cdist(filters, filters).sum(1)

    return slot_scores


def first_order(model: nn.Module, batches: Labelled) -> SlotScores:
    """The squared sum of weight times gradient of a batch's mean loss, summed over the batches."""
    model, totals = _differentiable(model), dict[Slot, Tensor]()
    for inputs, targets in batches:
        for slot, changes in _changes(model, inputs, targets):
            part = changes.sum(1).square()
            totals[slot] = totals.get(slot, torch.zeros_like(part)) + part
    return totals.get


def curvature(model: nn.Module, batches: Labelled) -> SlotScores:
    """Half the sum of squared weight times squared gradient of a sample's loss, its mean."""
    model, totals, count = _differentiable(model), dict[Slot, Tensor](), 0
    for inputs, target in _samples(batches):
        count += 1
        for slot, changes in _changes(model, inputs, target):
            part = changes.square().sum(1)
            totals[slot] = totals.get(slot, torch.zeros_like(part)) + part
    return {slot: total / (2 * count) for slot, total in totals.items()}.get


def activations(model: nn.Module, inputs: Sequence[Any]) -> SlotScores:
    """The mean magnitude of a channel as a layer reads it."""
    model = surgery.clone(model)
    totals: dict[Slot, Tensor] = {}

    def add(slot: Slot, values: Tensor, axis: int) -> None:
        magnitude = values.double().abs().movedim(axis, 0).flatten(1)
        totals[slot] = totals.get(slot, 0.0) + magnitude.mean(1)

    def watch(slot: Slot) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            (values,) = (*args, *kwargs.values())  # layers take one tensor
            add(slot, values, -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1)

        return hook

    def watch_heads(slot: Slot, bare: nn.Module) -> Any:
        return lambda _, args, kwargs: add(slot, bare(*args, **kwargs)[0], -1)

    for name, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention):  # its out_proj is never called
            slot = Slot(f"{name}.out_proj" if name else "out_proj", "in")
            hook = watch_heads(slot, _without_projection(layer))
            layer.register_forward_pre_hook(hook, with_kwargs=True)
        elif isinstance(layer, LAYERS):
            layer.register_forward_pre_hook(watch(Slot(name, "in")), with_kwargs=True)
    with evaluating(model):
        for given in inputs:
            call(model, given)
    return totals.get


def _without_projection(attention: nn.MultiheadAttention) -> nn.Module:
    """A copy of `attention` that returns the outputs of its heads side by side."""
    bare = surgery.clone(attention).eval().requires_grad_(False)
    weight = bare.get_parameter("out_proj.weight")
    bare.set_submodule("out_proj", nn.Linear(weight.shape[1], weight.shape[1]).to(weight))
    nn.init.eye_(bare.get_parameter("out_proj.weight"))
    nn.init.zeros_(bare.get_parameter("out_proj.bias"))
    return bare


def _filters(module: nn.Module, side: str, of: Callable[[Tensor], Tensor]) -> Tensor | None:
    """`of` each weight that makes ("out") or reads ("in") a channel: (channels, weights)."""
    if isinstance(module, nn.MultiheadAttention):  # made by its projections, read by out_proj
        if side == "in":
            return None
        weights = _projections(module)
        parts = of(weights[0]).chunk(3) if len(weights) == 1 else [of(w) for w in weights]
        return torch.cat(list(parts), 1)
    if not isinstance(module, LAYERS) or side not in (along := axes(module)["weight"]):
        return None
    return of(module.weight).movedim(along.index(side), 0).flatten(1)


def _projections(module: nn.MultiheadAttention) -> list[Tensor]:
    """The weights that make queries, keys and values: one of all three, or one of each."""
    if module.in_proj_weight is not None:
        return [module.in_proj_weight]
    return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]


def _weights(module: nn.Module) -> list[Tensor]:
    if isinstance(module, nn.MultiheadAttention):
        return _projections(module)
    return [module.weight] if isinstance(module, LAYERS) else []


def _differentiable(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, whose layers' weights and nothing else take gradients."""
    model = surgery.clone(model).eval().requires_grad_(False)
    for module in model.modules():
        for weight in _weights(module):
            weight.requires_grad_(True)
    return model


def _changes(model: nn.Module, inputs: Any, targets: Tensor) -> Iterator[tuple[Slot, Tensor]]:
    """Weight times gradient of the mean loss, as `_filters`, for each slot that `inputs` reach."""
    model.zero_grad()
    with torch.enable_grad():
        found = logits(call(model, inputs), targets)
        labels = targets.flatten().to(found.device)
        if labels.is_floating_point() or len(labels) != len(found):
            raise DataError(
                f"labels of shape {list(targets.shape)} and {targets.dtype} do not fit "
                f"{len(found)} answers of {found.shape[1]} classes; give class indices, or use an "
                "importance that needs no labels, such as l1"
            )
        F.cross_entropy(found, labels).backward()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        weights = _weights(module)
        if any(weight.grad is not None for weight in weights):
            for side in ("out", "in"):
                changes = _filters(module, side, _times_gradient)
                if changes is not None:
                    yield Slot(name, side), changes


def _times_gradient(weight: Tensor) -> Tensor:
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return (weight.detach() * gradient).double()


def _samples(batches: Labelled) -> Iterator[tuple[Any, Tensor]]:
    """Each sample as a batch of its own; tensors that are not as long as the labels stay."""
    for inputs, targets in batches:
        for row in range(len(targets)):
            yield tree_map_only(Tensor, partial(_row, row, len(targets)), inputs), targets[[row]]


def _row(row: int, size: int, values: Tensor) -> Tensor:
    return values[[row]] if values.dim() and len(values) == size else values
