"""Cutting layers to the channels that stay, and the record that lets it be done again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from modelzip.core.channels.attention import can_lose_heads, keep_heads, plain_encoders
from modelzip.core.channels.attributes import Attributes, set_attributes
from modelzip.core.channels.slots import (
    LAYERS,
    PRUNABLE,
    Slot,
    axes,
    groups,
    parameter_count,
    weight_count,
    width_attributes,
    widths,
)
from modelzip.errors import SettingError

__all__ = [
    "LAYERS", "PRUNABLE", "Slot", "axes", "from_record", "groups", "parameter_count", "resize",
    "to_record", "weight_count", "widths", "zero_inputs",
]  # fmt: skip


def resize(
    model: nn.Module, kept: Mapping[Slot, list[int]], attributes: Attributes | None = None
) -> None:
    """Keep only the channels `kept` of each slot, in place. Parameters are replaced.

    `nn.MultiheadAttention` that loses heads becomes a `PrunedAttention`.

    Args:
        attributes: integers that modules keep, such as a number of heads, and what they become.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> resize(model, {Slot("0", "out"): [0, 2], Slot("1", "in"): [0, 2]})
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    sides: dict[str, dict[str, Tensor]] = {}
    for slot, index in kept.items():
        sides.setdefault(slot.layer, {})[slot.side] = torch.tensor(index)
    for name, left in sides.items():
        _cut(model.get_submodule(name), left)
    plain_encoders(model)
    set_attributes(model, attributes or {})


def _cut(module: nn.Module, sides: Mapping[str, Tensor]) -> None:
    if isinstance(module, nn.MultiheadAttention):
        keep_heads(module, sides["out"])
    for tensor_name, along in axes(module).items():
        _slice(module, tensor_name, along, sides)
    if isinstance(module, _ConvNd) and module.groups > 1:
        module.groups = module.groups * len(sides["out"]) // module.out_channels
    for side, attribute in width_attributes(module).items():
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
        if isinstance(modules.get(name), nn.MultiheadAttention):
            width = width if can_lose_heads(modules[name]) else {}
        if not width or not isinstance(layer, dict) or type(layer.get("parameters")) is not int:
            raise SettingError(
                f"prune_channels cannot restore {name!r}: no such layer, or a damaged entry"
            )
        for side in layer.keys() & {"in", "out"}:
            if side not in width or not isinstance(layer[side], dict):
                raise SettingError(f"prune_channels cannot restore {name!r}: no side {side!r}")
            kept[Slot(name, side)] = _checked(name, side, layer[side], width[side])
        _check_whole(name, modules[name], kept)
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


def _check_whole(name: str, module: nn.Module, kept: Mapping[Slot, list[int]]) -> None:
    if isinstance(module, nn.MultiheadAttention):
        index, width = kept.get(Slot(name, "out"), []), module.head_dim
        if index != [i - i % width + n for i in index[::width] for n in range(width)]:
            raise SettingError(
                f"prune_channels cannot restore {name!r}: attention loses whole heads, of {width} "
                "channels each"
            )
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
