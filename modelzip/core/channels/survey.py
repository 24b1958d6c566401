"""What of a model can be pruned, and what stays as it is and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.channels import choose
from modelzip.core.channels.blocks import find_blocks, inside
from modelzip.core.channels.bundles import Bundle, bundles_in, follow
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.cost import Cost
from modelzip.core.channels.counts import attributes_after, because, with_counts
from modelzip.core.channels.resize import LAYERS
from modelzip.core.channels.scores import score
from modelzip.core.channels.verify import Trial, faults


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much goes: the fraction `sparsity` of channels; or what leaves no more than `ratios` of
    "macs", "params" and "latency"; or to `widths` by layer, 0 for a block that goes whole.
    """

    sparsity: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    scope: str
    round_to: int
    max_sparsity: float
    blocks: bool = False

    def __str__(self) -> str:
        if self.sparsity is not None:
            return f"sparsity={self.sparsity:g}"
        return " and ".join(f"{name}={ratio:g}x" for name, ratio in self.ratios.items())


class Protection:
    """Why layers stay as wide as they are."""

    def __init__(self, chosen: Mapping[str, nn.Module], reasons: Mapping[str, str]) -> None:
        self._chosen = chosen
        self._reasons = dict(reasons)

    def add(self, found: Sequence[Bundle], reason: str) -> None:
        for bundle in found:
            for slot in bundle.channels:
                if slot.side == "out" and slot.layer in self._chosen:
                    self._reasons.setdefault(slot.layer, reason)

    def reasons(self, narrowed: set[str], *, dropped: Sequence[str] = ()) -> dict[str, str]:
        return {
            name: self._reasons[name]
            for name in self._chosen
            if name in self._reasons and name not in narrowed
            if not any(inside(name, block) for block in dropped)
        }

    def __str__(self, limit: int = 4) -> str:
        items = [f"{name!r} {reason}" for name, reason in self.reasons(set()).items()]
        more = f"; and {len(items) - limit} more" if len(items) > limit else ""
        return "; ".join(items[:limit]) + more if items else "none"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What of a model can be pruned, how its units rank, and what it costs.

    Attributes:
        scores: of the units of each bundle; higher matters more.
        blocks: residual blocks that can be left out.
        cost: multiply-accumulates and parameters at any widths.
        protection: why other layers stay as they are.
    """

    scores: dict[Bundle, Tensor]
    blocks: list[str]
    cost: Cost
    protection: Protection


def survey(
    model: nn.Module,
    inputs: Any,
    goal: Goal,
    *,
    chosen: Mapping[str, nn.Module],
    importance: str,
    normalize: str,
    calibration: Sequence[Batch] = (),
    seed: int = 0,
    proven: bool = True,
) -> Survey:
    """The bundles of the layers `chosen` that can shrink without harm; `model` stays as it is.

    Args:
        proven: run the model with half of all of them cut; without it some may yet do harm.

    Raises:
        ModelError: the model does not run or cannot be followed.
        DataError: the importance needs labels, and a calibration batch has none.
    """
    seen = follow(model, inputs)
    found, reasons = bundles_in(seen, model, chosen=chosen)
    protection = Protection(chosen, reasons)
    found = _prunable(model, inputs, goal, found, protection, proven=proven)
    scores = score(
        model, found, method=importance, normalize=normalize, calibration=calibration, seed=seed
    )
    lacks = "BatchNorm scale" if importance == "bn_scale" else f"score by {importance!r}"
    protection.add([b for b in found if b not in scores], f"has no {lacks} to rank by")
    blocks = []
    if goal.blocks or 0 in goal.widths.values():
        # a block goes only where all layers in it may
        layers = [n for n, m in model.named_modules() if isinstance(m, LAYERS) and n not in chosen]
        blocks = [b for b in find_blocks(model, inputs) if not any(inside(n, b) for n in layers)]
    cost = Cost(model, seen.macs, scores)
    return Survey(scores=scores, blocks=blocks, cost=cost, protection=protection)


def _prunable(
    model: nn.Module,
    inputs: Any,
    goal: Goal,
    found: list[Bundle],
    protection: Protection,
    *,
    proven: bool,
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
    trial = Trial(model, inputs, training=False)
    probes, fixed = with_counts(model, inputs, trial, probes)
    harmed = broken(trial, probes) if proven else {}
    for bundle, reason in (fixed | harmed).items():
        protection.add([bundle], reason)
    return [probe.bundle for probe in probes if probe.bundle not in harmed]


def broken(trial: Trial, taken: Sequence[Chunk]) -> dict[Bundle, str]:
    """The bundles that must stay whole for the others' chunks in `taken` to pass the trial."""

    def fault(some: Sequence[Bundle]) -> str | None:
        chunks = [c for c in taken if c.bundle in some]
        return trial.fault(choose.removed(chunks), attributes_after(chunks))

    found = faults(list(dict.fromkeys(chunk.bundle for chunk in taken)), fault)
    return {bundle: because(bundle, problem) for bundle, problem in found.items()}
