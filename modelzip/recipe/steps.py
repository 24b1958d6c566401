"""Carrying out the steps of a recipe, so that a killed run can go on where it was."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from modelzip.core import surgery
from modelzip.core.base import Pass, PassReport
from modelzip.core.prepare import Prepared, load_prepared
from modelzip.errors import SettingError
from modelzip.recipe.schema import settings, step_name
from modelzip.recipe.settling import awaits, check_latencies, settled, unsettled, untimed
from modelzip.recipe.workshop import Step, Workshop, steps_to_come, validation_accuracy
from modelzip.report.record import StepRecord, decode, write
from modelzip.train.features import feature_names
from modelzip.train.finetune import FineTune, FineTuneReport, finetune
from modelzip.train.generator import check_teacher
from modelzip.train.synthetic import one_float_tensor

log = logging.getLogger(__name__)

_STATE = "steps.json"


def rehearsal(steps: Sequence[Step], model: nn.Module, shop: Workshop) -> tuple[PassReport, ...]:
    """What the passes would do to `model`, untrained: every error they have comes out here.

    One calibration batch is looked at, nothing is trained or written, and `model` is untouched.
    """
    check_latencies(steps)
    trainings = [step for step in steps if isinstance(step, FineTune)]
    for index, how in enumerate(trainings):
        feature_names(model, model, how.distill_features)
        if how.data == "generator" and index == 0:  # batch norms may be trained by then
            check_teacher(model, one_float_tensor(shop.example_inputs).shape[1:])
    trial = Prepared(surgery.clone(model), example_inputs=shop.example_inputs, seed=shop.seed)
    passes = [(index, step) for index, step in enumerate(steps) if isinstance(step, Pass)]
    tried = [(index, step) for index, step in passes if not awaits(step, steps[:index])]
    for index, step in tried:
        trial.add(
            untimed(step),
            calibration=shop.calibration[:1],
            training_steps=steps_to_come(steps[index:], shop),
        )
    trial.convert()
    found = dict(zip([index for index, _ in tried], trial.reports, strict=True))
    return tuple(unsettled(found.get(index), step) for index, step in passes)


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
            to_come = steps_to_come(steps[index:], shop)
            path = folder / f"step-{index + 1}.settled.json"
            rest = steps[index + 1 :]
            found, fit = settled(step, rest, prepared, original, shop, path=path)
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
