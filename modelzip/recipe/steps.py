"""Carrying out the steps of a recipe, so that a killed run can go on where it was."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelzip.core import checks, registry, surgery
from modelzip.core.base import Pass, PassReport
from modelzip.core.prepare import Prepared, load_prepared
from modelzip.core.running import as_batches, call, evaluating
from modelzip.data.base import Splits, loader
from modelzip.data.checking import calibration_batches, check
from modelzip.errors import SettingError
from modelzip.passes.int8 import Int8
from modelzip.passes.low_rank import LowRank
from modelzip.passes.prune_channels import PruneChannels
from modelzip.recipe import latency, low_rank
from modelzip.recipe.keep_float import Bench, Serving, settle
from modelzip.recipe.schema import settings, step_name
from modelzip.report.record import StepRecord, decode, write
from modelzip.report.widths import LatencyFit
from modelzip.train.finetune import FineTune, FineTuneReport, finetune, training_steps

log = logging.getLogger(__name__)

Step = Pass | FineTune
_STATE = "steps.json"
_EXAMPLES = 8  # samples that passes and the exporter run the model on


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What steps work with, besides a model."""

    splits: Splits
    batch_size: int
    calibration: Sequence[Any]
    example_inputs: Any
    seed: int
    serving: Serving = field(default_factory=Serving)


def open_workshop(
    splits: Splits,
    *,
    batch_size: int,
    calibration: int,
    seed: int,
    serving: Serving | None = None,
) -> Workshop:
    """The data ready for steps: checked, and `calibration` training samples picked by `seed`."""
    check(splits)

    def pick(samples: int, size: int) -> list[Any]:
        return calibration_batches(splits, samples=samples, batch_size=size, seed=seed)

    return Workshop(
        splits=splits,
        batch_size=batch_size,
        calibration=pick(calibration, batch_size),
        example_inputs=pick(_EXAMPLES, min(_EXAMPLES, batch_size))[0][0],
        seed=seed,
        serving=serving or Serving(),
    )


def rehearsal(steps: Sequence[Step], model: nn.Module, shop: Workshop) -> tuple[PassReport, ...]:
    """What the passes would do to `model`, untrained: every error they have comes out here.

    One calibration batch is looked at, nothing is trained or written, and `model` is untouched.
    """
    _check_latencies(steps)
    trial = Prepared(surgery.clone(model), example_inputs=shop.example_inputs, seed=shop.seed)
    for index, step in enumerate(steps):
        if isinstance(step, Pass):
            trial.add(
                _untimed(step),
                calibration=shop.calibration[:1],
                training_steps=_steps_to_come(steps[index:], shop),
            )
    trial.convert()
    passes = [step for step in steps if isinstance(step, Pass)]
    return tuple(
        report if _untimed(step) is step else _unsettled(report, step)
        for step, report in zip(passes, trial.reports, strict=True)
    )


def _unsettled(report: PassReport, step: Pass) -> PassReport:
    """The report of a rehearsal, with what it leaves open."""
    if not isinstance(step, PruneChannels):
        return report
    note = "a run settles these widths by timing files; here layers lose half of their channels"
    return dataclasses.replace(report, notes=(*report.notes, note))


def train_from_scratch(
    model: nn.Module, how: FineTune, shop: Workshop, folder: Path, *, progress: bool
) -> nn.Module:
    """The float model that a recipe starts from, trained; taken from the folder if it is there."""
    path = folder / "original.safetensors"
    if path.exists():
        trained = load_prepared(lambda: model, path)
    else:
        trained = Prepared(model, example_inputs=shop.example_inputs, seed=shop.seed)
        log.info("training the original model")
        _train(trained, how, shop, folder / "original.training", progress=progress)
        trained.save(path)
    return trained.model.eval()


def carry_out(
    steps: Sequence[Step], original: nn.Module, shop: Workshop, folder: Path, *, progress: bool
) -> tuple[Prepared, tuple[StepRecord, ...]]:
    """Apply `steps` in order to a copy of `original`, the teacher of those that distill.

    After each fine-tuning the folder holds a checkpoint; steps up to it are not repeated.
    """
    prepared, done = _continue(original, shop, folder)
    for index, step in enumerate(steps):
        if index < len(done):
            continue
        log.info("step %d of %d: %s", index + 1, len(steps), step_name(step))
        # each step has its own stream of random numbers, so that a resumed run draws the same
        torch.manual_seed(shop.seed + index)
        start = time.perf_counter()
        fit, trained = None, None
        if isinstance(step, Pass):
            to_come = _steps_to_come(steps[index:], shop)
            path = folder / f"step-{index + 1}.settled.json"
            found, fit = settled(steps[index:], prepared, original, shop, path)
            prepared.add(found, calibration=shop.calibration, training_steps=to_come)
        else:
            teacher = original if step.distill else None
            path = folder / f"step-{index + 1}.training"
            trained = _train(prepared, step, shop, path, teacher=teacher, progress=progress)
        seconds = time.perf_counter() - start
        done.append(
            StepRecord(
                name=step_name(step),
                settings=settings(step),
                seconds=seconds,
                accuracy=validation_accuracy(prepared.model, shop),
                fit=fit,
                curve=trained.curve if trained else (),
                kept=trained.kept.number if trained else None,
            )
        )
        log.info("  %.2f %% on validation after %.1f s", 100 * done[-1].accuracy, seconds)
        if isinstance(step, FineTune):  # a pass is quick to repeat
            _save(prepared, done, folder)
    return prepared, tuple(done)


