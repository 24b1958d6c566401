"""From a goal to ranks and factors, with nothing changed yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from modelzip.core.base import Batch
from modelzip.core.channels.cost import count_macs
from modelzip.core.factors import geometry, layers, ranks
from modelzip.core.factors.geometry import Geometry, Ranks
from modelzip.core.factors.layers import Factored
from modelzip.core.factors.moments import Moments, input_moments
from modelzip.core.factors.ranks import Option
from modelzip.errors import ModelError, SettingError
from modelzip.numerics.factors import weighed


@dataclass(frozen=True)
class Goal:
    """What to reach: `energy` of each layer, or a fraction `value` of all "macs" or "params".

    Or `given` ranks for each layer, where `kind` is "ranks".
    """

    kind: str
    value: float = 1.0
    given: Mapping[str, Ranks] | None = None
    round_to: int = 8


@dataclass(frozen=True, kw_only=True)
class FactorPlan:
    """Factors for layers by name, with their ranks and the energy kept, and why others stay whole.

    `macs` are multiply-accumulates of the model before and after, on the example inputs.
    """

    parts: Mapping[str, Factored]
    ranks: Mapping[str, Ranks]
    kept: Mapping[str, float]
    protected: Mapping[str, str]
    macs: tuple[int, int]


def make_plan(
    model: nn.Module,
    inputs: Any,
    goal: Goal,
    *,
    chosen: Mapping[str, nn.Module],
    protected: Mapping[str, str],
    batches: Sequence[Batch],
) -> FactorPlan:
    """The factors of those of `chosen` that are worth it; `model` stays as it is.

    The reasons of layers `protected` already are passed on. With `batches`, errors count as what
    they do to a layer's outputs.

    Raises:
        ModelError: every layer stays whole.
        SettingError: the target cannot be met, or a given rank does not fit its layer.
        DataError: a layer's input is not finite.
    """
    shapes = geometry.observe(model, chosen, inputs)
    reasons = dict(protected)
    reasons |= {name: "never called as a module" for name in chosen if name not in shapes}
    reasons |= layers.unreplaceable(model, {name: chosen[name] for name in shapes}, inputs)
    usable = {name: layer for name, layer in chosen.items() if name not in reasons}
    moments = input_moments(model, usable, batches)
    rows = {
        name: _options(name, layer, shapes[name], moments.get(name), goal)
        for name, layer in usable.items()
    }
    total = count_macs(model, inputs)
    picked = _pick(model, rows, total, goal)
    for name, option in picked.items():
        if not option.ranks:
            reasons[name] = _why_whole(name, rows[name], shapes[name], goal)
    wanted = {name: option.ranks for name, option in picked.items() if option.ranks}
    if not wanted:
        listed = "; ".join(f"{name or 'the model'}: {why}" for name, why in reasons.items())
        raise ModelError(f"low_rank leaves every layer whole: {listed}")
    parts, kept = {}, {}
    for name, rank in wanted.items():
        parts[name], kept[name] = layers.factorize(usable[name], rank, moments.get(name))
    saved = sum(shapes[name].macs(()) - picked[name].macs for name in wanted)
    return FactorPlan(
        parts=parts, ranks=wanted, kept=kept, protected=reasons, macs=(total, total - saved)
    )


def from_record(model: nn.Module, record: object) -> dict[str, Factored]:
    """Factors of zeros as `record` says, {layer: {"ranks": [...], ...}}, for a fresh `model`.

    SettingError for a record that no model of this kind can have left.
    """
    if not isinstance(record, dict) or not record:
        raise SettingError(f"the checkpoint's ranks are damaged: {record!r}")
    there = dict(model.named_modules())
    parts = {}
    for name, entry in record.items():
        layer = there.get(name)
        if not isinstance(layer, geometry.KINDS) or layers.whole_reason(layer):
            raise SettingError(
                f"the checkpoint has factors of {name!r}, which is no linear layer or convolution "
                "that can have any; give it the model it was made from"
            )
        rank = entry.get("ranks") if isinstance(entry, dict) else None
        if not isinstance(rank, list) or not all(type(r) is int and r > 0 for r in rank):
            raise SettingError(f"the checkpoint's ranks of {name!r} are damaged: {entry!r}")
        _check_fit(name, tuple(rank), geometry.rank_limits(layer))
        parts[name] = layers.build(layer, tuple(rank))
    return parts


def _check_fit(name: str, rank: Ranks, limits: Ranks) -> None:
    """SettingError if `rank` is not as long as `limits`, or above one of them."""
    if len(rank) != len(limits) or any(r > most for r, most in zip(rank, limits, strict=True)):
        kind = "one rank" if len(limits) == 1 else "two ranks, in and out"
        most = " and ".join(map(str, limits))
        raise SettingError(
            f"ranks: {name or 'the model'} takes {kind}, up to {most}, got {list(rank)}"
        )


def _options(
    name: str, layer: nn.Module, shape: Geometry, moments: Moments | None, goal: Goal
) -> list[Option]:
    """The layer as it is, and what else it can be; a given rank alone where there is one."""
    if goal.given is None:
        weight = geometry.stored(layer).detach().double()
        lower = layers.input_root(layer, moments)
        return ranks.options(weighed(weight, lower), shape, round_to=goal.round_to)
    rank = goal.given[name]
    _check_fit(name, rank, shape.limits)
    whole, option = (Option(r, 1.0, shape.macs(r), shape.weights(r)) for r in ((), rank))
    return [whole, option] if ranks.saves(option, whole) else [whole]


def _pick(
    model: nn.Module, rows: Mapping[str, Sequence[Option]], total: int, goal: Goal
) -> dict[str, Option]:
    if not rows or goal.kind not in ("macs", "params"):
        return {name: ranks.by_energy(row, goal.value) for name, row in rows.items()}
    if goal.kind == "params":
        total = sum(parameter.numel() for parameter in model.parameters())
    fixed = total - sum(row[0].cost(goal.kind) for row in rows.values())
    least = fixed + sum(min(o.cost(goal.kind) for o in row) for row in rows.values())
    if least > goal.value * total:
        raise SettingError(
            f"{goal.kind}={goal.value:g}x cannot be met by low rank: {least / total:.3f}x is the "
            f"least, with ranks of {goal.round_to} in {len(rows)} layers; lower round_to, or "
            "prune channels as well"
        )
    return ranks.by_budget(rows, kind=goal.kind, budget=goal.value * total - fixed)


def _why_whole(name: str, row: Sequence[Option], shape: Geometry, goal: Goal) -> str:
    if len(row) == 1:
        rank = goal.given[name] if goal.given else (goal.round_to,) * len(shape.limits)
        most = " and ".join(map(str, shape.limits))
        kind = "rank" if len(rank) == 1 else "ranks"
        return f"{kind} {' and '.join(map(str, rank))} of {most} would cost more than it saves"
    if goal.kind == "energy":
        return f"keeping {goal.value:g} of its energy would cost more than it saves"
    return f"{goal.kind}={goal.value:g}x is met with it whole"
