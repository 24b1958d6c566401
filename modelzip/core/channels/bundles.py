"""Which channels hang together.

The model runs once while the channels of its layers are followed through every op (`trace`). Those
tied to each other form a unit, which can only be removed as a whole, as in Torch-Pruning's groups
(Fang et al. 2023, https://arxiv.org/abs/2301.12900); units of the same make-up form a bundle, whose
units compete. Nothing here is trusted: `verify` runs what comes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from modelzip.core import surgery
from modelzip.core.channels.attention import attention_channels
from modelzip.core.channels.layers import Layers
from modelzip.core.channels.resize import LAYERS, Slot, axes, widths
from modelzip.core.channels.ties import Ties, Units
from modelzip.core.channels.trace import Trace, trace
from modelzip.core.running import forked_rng, rows
from modelzip.errors import ModelError, first_line

_IDLE = "does not run as a layer of its own on the example inputs"


@dataclass(frozen=True, eq=False)
class Bundle:
    """Interchangeable units. `channels[slot]` is (units, channels a unit has there), int64.

    The first slot is the output of the layer that gives the bundle its name. `owners` are the
    modules whose own forward splits these channels into axes or joins them, as attention does
    with heads: sizes written there may depend on how many units there are. `counts` has those of
    their integer attributes, by module and name, that do, and how many each unit counts for.
    """

    channels: Mapping[Slot, Tensor]
    owners: frozenset[str] = frozenset()
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first layer whose output channels these are."""
        return next(iter(self.channels)).layer

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(next(iter(self.channels.values())))

    @property
    def channels_per_unit(self) -> int:
        """Output channels of the first layer that go with one unit."""
        return next(iter(self.channels.values())).shape[1]


def find_bundles(
    model: nn.Module, inputs: Any, *, chosen: Iterable[str]
) -> tuple[list[Bundle], dict[str, str]]:
    """Bundles of the output channels of the layers `chosen`, and why other chosen layers have none.

    Args:
        inputs: one batch of inputs as `call` takes them.

    Raises:
        ModelError: the model does not run on `inputs`, or returns no tensor.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found, protected = find_bundles(model, torch.ones(1, 2), chosen=["0", "2"])
    >>> [(b.name, b.units) for b in found], protected
    ([('0', 4)], {'2': "feeds the model's output"})
    """
    return bundles_in(follow(model, inputs), model, chosen=chosen)


def bundles_in(
    seen: Trace, model: nn.Module, *, chosen: Iterable[str]
) -> tuple[list[Bundle], dict[str, str]]:
    """As `find_bundles`, of what `follow` saw of `model`."""
    chosen = list(chosen)
    _bar_layers(seen.layers, seen.ties, model, set(chosen))
    units = seen.ties.resolve()
    found = list(_bundles(seen.layers, units))
    reasons = _reasons(seen.layers, units)
    found = _away_from_unreached(found, reasons, seen.layers)
    heads, whole = attention_channels(model, [n for n in chosen if n in seen.layers.reached])
    found, reasons = found + [Bundle(channels) for channels in heads], reasons | whole
    covered = {slot.layer for b in found for slot in b.channels if slot.side == "out"}
    return found, {n: reasons.get(n, _IDLE) for n in chosen if n not in covered}


def follow(model: nn.Module, inputs: Any) -> Trace:
    """What is seen of the channels of `model` in one run.

    A copy that shares the parameters runs on one row of `inputs`, or all if it does not take that.

    Raises:
        ModelError: the model does not run on `inputs`, or returns no tensor.
    """
    for given in (rows(inputs, 1), inputs):
        twin = surgery.clone(model, share=True).eval()
        for module in twin.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        try:
            with forked_rng(model):
                seen, outputs = trace(twin, given)
        except Exception as error:  # the model's own code may raise anything
            fault = error
            continue
        for output in outputs:
            if (label := seen.label(output)) is not None:
                seen.ties.bar(label, "feeds the model's output")
        if outputs:
            return seen
        raise ModelError(
            f"{type(model).__name__} returns no tensor that depends on its parameters, so its "
            "channels cannot be followed"
        )
    raise ModelError(
        f"{type(model).__name__} does not run on the example inputs: {first_line(fault)}"
    ) from fault


