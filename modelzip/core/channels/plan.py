"""Planning which channels go, with every plan tried on copies of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.channels import choose
from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.cost import Cost
from modelzip.core.channels.resize import LAYERS, Slot
from modelzip.core.channels.scores import score
from modelzip.core.channels.verify import Trial, faults, kept_channels
from modelzip.errors import ModelError, SettingError


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much goes: the fraction `value` of channels, or all but `value` of "macs" or "params"."""

    kind: str
    value: float
    scope: str
    round_to: int
    max_sparsity: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}{'' if self.kind == 'sparsity' else 'x'}"


@dataclass(frozen=True, kw_only=True)
class ChannelPlan:
    """What pruning would do to a model.

    Attributes:
        kept: the channels that stay on each side of each layer touched.
        channels: output channels before and after, of each convolution and Linear to be narrowed.
        macs: multiply-accumulates before and after, for one call on the example inputs.
        params: parameters before and after.
        protected: layers that were chosen and stay as wide as they are, and why.
    """

    kept: Mapping[Slot, list[int]]
    channels: Mapping[str, tuple[int, int]]
    macs: tuple[int, int]
    params: tuple[int, int]
    protected: Mapping[str, str]


def make_plan(
    model: nn.Module,
    inputs: Any,
    goal: Goal,
    *,
    chosen: Mapping[str, nn.Module],
    importance: str,
    calibration: Sequence[Batch] = (),
    seed: int = 0,
) -> ChannelPlan:
    """The plan for `goal` over the output channels of the layers `chosen`; `model` stays as it is.

    The model pruned by the plan has been run, and equals the model with those channels masked.

    Raises:
        ModelError: the model does not run or cannot be followed, or every layer is protected.
        SettingError: the goal cannot be met, or rounding leaves nothing to remove.
        DataError: importance is "taylor" and a calibration batch has no labels.
    """
    found, reasons = find_bundles(model, inputs, chosen=chosen)
    protection = _Protection(chosen, reasons)
    found = _prunable(model, inputs, goal, found, protection)
    scores = score(model, found, method=importance, calibration=calibration, seed=seed)
    protection.add([b for b in found if b not in scores], "has no BatchNorm scale to rank by")
    cost = Cost(model, inputs)
    trial = Trial(model, inputs)
    while True:
        taken = _take(goal, scores, cost, protection)
        broken = _broken(trial, list(dict.fromkeys(chunk.bundle for chunk in taken)), taken)
        if not broken:
            break
        for bundle, reason in broken.items():
            protection.add([bundle], reason)
            del scores[bundle]
    counts = choose.counts(taken)
    kept = kept_channels(model, choose.removed(taken))
    return ChannelPlan(
        kept=kept,
        channels={
            slot.layer: (len(index) + counts[slot], len(index))
            for slot, index in kept.items()
            if slot.side == "out" and isinstance(model.get_submodule(slot.layer), LAYERS)
        },
        macs=(cost.macs({}), cost.macs(counts)),
        params=(cost.params({}), cost.params(counts)),
        protected=protection.reasons({slot.layer for slot in kept if slot.side == "out"}),
    )


class _Protection:
    """Why layers stay as wide as they are."""

    def __init__(self, chosen: Mapping[str, nn.Module], reasons: Mapping[str, str]) -> None:
        self._chosen = chosen
        self._reasons = dict(reasons)

    def add(self, found: Sequence[Bundle], reason: str) -> None:
        for bundle in found:
            for slot in bundle.channels:
                if slot.side == "out" and slot.layer in self._chosen:
                    self._reasons.setdefault(slot.layer, reason)

    def reasons(self, narrowed: set[str]) -> dict[str, str]:
        return {
            name: self._reasons[name]
            for name in self._chosen
            if name in self._reasons and name not in narrowed
        }

    def __str__(self, limit: int = 4) -> str:
        items = [f"{name!r} {reason}" for name, reason in self.reasons(set()).items()]
        more = f"; and {len(items) - limit} more" if len(items) > limit else ""
        return "; ".join(items[:limit]) + more if items else "none"


def _prunable(
    model: nn.Module, inputs: Any, goal: Goal, found: list[Bundle], protection: _Protection
) -> list[Bundle]:
    """Bundles that may shrink under `goal` and do so without harm; the others are protected."""
    generator = torch.Generator().manual_seed(0)
    probes = []
    for bundle in found:
        left = choose.sizes(bundle, round_to=goal.round_to, max_sparsity=goal.max_sparsity)
        if left:  # units at random: every other one would hide a shift by an even number
            units = torch.randperm(bundle.units, generator=generator)[left[len(left) // 2] :]
            probes.append(Chunk(bundle, units, (0.0, 0.0)))
        else:
            width = bundle.units * bundle.channels_per_unit
            reason = (
                f"has nothing to remove of {width} channels with round_to={goal.round_to} and "
                f"max_sparsity={goal.max_sparsity:g}"
            )
            protection.add([bundle], reason)
    try:
        trial = Trial(model, inputs, jitter=True)
    except ModelError:  # values near the trained ones may be outside what an op takes
        trial = Trial(model, inputs)
    broken = _broken(trial, [probe.bundle for probe in probes], probes)
    for bundle, reason in broken.items():
        protection.add([bundle], reason)
    return [probe.bundle for probe in probes if probe.bundle not in broken]


def _broken(trial: Trial, bundles: Sequence[Bundle], taken: Sequence[Chunk]) -> dict[Bundle, str]:
    """The bundles that must stay whole for the others' chunks in `taken` to pass the trial."""

    def fault(some: Sequence[Bundle]) -> str | None:
        return trial.fault(choose.removed([c for c in taken if c.bundle in some]))

    return faults(list(bundles), fault)


def _take(
    goal: Goal, scores: Mapping[Bundle, Tensor], cost: Cost, protection: _Protection
) -> Sequence[Chunk]:
    ordered = choose.chunks(
        scores, scope=goal.scope, round_to=goal.round_to, max_sparsity=goal.max_sparsity
    )
    if not ordered:
        raise ModelError(f"prune_channels can prune none of the layers: {protection}")
    if goal.kind == "sparsity":
        taken = choose.by_sparsity(ordered, goal.value, scope=goal.scope)
    else:
        count = cost.macs if goal.kind == "macs" else cost.params
        reached = choose.by_cost(ordered, goal.value * count({}), count)
        if reached is None:
            least = math.ceil(1000 * count(choose.counts(ordered)) / count({})) / 1000
            raise SettingError(
                f"{goal} cannot be met: {least:.3f}x is the least with round_to={goal.round_to}, "
                f"max_sparsity={goal.max_sparsity:g} and these layers protected: {protection}"
            )
        taken = reached
    if not taken:
        raise SettingError(
            f"{goal} removes no channel with round_to={goal.round_to}; ask for more, or lower "
            "round_to"
        )
    return taken
