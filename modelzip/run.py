"""The whole job, in order: from a recipe, or from a model and steps, to a report."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from modelzip.core import surgery
from modelzip.core.base import Pass, PassReport
from modelzip.core.wrapped import refuse_wrapped
from modelzip.data.base import Splits
from modelzip.data.checking import check
from modelzip.data.store import Store, check_store
from modelzip.export.onnx import export_onnx
from modelzip.measure.accuracy import compare as compare_predictions
from modelzip.measure.machine import describe
from modelzip.measure.robustness import RobustnessRow, Served, check_fits, measure_robustness
from modelzip.recipe import loader, sources, storing
from modelzip.recipe.keep_float import Serving
from modelzip.recipe.schema import Plan, Recipe, parse_calibration, parse_store, refuse_both
from modelzip.recipe.steps import carry_out, clean, rehearsal, train_from_scratch
from modelzip.recipe.workshop import Workshop, open_workshop
from modelzip.report.folder import RunFolder, partial
from modelzip.report.measurements import Deployed, archived, compare, deployed
from modelzip.report.record import (
    FILE,
    Record,
    SensitivityRow,
    StoredData,
    merge_layers,
    read,
    write,
)
from modelzip.report.render import markdown
from modelzip.report.sensitivity import rank
from modelzip.report.text import kilobytes
from modelzip.report.verdict import judge
from modelzip.train.finetune import FineTune
from modelzip.train.processes import Processes
from modelzip.train.synthetic import Synthetic
from modelzip.zoo import refuse_nan

log = logging.getLogger(__name__)


def run(recipe: Recipe, *, out: str | Path, resume: bool = False, progress: bool = True) -> Record:
    """Carry out `recipe` and leave everything in the folder `out`; see docs/report.md.

    Args:
        recipe: as `modelzip.recipe.loader.load` reads it.
        out: a folder that does not exist yet; until the run is whole it is named `out`.partial.
        resume: go on where a run into this folder was stopped, to the same result.
        progress: show a bar while training.

    Raises:
        ModelzipError: what is wrong with the recipe, its model or its data, before anything is
            written; or what went wrong later.
    """
    model = sources.build_model(recipe)
    shop = workshop(recipe, model)
    return _carry_out(
        recipe,
        model,
        shop,
        train=recipe.model.train,
        store=recipe.data.store,
        out=out,
        resume=resume,
        progress=progress,
    )


def compress(
    model: nn.Module,
    steps: Sequence[Pass | FineTune],
    *,
    data: Splits,
    out: str | Path,
    batch_size: int = 128,
    calibration: int | str | Mapping[str, Any] = 512,
    store: Mapping[str, Any] | None = None,
    seed: int = 0,
    export: Mapping[str, Any] | None = None,
    archive: Mapping[str, Any] | None = None,
    measure: Mapping[str, Any] | None = None,
    robustness: Mapping[str, Any] | None = None,
    require: Mapping[str, str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Record:
    """What `run` does, for a model and data in hand; `model` itself is untouched.

    Args:
        steps: passes and `FineTune` steps, in order.
        data: the splits; `calibration` samples of the training data are shown to the passes, or
            with "synthetic" (see a recipe's `data`) those made from the model, and only the test
            data are read.
        store: settings of a recipe's `store`: train and calibrate on data that are kept so.
        export, archive, measure, robustness, require: those sections of a recipe.
        out, resume, progress: as for `run`.

    Raises:
        ModelzipError: as `run` does.

    >>> import modelzip as mz
    >>> mz.compress(nn.Linear(4, 2), [], data=None, out="runs/none")
    Traceback (most recent call last):
    modelzip.errors.SettingError: steps is empty; give at least one
    """
    plan = loader.validate(
        Plan,
        {
            "seed": seed,
            "steps": list(steps),
            "export": dict(export or {}),
            "archive": None if archive is None else dict(archive),
            "measure": dict(measure or {}),
            "robustness": None if robustness is None else dict(robustness),
            "require": dict(require or {}),
        },
    )
    refuse_wrapped(model)
    refuse_nan(model)
    looked_at, kept = parse_calibration(calibration), parse_store(store)
    refuse_both(kept, looked_at)
    shop = open_workshop(
        data,
        batch_size=batch_size,
        calibration=looked_at,
        model=model,
        seed=seed,
        serving=Serving.of(plan.measure, plan.require),
    )
    if kept is not None:
        check_store(kept, shop.splits.train)
    copy = surgery.clone(model)
    return _carry_out(
        plan, copy, shop, train=None, store=kept, out=out, resume=resume, progress=progress
    )


def rehearse(recipe: Recipe) -> tuple[PassReport, ...]:
    """What each pass would do to the model of `recipe`; nothing is trained or written."""
    model = sources.build_model(recipe)
    made = recipe.data.calibration
    if isinstance(made, Synthetic):  # nothing depends on how good they are
        made = dataclasses.replace(made, steps=1)
    shop = workshop(recipe, model, calibration=made)
    check(shop.splits, model=model)
    if recipe.robustness is not None:
        check_fits(recipe.robustness, shop.splits.test)
    train = recipe.model.train
    return rehearsal([*([train] if train else []), *recipe.steps], model, shop)


def workshop(
    recipe: Recipe, model: nn.Module, *, calibration: int | Synthetic | None = None
) -> Workshop:
    """The data of `recipe`, ready for its steps; `calibration` in place of its own."""
    sources.refuse_generator(recipe)
    refuse_nan(model)
    shop = open_workshop(
        sources.build_data(recipe),
        batch_size=recipe.data.batch_size,
        calibration=calibration or recipe.data.calibration,
        model=model,
        seed=recipe.seed,
        serving=Serving.of(recipe.measure, recipe.require),
    )
    if recipe.data.store is not None:
        check_store(recipe.data.store, shop.splits.train)
    return shop


def _carry_out(
    plan: Plan,
    model: nn.Module,
    shop: Workshop,
    *,
    train: FineTune | None,
    out: str | Path,
    store: Store | None,
    resume: bool,
    progress: bool,
) -> Record:
    start = time.perf_counter()
    check(shop.splits, model=model)
    rehearsal([*([train] if train else []), *plan.steps], model, shop)
    if plan.robustness is not None:
        check_fits(plan.robustness, shop.splits.test)
    others = _processes()
    if others is not None and not others.main:
        return _train_along(
            plan, model, shop, others, train=train, store=store, out=Path(out), resume=resume
        )
    with RunFolder(out, recipe=loader.dump(plan), resume=resume) as folder:
        if others is not None:
            others.wait()  # until each has what it resumes from
        for name, text in shop.splits.files.items():
            write(folder / name, text)
        shop, stored, beside = _stocked(
            plan, store, model, shop, folder, others, train=train, progress=progress
        )
        if train is not None:
            model = train_from_scratch(model, train, shop, folder.path, progress=progress)
        baseline = _deploy(plan, model, shop, folder / "baseline.onnx")
        prepared, done = carry_out(plan.steps, model, shop, folder.path, progress=progress)
        compressed = _deploy(plan, prepared.convert(), shop, folder / "model.onnx")
        if plan.archive is not None:
            compressed = _archive(compressed, plan.archive.codec, folder / "model.mzip")
        prepared.save(folder / "checkpoint.safetensors")
        clean(folder.path)
        storing.clean(folder.path)
        log.info("measuring parity and latency")
        findings = compare(
            baseline,
            compressed,
            shop.splits,
            shop.example_inputs,
            batch_size=shop.batch_size,
            seed=plan.seed,
            **plan.measure.model_dump(exclude={"sensitivity"}),
        )
        robustness, unmeasured = _robustness(plan, baseline, compressed, shop)
        judged = judge(plan.require, baseline.figures, compressed.figures, findings)
        record = Record(
            name=Path(out).name,
            passed=judged.passed,
            notes=(
                *judged.notes,
                *shop.notes,
                *(n for report in prepared.reports for n in report.notes),
            ),
            seed=plan.seed,
            seconds=time.perf_counter() - start,
            machine=describe(),
            steps=done,
            baseline=baseline.figures,
            compressed=compressed.figures,
            comparison=findings.comparison,
            parity=findings.parity,
            latency=findings.latency,
            answers=findings.answers,
            missing=(*findings.missing, *unmeasured),
            promise=findings.promise.text if findings.promise else "",
            zeros=findings.zeros,
            layers=merge_layers(prepared.reports),
            protected={report.name: dict(report.protected) for report in prepared.reports},
            sensitivity=(
                _sensitivity(model, prepared.reports, shop, compressed.path)
                if plan.measure.sensitivity
                else ()
            ),
            robustness=robustness,
            data=_compared(stored, beside, compressed),
            requirements=judged.outcomes,
            hashes=folder.hashes(),
        )
        folder.finish({"report.md": markdown(record), FILE: record.to_json()})
    if others is not None:
        others.wait()  # until each may read the report
    return record


def _stocked(
    plan: Plan,
    store: Store | None,
    model: nn.Module,
    shop: Workshop,
    folder: RunFolder,
    others: Processes | None,
    *,
    train: FineTune | None,
    progress: bool,
) -> tuple[Workshop, StoredData | None, Deployed | None]:
    """`shop` with its data as `store` says, what that took, and what the original data make."""
    if store is None:
        return shop, None, None
    found, stored = storing.stocked(shop, store, model, folder.path, progress=progress)
    if others is not None:
        others.wait()  # until it is there to be opened
    if not store.compare:
        return found, stored, None
    module = storing.on_original(
        plan.steps, model, shop, folder.path, train=train, stored=found, progress=progress
    )
    return found, stored, _deploy(plan, module, shop, folder / storing.ORIGINAL / "model.onnx")


def _archive(found: Deployed, codec: str, path: Path) -> Deployed:
    """Pack the file, and note the archive's bytes."""
    size_bytes = archived(found.path, path, codec=codec)
    log.info("%s: %s", path.name, kilobytes(size_bytes))
    figures = dataclasses.replace(found.figures, archive_bytes=size_bytes)
    return dataclasses.replace(found, figures=figures)


def _compared(
    stored: StoredData | None, beside: Deployed | None, compressed: Deployed
) -> StoredData | None:
    """What was stored, with what that did to the model, where it was made of the original too."""
    if stored is None or beside is None:
        return stored
    return dataclasses.replace(
        stored,
        original=beside.figures.accuracy,
        comparison=compare_predictions(beside.predictions, compressed.predictions),
    )


def _robustness(
    plan: Plan, baseline: Deployed, compressed: Deployed, shop: Workshop
) -> tuple[tuple[RobustnessRow, ...], list[str]]:
    """Both files under the conditions of the recipe, and a line for each that failed."""
    if plan.robustness is None:
        return (), []
    log.info("measuring robustness")
    failures: list[str] = []
    rows = measure_robustness(
        plan.robustness,
        Served(baseline.module, baseline.path),
        Served(compressed.module, compressed.path),
        shop.splits.test,
        classes=shop.splits.classes,
        batch_size=shop.batch_size,
        seed=plan.seed,
        failed=failures.append,
    )
    return rows, failures


def _sensitivity(
    model: nn.Module, reports: Sequence[PassReport], shop: Workshop, path: Path
) -> tuple[SensitivityRow, ...]:
    """What each layer costs at the bits it got; at 8 bits where nothing was quantized."""
    there = dict(model.named_modules())
    rows = [row for row in merge_layers(reports) if row.name in there and 2 <= row.bits <= 8]
    bits = {row.name: round(row.bits) for row in rows}
    log.info("quantizing each layer alone")
    return rank(model, path, shop.calibration, bits=bits or 8, example_inputs=shop.example_inputs)


def _processes() -> Processes | None:
    """The processes that `accelerate launch` started; None if this is the only one."""
    return Processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def _train_along(
    plan: Plan,
    model: nn.Module,
    shop: Workshop,
    others: Processes,
    *,
    train: FineTune | None,
    store: Store | None,
    out: Path,
    resume: bool,
) -> Record:
    """What a process other than the first does: the training steps, in a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if resume and partial(out).is_dir():
            shutil.copytree(partial(out), folder, dirs_exist_ok=True)
        others.wait()
        if store is not None:
            others.wait()  # until it is there to be opened
            original, shop = shop, storing.opened(shop, store, partial(out))
            if store.compare:
                storing.on_original(
                    plan.steps, model, original, folder, train=train, stored=shop, progress=False
                )
        if train is not None:
            model = train_from_scratch(model, train, shop, folder, progress=False)
        carry_out(plan.steps, model, shop, folder, progress=False)
    others.wait()
    return read(out)


def _deploy(plan: Plan, model: nn.Module, shop: Workshop, path: Path) -> Deployed:
    export_onnx(model, shop.example_inputs, path, opset=plan.export.opset)
    found = deployed(
        model, path, shop.splits, example_inputs=shop.example_inputs, batch_size=shop.batch_size
    )
    figures = found.figures
    log.info(
        "%s: %.2f %% on test, %s",
        path.name,
        100 * figures.accuracy.top1,
        kilobytes(figures.size_bytes),
    )
    return found
