"""Running a model as it is, with other values, and with channels masked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from modelzip.core.channels.attention import plain_attention
from modelzip.core.channels.slots import Slot, axes
from modelzip.core.running import call, convert, evaluating, forked_rng, tensors

Removed = Mapping[Slot, Tensor]


class Setup(NamedTuple):
    """Inputs to run on, and by `id` tensors that stand for some of the model's own."""

    given: Any
    values: Mapping[int, Tensor]


def masked_reads(model: nn.Module, setup: Setup, removed: Removed) -> list[Tensor] | None:
    """What `model` returns with zeros for the channels `removed` that layers are given.

    No weight is copied for that. None if there is a layer that is never called as a module.
    """
    read = _read(model, removed)
    called: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_masking(name, index, called))
        for name, index in read.items()
    ]
    try:
        found = outputs_with(model, setup.values, setup.given)
    finally:
        for handle in handles:
            handle.remove()
    return found if called == read.keys() else None


def masked_weights(model: nn.Module, setup: Setup, removed: Removed) -> list[Tensor]:
    """What `model` returns with zeros for the weights that read the channels `removed`."""
    values = dict(setup.values)
    for name, index in _read(model, removed).items():
        module = model.get_submodule(name)
        axis = axes(module)["weight"].index("in")
        weight = getattr(module, "weight")  # noqa: B009
        known = values.get(id(weight), weight)
        new = known.detach().index_fill(axis, index.to(known.device), 0.0)
        values[id(weight)] = nn.Parameter(new, requires_grad=known.requires_grad)
    return outputs_with(model, values, setup.given)


def _read(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """The channels `removed` that each layer reads."""
    return {
        slot.layer: index
        for slot, index in removed.items()
        if slot.side == "in" and "in" in axes(model.get_submodule(slot.layer)).get("weight", ())
    }


def _masking(name: str, index: Tensor, called: set[str]) -> Callable[..., Any]:
    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not given:  # by keyword
            return given
        called.add(name)
        source, *rest = given
        axis = source.dim() - 1 - (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
        return source.index_fill(axis, index.to(source.device), 0.0), *rest

    return hook


def outputs_with(model: nn.Module, values: Mapping[int, Tensor], given: Any) -> list[Tensor]:
    """What `model` returns in eval mode with `values` in place of some tensors, by `id`."""
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and (id(tensor) in values or held is module._buffers):
                    places.append((cast(dict[str, Any], held), name, tensor))
    try:
        for store, name, tensor in places:
            new = values.get(id(tensor), tensor)
            store[name] = new if isinstance(new, nn.Parameter) else new.clone()
        with evaluating(model):
            return outputs(model, given)
    finally:
        for store, name, tensor in places:
            store[name] = tensor


def in_float64(model: nn.Module, setup: Setup) -> Setup:
    """`setup` with all floats wide, so that rounding hides nothing."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    values = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        new = wide(setup.values.get(id(tensor), tensor).detach())
        parameter = isinstance(tensor, nn.Parameter)
        values[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
    return Setup(convert(setup.given, wide), values)


def outputs(model: nn.Module, given: Any) -> list[Tensor]:
    """What `model` returns, in the mode it is in; `given` stays as it is."""
    with torch.no_grad(), plain_attention(), forked_rng(model):
        torch.manual_seed(0)  # layers that draw numbers even here draw the same each time
        return list(tensors(call(model, convert(given, torch.clone))))