def _bar_layers(layers: Layers, ties: Ties, model: nn.Module, chosen: set[str]) -> None:
    """Bar slots by what their layers are: not chosen, tied, parametrized, idle or unknown."""
    tied = {
        name.rpartition(".")[0]: " and ".join(group)
        for group in surgery.tied_parameters(model)
        for name in group
    }
    for slot, width in layers.width.items():
        module = layers.modules[slot.layer]
        layer = isinstance(module, LAYERS)
        reason = ""
        if slot.layer in tied:
            reason = f"{tied[slot.layer]} are tied"
        elif extra := sorted(_own_tensors(module) - axes(module).keys()):
            reason = _about(slot, f"has tensors of its own: {', '.join(extra)}")
        elif "weight" in axes(module) and not _plain(module):
            reason = _about(slot, "computes its weight; prune channels before that is attached")
        elif slot not in layers.applied if layer else slot.layer not in layers.reached:
            reason = _IDLE
        elif slot.side == "out" and layer and width == 1:
            reason = "has one output channel"
        elif slot.side == "out" and layer and slot.layer not in chosen:
            reason = _about(slot, "targets and skip leave out")
        if reason:
            ties.bar(layers.numbers(slot), reason)


def _about(slot: Slot, what: str) -> str:
    """`what` is so of the layer of `slot`, said of another layer that has the same channels."""
    return f"{'feeds' if slot.side == 'in' else 'hangs together with'} {slot.layer!r}, which {what}"


def _own_tensors(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers} - {"num_batches_tracked"}


def _plain(module: nn.Module) -> bool:
    return not is_parametrized(module) and "weight" in module._parameters


def _bundles(layers: Layers, units: Units) -> Iterator[Bundle]:
    """Units free to go that have an output channel, in bundles of the same make-up."""
    slots = list(layers.width)
    slot_of = np.repeat(np.arange(len(slots)), list(layers.width.values()))
    number = np.flatnonzero(units.stays[1:] < 0) + 1  # ascending, so by slot
    number = number[np.argsort(units.root[number], kind="stable")]
    _, start, size = np.unique(units.root[number], return_index=True, return_counts=True)
    found = []
    for length in np.unique(size).tolist():
        members = number[start[size == length][:, None] + np.arange(length)]
        kinds, kind = np.unique(slot_of[members - 1], axis=0, return_inverse=True)
        for index, made_of in enumerate(kinds):
            found.append((members[kind.ravel() == index], made_of))
    for members, made_of in sorted(found, key=lambda pair: int(pair[0][0, 0])):
        there = [slots[i] for i in dict.fromkeys(made_of.tolist())]
        there.sort(key=lambda slot: slot.side == "in")  # outputs first, else in order
        if there[0].side == "out":
            laid_out = units.owners.keys() & set(units.root[members[:, 0]].tolist())
            owners = frozenset(owner for root in laid_out for owner in units.owners[root])
            yield Bundle(
                {
                    slot: torch.from_numpy(
                        members[:, made_of == slots.index(slot)] - layers.first[slot]
                    )
                    for slot in there
                },
                owners,
            )


def _reasons(layers: Layers, units: Units) -> dict[str, str]:
    """Why output channels must stay, by layer: what holds the first of them that must."""
    reasons: dict[str, str] = {}
    for slot, first in layers.first.items():
        if slot.side == "out" and slot.layer not in reasons:
            stays = units.stays[first : first + layers.width[slot]]
            if (stays >= 0).any():
                reason = units.reasons[stays[stays >= 0][0]]
                reasons[slot.layer] = reason.removeprefix(_about(slot, ""))
    return reasons


def _away_from_unreached(
    found: list[Bundle], reasons: dict[str, str], layers: Layers
) -> list[Bundle]:
    """Drop bundles as wide as a layer that other inputs may reach: it may hang on them."""
    width_of: dict[int, str] = {}
    for name, module in layers.modules.items():
        if isinstance(module, LAYERS) and name not in layers.reached:
            for width in widths(module).values():
                width_of.setdefault(width, name)
    kept = []
    for bundle in found:
        clash = {layers.width[slot] for slot in bundle.channels} & width_of.keys()
        if not clash:
            kept.append(bundle)
            continue
        other = width_of[min(clash)]
        for slot in bundle.channels:
            reasons.setdefault(
                slot.layer,
                f"may hang together with {other!r}, which is as wide and which the example "
                "inputs never reach",
            )
    return kept
