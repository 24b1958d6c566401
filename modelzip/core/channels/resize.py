"""Layers whose channels can be removed, and removing them.

A slot is one side of a layer: the channels it takes "in" or gives "out". A layer that only passes
channels on, such as BatchNorm, has the slot "out" alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from modelzip.errors import SettingError

LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)  # layers with output channels of their own


class Slot(NamedTuple):
    """One side of a layer, "in" or "out"."""

    layer: str
    side: str


Axes = Mapping[str, tuple[str | None, ...]]  # tensor name -> the side along each of its axes


def axes(module: nn.Module) -> Axes:
    """Which side of `module` lies along each leading axis of its tensors; empty if unsupported.

    >>> axes(nn.Linear(2, 3))
    {'weight': ('out', 'in'), 'bias': ('out',)}
    >>> axes(nn.LayerNorm(2))
    {}
    """
    if isinstance(module, _ConvTransposeNd):
        weight: tuple[str | None, ...] = ("in", "out") if module.groups == 1 else ("in",)
        return {"weight": weight, "bias": ("out",)}
    if isinstance(module, (_ConvNd, nn.Linear)):
        # the second axis of a grouped weight counts the channels of one group: whole groups go
        grouped = isinstance(module, _ConvNd) and module.groups > 1
        return {"weight": ("out",) if grouped else ("out", "in"), "bias": ("out",)}
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("out",))
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"weight": ("out",)}
    if isinstance(module, nn.Embedding):
        return {"weight": (None, "out")}
    return {}


def widths(module: nn.Module) -> dict[str, int]:
    """Channels on each side of a supported layer; empty if unsupported.

    >>> widths(nn.Linear(2, 3))
    {'in': 2, 'out': 3}
    """
    return {side: getattr(module, attribute) for side, attribute in _attributes(module).items()}


def groups(module: nn.Module) -> int:
    """Groups of a convolution; 1 for any other layer."""
    return module.groups if isinstance(module, _ConvNd) else 1


def parameter_count(module: nn.Module, width: Mapping[str, int]) -> int:
    """Parameters `module` has once its sides are `width` wide.

    >>> parameter_count(nn.Linear(2, 3), {"in": 1, "out": 2})
    4
    """
    return sum(
        math.prod(_shape(module, name, width))
        for name in axes(module)
        if module._parameters.get(name) is not None
    )


def weight_count(module: nn.Module, width: Mapping[str, int]) -> int:
    """Elements of `module.weight` once its sides are `width` wide."""
    return math.prod(_shape(module, "weight", width))


def _shape(module: nn.Module, name: str, width: Mapping[str, int]) -> list[int]:
    tensor = getattr(module, name)
    along = axes(module)[name]
    return [
        width[side] if side is not None else size
        for side, size in itertools.zip_longest(along, tensor.shape)
    ]


def resize(model: nn.Module, kept: Mapping[Slot, list[int]]) -> None:
    """Keep only the channels `kept` of each slot, in place. Parameters are replaced.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> resize(model, {Slot("0", "out"): [0, 2], Slot("1", "in"): [0, 2]})
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    for name in dict.fromkeys(slot.layer for slot in kept):
        module = model.get_submodule(name)
        sides = {s.side: torch.tensor(k) for s, k in kept.items() if s.layer == name}
        for tensor_name, along in axes(module).items():
            _slice(module, tensor_name, along, sides)
        if isinstance(module, _ConvNd) and module.groups > 1:
            module.groups = module.groups * len(sides["out"]) // module.out_channels
        for side, attribute in _attributes(module).items():
            if side in sides:
                setattr(module, attribute, len(sides[side]))


def zero_inputs(model: nn.Module, removed: Mapping[Slot, Tensor]) -> None:
    """Zero, in place, the weights that read the channels `removed`: the masked model."""
    for slot, index in removed.items():
        module = model.get_submodule(slot.layer)
        along = axes(module)["weight"]
        if slot.side == "in" and "in" in along:
            weight = getattr(module, "weight").data  # noqa: B009
            weight.index_fill_(along.index("in"), index.to(weight.device), 0.0)


