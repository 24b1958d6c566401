"""Norms of units of channels, and a penalty on them that lives on the model.

The penalty is DepGraph's (Fang et al. 2023, https://arxiv.org/abs/2301.12900): the squared norm of
each unit over all layers that make or read it, times 2 to a power that rises from 0 for the
strongest unit of its bundle to `contrast` for the weakest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from modelzip.core.base import Pass
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.resize import Slot, axes, widths
from modelzip.errors import SettingError

_PRESSURE = "_pressure_by_modelzip"  # not a submodule: a Sequential would run it
STEP = "group_sparsity_step"  # a buffer, so that checkpoints have it


@dataclass(eq=False)
class Pressure:
    """What presses on a model: bundles, their layers' widths, and the pass that set it there.

    `holders` counts how often a pass with these settings was set there.
    """

    owner: Pass
    bundles: Sequence[Bundle]
    widths: Mapping[Slot, int]
    training_steps: int
    holders: int = 1


def attach(model: nn.Module, owner: Pass, bundles: Sequence[Bundle], training_steps: int) -> None:
    """Let `owner` press on `bundles` of `model`, in the place of any pass that does."""
    before = attached(model)
    again = before is not None and before.owner == owner
    model.register_buffer(STEP, torch.zeros((), dtype=torch.int64, device=_device(model)))
    pressure = Pressure(
        owner=owner,
        bundles=bundles,
        widths={
            s: widths(model.get_submodule(s.layer))[s.side] for b in bundles for s in b.channels
        },
        training_steps=training_steps,
        holders=before.holders + 1 if again and before is not None else 1,
    )
    setattr(model, _PRESSURE, pressure)


def attached(model: nn.Module) -> Pressure | None:
    """What presses on `model`, or None."""
    found: Pressure | None = vars(model).get(_PRESSURE)
    return found


def detach(model: nn.Module) -> None:
    """Leave nothing of a pressure on `model`."""
    vars(model).pop(_PRESSURE, None)
    model._buffers.pop(STEP, None)


def count_step(model: nn.Module, step: int) -> None:
    """Say that optimizer step number `step` is done."""
    cast(Tensor, model._buffers[STEP]).fill_(step)


def still_whole(model: nn.Module, pressure: Pressure) -> bool:
    """Whether every layer pressed on is as wide as it was."""
    modules = dict(model.named_modules())
    return all(
        slot.layer in modules and widths(modules[slot.layer]).get(slot.side) == width
        for slot, width in pressure.widths.items()
    )


def penalty(model: nn.Module, pressure: Pressure, *, contrast: float, growth: float) -> Tensor:
    """Half the sum of squared norms of all units, weak ones weighted more, as far as it has grown.

    A scalar. It grows with the steps done, up to the fraction `growth` of the training.
    """
    total = torch.zeros((), device=_device(model))
    for bundle in pressure.bundles:
        norms = squared_norms(model, bundle)
        total = total + (weights(norms.detach(), contrast=contrast) * norms).sum()
    begun = cast(Tensor, model._buffers[STEP]) + 1
    grown = (begun / max(1.0, growth * pressure.training_steps)).clamp(max=1.0)
    return 0.5 * grown * total


def weights(norms: Tensor, *, contrast: float) -> Tensor:
    """2 to a power that falls from `contrast` at the smallest of `norms` to 0 at the largest.

    >>> weights(torch.tensor([1.0, 2.0, 3.0]), contrast=4)
    tensor([16.,  4.,  1.])
    """
    spread = (norms.max() - norms.min()).clamp(min=torch.finfo(norms.dtype).tiny)
    return torch.exp2(contrast * (norms.max() - norms) / spread)


def squared_norms(model: nn.Module, bundle: Bundle) -> Tensor:
    """Squared L2 norm of the weights that make or read each unit, (units,), differentiable.

    Scales of norm layers count, biases do not.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.], [2]]), torch.ones(1, 2)
    >>> pair = torch.tensor([[0], [1]])
    >>> bundle = Bundle({Slot("0", "out"): pair, Slot("1", "in"): pair})
    >>> squared_norms(model, bundle).detach()
    tensor([2., 5.])
    """
    total = torch.zeros(bundle.units, device=_device(model))
    for slot, channels in bundle.channels.items():
        module = model.get_submodule(slot.layer)
        weight, along = getattr(module, "weight", None), axes(module)["weight"]
        if weight is not None and slot.side in along:  # not so for a norm without scales
            axis = along.index(slot.side)
            every = weight.square().movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1)
            index = channels.to(weight.device).contiguous()  # sums round by their layout
            total = total + every[index].sum(1)
    return total


def weaker_half(model: nn.Module, bundles: Sequence[Bundle]) -> dict[str, float]:
    """By first layer, the fraction of the squared norm that the weaker half of its units has."""
    found: dict[str, list[Tensor]] = {}
    for bundle in bundles:
        found.setdefault(bundle.name, []).append(squared_norms(model, bundle).detach())
    halves = {}
    for name, parts in found.items():
        norms = torch.cat(parts).sort().values
        halves[name] = float(norms[: len(norms) // 2].sum() / norms.sum().clamp(min=1e-30))
    return halves


def to_record(model: nn.Module, bundles: Sequence[Bundle]) -> list[list[dict[str, Any]]]:
    """`bundles` as JSON, with the widths that their layers have now."""
    return [
        [
            {
                "layer": slot.layer,
                "side": slot.side,
                "of": widths(model.get_submodule(slot.layer))[slot.side],
                "channels": channels.tolist(),
            }
            for slot, channels in bundle.channels.items()
        ]
        for bundle in bundles
    ]


def from_record(model: nn.Module, record: object) -> list[Bundle]:
    """The bundles that `to_record` wrote; SettingError where they do not fit `model`."""
    modules = dict(model.named_modules())
    if not isinstance(record, list) or not record:
        raise SettingError("the record of group_sparsity is damaged: it names no bundle")
    found = []
    for bundle in record:
        if not isinstance(bundle, list) or not all(isinstance(entry, dict) for entry in bundle):
            raise SettingError(
                f"the record of group_sparsity is damaged: a bundle is {bundle!s:.40}"
            )
        channels = {
            Slot(str(e.get("layer")), str(e.get("side"))): _channels(modules, e) for e in bundle
        }
        if len({len(index) for index in channels.values()}) != 1:
            raise SettingError(
                "the record of group_sparsity is damaged: layers of a bundle differ in their units"
            )
        found.append(Bundle(channels))
    return found


def _channels(modules: Mapping[str, nn.Module], entry: Mapping[str, Any]) -> Tensor:
    name, side, of = str(entry.get("layer")), str(entry.get("side")), entry.get("of")
    width = widths(modules[name]).get(side) if name in modules else None
    if width is None or of != width:
        raise SettingError(
            f"group_sparsity cannot restore {name!r}: it has {width or 'no'} channels {side}, and "
            f"had {of!r} when the pass was attached; build the model as it was then"
        )
    units = entry.get("channels")
    sizes = {len(u) if isinstance(u, list) else 0 for u in units} if isinstance(units, list) else {}
    if (
        len(sizes) != 1
        or 0 in sizes
        or not all(
            type(i) is int and 0 <= i < width for i in itertools.chain.from_iterable(units or ())
        )
    ):
        raise SettingError(
            f"group_sparsity cannot restore {name!r}: its units are not lists of one length of "
            f"numbers from 0 to {width - 1}"
        )
    return torch.tensor(units)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