def validation_accuracy(model: nn.Module, shop: Workshop) -> float:
    """Fraction of the validation slice whose largest output is its label, in PyTorch."""
    correct = total = 0
    with evaluating(model):
        for inputs, targets in loader(shop.splits.validation, batch_size=shop.batch_size):
            correct += int((call(model, inputs).argmax(dim=1) == targets).sum())
            total += len(targets)
    return correct / total


def settled(
    steps: Sequence[Step], prepared: Prepared, original: nn.Module, shop: Workshop, path: Path
) -> tuple[Pass, LatencyFit | None]:
    """The first of `steps` with what it leaves to measurement measured, and how that went.

    What was found is kept at `path`, as another measurement may find something else.
    """
    step = steps[0]
    assert isinstance(step, Pass)  # noqa: S101
    if _untimed(step) is step and not isinstance(step, LowRank):
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
            passes=[_untimed(s) for s in steps[1:] if isinstance(s, Pass) and not _target(s)],
            example_inputs=shop.example_inputs,
            calibration=as_batches(shop.calibration),
            training_steps=_steps_to_come(steps, shop),
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


def _check_latencies(steps: Sequence[Step]) -> None:
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


def _untimed(step: Pass) -> Pass:
    """The step as if nothing had to be measured for it."""
    if isinstance(step, Int8) and step.keep_float == "auto":
        return dataclasses.replace(step, keep_float=None)
    if isinstance(step, PruneChannels) and step.latency is not None:
        return dataclasses.replace(
            step, latency=None, blocks=False, scope="layer", sparsity=min(0.5, step.max_sparsity)
        )
    if isinstance(step, LowRank) and step.latency is not None:
        return dataclasses.replace(step, latency=None, energy=0.5)
    return step


def clean(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in [*folder.glob("*.training"), *folder.glob("step-*"), folder / _STATE]:
        path.unlink(missing_ok=True)


def _train(
    prepared: Prepared,
    how: FineTune,
    shop: Workshop,
    checkpoint: Path,
    *,
    teacher: nn.Module | None = None,
    progress: bool,
) -> FineTuneReport:
    return finetune(
        prepared,
        shop.splits,
        how,
        batch_size=shop.batch_size,
        teacher=teacher,
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        seed=shop.seed,
        progress=progress,
    )


def _steps_to_come(steps: Sequence[Step], shop: Workshop) -> int | None:
    """Optimizer steps of the next fine-tuning; None if there is none."""
    following = next((s for s in steps if isinstance(s, FineTune)), None)
    if following is None:
        return None
    return training_steps(following, shop.splits, batch_size=shop.batch_size)


def _continue(
    original: nn.Module, shop: Workshop, folder: Path
) -> tuple[Prepared, list[StepRecord]]:
    path = folder / _STATE
    if not path.exists():
        model = surgery.clone(original)
        return Prepared(model, example_inputs=shop.example_inputs, seed=shop.seed), []
    try:
        done = [decode(StepRecord, step) for step in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"{path} is damaged ({error}); remove {folder}") from error
    prepared = load_prepared(
        lambda: surgery.clone(original),
        folder / _checkpoint(len(done)),
        example_inputs=shop.example_inputs,
        seed=shop.seed,
    )
    log.info("resuming after step %d, %s", len(done), done[-1].name)
    return prepared, done


def _save(prepared: Prepared, done: list[StepRecord], folder: Path) -> None:
    # the list goes last: it names a checkpoint that is whole, whenever the run is killed
    prepared.save(folder / _checkpoint(len(done)))
    write(folder / _STATE, json.dumps([dataclasses.asdict(step) for step in done]))
    for path in folder.glob("step-*"):
        if path.name != _checkpoint(len(done)):
            path.unlink()


def _checkpoint(done: int) -> str:
    return f"step-{done}.safetensors"
