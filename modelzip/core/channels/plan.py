"""Planning which channels go, with every plan tried on copies of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.channels import choose
from modelzip.core.channels.attributes import Attributes
from modelzip.core.channels.blocks import drop, inside
from modelzip.core.channels.choice import taker
from modelzip.core.channels.counts import attributes_after
from modelzip.core.channels.resize import PRUNABLE, Slot
from modelzip.core.channels.survey import Goal, broken, survey
from modelzip.core.channels.verify import Trial, kept_channels
from modelzip.errors import ModelzipError


@dataclass(frozen=True, kw_only=True)
class ChannelPlan:
    """What pruning would do to a model.

    Attributes:
        kept: the channels that stay on each side of each layer touched.
        attributes: what integer attributes of modules become with them, such as a number of heads.
        dropped: residual blocks that go whole.
        channels: output channels before and after, of each layer to be narrowed; those of all
            heads of attention.
        macs: multiply-accumulates before and after, for one row of the example inputs.
        params: parameters before and after.
        protected: layers that were chosen and stay as wide as they are, and why.
    """

    kept: Mapping[Slot, list[int]]
    attributes: Attributes
    dropped: tuple[str, ...]
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
    normalize: str = "mean",
    calibration: Sequence[Batch] = (),
    seed: int = 0,
) -> ChannelPlan:
    """The plan for `goal` over the output channels of the layers `chosen`; `model` stays as it is.

    The model pruned by the plan has been run, and equals the model with those channels masked.

    Raises:
        ModelError: the model does not run or cannot be followed, or every layer is protected.
        SettingError: the goal cannot be met, or rounding leaves nothing to remove.
        DataError: the importance needs labels, and a calibration batch has none.
    """
    how = {
        "chosen": chosen,
        "importance": importance,
        "normalize": normalize,
        "calibration": calibration,
        "seed": seed,
    }
    if not goal.widths and goal.scope != "sensitivity":
        # the trial of the plan is proof enough, but if there is none: errors tell what is possible
        with contextlib.suppress(ModelzipError):
            return _plan(model, inputs, goal, how, proven=False)
    return _plan(model, inputs, goal, how, proven=True)


def _plan(
    model: nn.Module, inputs: Any, goal: Goal, how: dict[str, Any], *, proven: bool
) -> ChannelPlan:
    there = survey(model, inputs, goal, **how, proven=proven)
    take = taker(model, goal, there, how["calibration"])
    while True:
        taken, dropped = take()
        harmed = broken(_trial(model, inputs, dropped), taken)
        if not harmed:
            break
        for bundle, reason in harmed.items():
            there.protection.add([bundle], reason)
            del there.scores[bundle]
    counts = choose.counts(taken)
    kept = {
        slot: index
        for slot, index in kept_channels(model, choose.removed(taken)).items()
        if not any(inside(slot.layer, block) for block in dropped)
    }
    cost = there.cost
    return ChannelPlan(
        kept=kept,
        attributes={
            name: values
            for name, values in attributes_after(taken).items()
            if not any(name == block or inside(name, block) for block in dropped)
        },
        dropped=tuple(dropped),
        channels={
            slot.layer: (len(index) + counts[slot], len(index))
            for slot, index in kept.items()
            if slot.side == "out" and isinstance(model.get_submodule(slot.layer), PRUNABLE)
        },
        macs=(cost.macs({}), cost.macs(counts, dropped=dropped)),
        params=(cost.params({}), cost.params(counts, dropped=dropped)),
        protected=there.protection.reasons(
            {slot.layer for slot in kept if slot.side == "out"}, dropped=dropped
        ),
    )


def _trial(model: nn.Module, inputs: Any, dropped: Sequence[str]) -> Trial:
    if dropped:
        model = surgery.clone(model)
        drop(model, dropped)
    return Trial(model, inputs)
