"""Steps that leave something to be measured, settled by timing files."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from modelzip.core import checks, registry
from modelzip.core.base import Pass, PassReport
from modelzip.core.prepare import Prepared
from modelzip.core.running import as_batches
from modelzip.errors import SettingError
from modelzip.passes.int8 import Int8
from modelzip.passes.low_rank import LowRank
from modelzip.passes.prune_channels import PruneChannels
from modelzip.passes.rewind import Rewind
from modelzip.recipe import latency, low_rank
from modelzip.recipe.keep_float import Bench, settle
from modelzip.recipe.schema import settings, step_name
from modelzip.recipe.workshop import Step, Workshop, steps_to_come, validation_accuracy
from modelzip.report.record import decode, write
from modelzip.report.widths import LatencyFit
from modelzip.train.finetune import FineTune


def settled(
    step: Pass,
    following: Sequence[Step],
    prepared: Prepared,
    original: nn.Module,
    shop: Workshop,
    *,
    path: Path,
) -> tuple[Pass, LatencyFit | None]:
    """The step with what it leaves to measurement measured, and how that went.

    Args:
        following: the steps after it, whose passes are carried out in the files that are timed.
        path: where what was found is kept, as another measurement may find something else.
    """
    if untimed(step) is step and not isinstance(step, LowRank):
        return step, None
    if path.exists():
        return _read_settled(path)
    model = prepared.convert()
    fit = None
    if isinstance(step, Int8):
        bench = Bench(
            step,
            model,
            example_inputs=shop.example_inputs,
            calibration=shop.calibration,
            serving=shop.serving,
            seed=shop.seed,
        )
        found: Pass = settle(bench, accuracy=lambda model: validation_accuracy(model, shop))
    else:
        later = latency.Later(
            passes=[
                untimed(s)
                for index, s in enumerate(following)
                if isinstance(s, Pass) and not _target(s) and not awaits(s, following[:index])
            ],
            example_inputs=shop.example_inputs,
            calibration=as_batches(shop.calibration),
            training_steps=steps_to_come(following, shop),
            serving=shop.serving,
            seed=shop.seed,
        )
        if isinstance(step, LowRank):
            found = low_rank.settle(step, model, original=original, later=later)
        elif isinstance(step, PruneChannels):
            found, fit = latency.settle(step, model, original=original, later=later)
    entry = {"name": found.name, "settings": settings(found), "fit": fit}
    write(path, json.dumps(entry, default=dataclasses.asdict))
    return found, fit


def _read_settled(path: Path) -> tuple[Pass, LatencyFit | None]:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        fit = None if entry["fit"] is None else decode(LatencyFit, entry["fit"])
        return registry.build(entry["name"], entry["settings"]), fit
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SettingError(f"{path} is damaged ({error}); remove {path.parent}") from error


def check_latencies(steps: Sequence[Step]) -> None:
    """SettingError where a step would find its latency met by an earlier one."""
    timed = [(step_name(step), target) for step in steps if (target := _target(step))]
    for (_, before), (name, target) in itertools.pairwise(timed):
        if checks.ratio("latency", target) >= checks.ratio("latency", before):
            raise SettingError(
                f"{name}: latency={target} is met by the {before} of an earlier step, as both are "
                "of the original file's; let them fall, such as 0.8x, then 0.6x"
            )


def _target(step: Step) -> str | None:
    """The latency that a step is to meet, if any."""
    return step.latency if isinstance(step, (PruneChannels, LowRank)) else None


def untimed(step: Pass) -> Pass:
    """The step as if nothing had to be measured for it."""
    if isinstance(step, Int8) and step.keep_float == "auto":
        return dataclasses.replace(step, keep_float=None)
    if isinstance(step, PruneChannels) and step.latency is not None:
        return dataclasses.replace(
            step,
            macs=None,
            params=None,
            latency=None,
            blocks=False,
            scope="layer",
            sparsity=min(0.5, step.max_sparsity),
        )
    if isinstance(step, LowRank) and step.latency is not None:
        return dataclasses.replace(step, latency=None, energy=0.5)
    return step


def awaits(step: Pass, before: Sequence[Step]) -> bool:
    """Whether `step` reads a file that a fine-tuning `before` it will write."""
    saved = {s.save_to for s in before if isinstance(s, FineTune)}
    return isinstance(step, Rewind) and step.weights in saved


def unsettled(report: PassReport | None, step: Pass) -> PassReport:
    """The report of a rehearsal, None where `step` was left out, with what it leaves open."""
    if report is None:
        note = "goes back to weights that an earlier step saves, and was not rehearsed"
        return PassReport(name=step.name, settings=step.settings(), layers=(), notes=(note,))
    if untimed(step) is step or not isinstance(step, PruneChannels):
        return report
    note = "a run settles these widths by timing files; here layers lose half of their channels"
    return dataclasses.replace(report, notes=(*report.notes, note))
