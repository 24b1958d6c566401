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
        if not isinstance(module, LAYERS):
            return None
        return _along(module, slot, module.weight.detach().double().abs().pow(power))

    return slot_scores


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
        module = model.get_submodule(slot.layer)
        if slot.side == "in" or not isinstance(module, LAYERS):
            return None
        along = axes(module)["weight"]
        if "out" not in along:
            return None
        filters = module.weight.detach().double().movedim(along.index("out"), 0).flatten(1)
        return torch.cdist(filters, filters).sum(1)

    return slot_scores


def first_order(model: nn.Module, batches: Labelled) -> SlotScores:
    """The squared sum of weight times gradient of a batch's mean loss, summed over the batches."""
    model, totals = _differentiable(model), dict[Slot, Tensor]()
    for inputs, targets in batches:
        for slot, layer, gradient in _gradients(model, inputs, targets):
            part = _along(layer, slot, (layer.weight.detach() * gradient).double())
            if part is not None:
                totals[slot] = totals.get(slot, torch.zeros_like(part)) + part.square()
    return totals.get


def curvature(model: nn.Module, batches: Labelled) -> SlotScores:
    """Half the sum of squared weight times squared gradient of a sample's loss, its mean."""
    model, totals, count = _differentiable(model), dict[Slot, Tensor](), 0
    for inputs, target in _samples(batches):
        count += 1
        for slot, layer, gradient in _gradients(model, inputs, target):
            part = _along(layer, slot, (layer.weight.detach() * gradient).double().square())
            if part is not None:
                totals[slot] = totals.get(slot, torch.zeros_like(part)) + part
    return {slot: total / (2 * count) for slot, total in totals.items()}.get


def activations(model: nn.Module, inputs: Sequence[Any]) -> SlotScores:
    """The mean magnitude of a channel as a layer reads it."""
    model = surgery.clone(model)
    totals: dict[Slot, Tensor] = {}

    def watch(slot: Slot) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            (values,) = (*args, *kwargs.values())  # layers take one tensor
            axis = -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1
            magnitude = values.double().abs().movedim(axis, 0).flatten(1)
            totals[slot] = totals.get(slot, 0.0) + magnitude.mean(1)

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_pre_hook(watch(Slot(name, "in")), with_kwargs=True)
    with evaluating(model):
        for given in inputs:
            call(model, given)
    return totals.get


def _along(module: nn.Module, slot: Slot, values: Tensor) -> Tensor | None:
    """`values`, shaped as the weight, summed over all axes but the slot's own."""
    along = axes(module)["weight"]
    if slot.side not in along:
        return None
    return values.movedim(along.index(slot.side), 0).flatten(1).sum(1)


def _differentiable(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, whose layers' weights and nothing else take gradients."""
    model = surgery.clone(model).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            layer.weight.requires_grad_(True)
    return model


def _gradients(
    model: nn.Module, inputs: Any, targets: Tensor
) -> Iterator[tuple[Slot, Any, Tensor]]:
    """Each slot of the layers that `inputs` reach, its layer, and the gradient of its weight."""
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
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS) and layer.weight.grad is not None:
            for side in ("out", "in"):
                yield Slot(name, side), layer, layer.weight.grad


def _samples(batches: Labelled) -> Iterator[tuple[Any, Tensor]]:
    """Each sample as a batch of its own; tensors that are not as long as the labels stay."""
    for inputs, targets in batches:
        for row in range(len(targets)):
            yield tree_map_only(Tensor, partial(_row, row, len(targets)), inputs), targets[[row]]


def _row(row: int, size: int, values: Tensor) -> Tensor:
    return values[[row]] if values.dim() and len(values) == size else values