def to_record(model: nn.Module, kept: Mapping[Slot, list[int]]) -> dict[str, Any]:
    """`kept` as JSON, with the parameters each layer had: call it before `resize`."""
    record: dict[str, Any] = {}
    for slot, index in kept.items():
        module = model.get_submodule(slot.layer)
        layer = record.setdefault(
            slot.layer, {"parameters": sum(p.numel() for p in module.parameters(recurse=False))}
        )
        layer[slot.side] = {"of": widths(module)[slot.side], "kept": index}
    return record


def from_record(model: nn.Module, record: object) -> dict[Slot, list[int]]:
    """The `kept` that `to_record` wrote; SettingError where it does not fit `model`."""
    modules = dict(model.named_modules())
    kept: dict[Slot, list[int]] = {}
    if not isinstance(record, dict) or not record:
        raise SettingError("the record of prune_channels is damaged: it names no layer")
    for name, layer in record.items():
        width = widths(modules[name]) if name in modules else {}
        if not width or not isinstance(layer, dict) or type(layer.get("parameters")) is not int:
            raise SettingError(
                f"prune_channels cannot restore {name!r}: no such layer, or a damaged entry"
            )
        for side in layer.keys() & {"in", "out"}:
            if side not in width or not isinstance(layer[side], dict):
                raise SettingError(f"prune_channels cannot restore {name!r}: no side {side!r}")
            kept[Slot(name, side)] = _checked(name, side, layer[side], width[side])
        _check_groups(name, modules[name], kept)
    return kept


def _checked(name: str, side: str, entry: Mapping[str, Any], width: int) -> list[int]:
    index, of = entry.get("kept"), entry.get("of")
    if of != width:
        raise SettingError(
            f"prune_channels cannot restore {name!r}: it has {width} channels {side}, and had "
            f"{of!r} when it was pruned; build the model as it was then"
        )
    whole = isinstance(index, list) and all(type(i) is int for i in index)
    if (
        not isinstance(index, list)
        or not whole
        or not index
        or index[0] < 0
        or index[-1] >= width
        or any(a >= b for a, b in itertools.pairwise(index))
    ):
        raise SettingError(
            f"prune_channels cannot restore {name!r}: the channels kept {side} are not ascending "
            f"numbers from 0 to {width - 1}"
        )
    return index


def _check_groups(name: str, module: nn.Module, kept: Mapping[Slot, list[int]]) -> None:
    count = groups(module)
    if count == 1:
        return
    left = []
    for side, width in widths(module).items():
        size = width // count
        index = kept.get(Slot(name, side), [])
        left.append([i // size for i in index[::size]])
        if index != [g * size + i for g in left[-1] for i in range(size)]:
            left.append([])  # not whole groups, so never equal to the other side's
    if not left[0] or any(groups_left != left[0] for groups_left in left):
        raise SettingError(
            f"prune_channels cannot restore {name!r}: a grouped convolution loses whole groups, "
            "inputs and outputs alike"
        )


def _attributes(module: nn.Module) -> dict[str, str]:
    if isinstance(module, _ConvNd):
        return {"in": "in_channels", "out": "out_channels"}
    if isinstance(module, nn.Linear):
        return {"in": "in_features", "out": "out_features"}
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return {"out": "num_features"}
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"out": "num_parameters"}
    return {"out": "embedding_dim"} if isinstance(module, nn.Embedding) else {}


def _slice(
    module: nn.Module, name: str, along: tuple[str | None, ...], sides: Mapping[str, Tensor]
) -> None:
    old = module._parameters.get(name, module._buffers.get(name))
    if old is None:  # no bias, not affine, or no running statistics
        return
    new = old.detach()
    for axis, side in enumerate(along):
        if side is not None and side in sides:
            new = new.index_select(axis, sides[side].to(new.device))
    new = new.clone() if new is old else new
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
