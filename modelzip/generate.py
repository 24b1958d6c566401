"""The whole job for a generator, in order: from its recipe to a report and sheets of samples."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.base import Pass, PassReport
from modelzip.core.prepare import Prepared
from modelzip.data.base import Splits
from modelzip.data.checking import check
from modelzip.errors import SettingError
from modelzip.export.onnx import export_onnx
from modelzip.generation.companion import Companion, Given, made
from modelzip.generation.finetune import check_fits, finetune_generator, steps_of
from modelzip.generation.sheet import check_pillow, write_sheet
from modelzip.measure.latency import latency_table
from modelzip.measure.machine import describe, sha256
from modelzip.measure.parity import parity
from modelzip.measure.size import file_size
from modelzip.recipe import loader, sources
from modelzip.recipe.generation import GenerationRecipe, build_companion
from modelzip.recipe.schema import settings, step_name
from modelzip.report.folder import RunFolder
from modelzip.report.generation import (
    GenerationRecord,
    GeneratorFigures,
    GeneratorStep,
    judge,
    markdown,
    notes,
    parity_holds,
)
from modelzip.report.measurements import PARITY_SAMPLES, archived, servings
from modelzip.report.record import BASELINE, COMPRESSED, FILE
from modelzip.runtime.session import load
from modelzip.train.finetune import FineTune

log = logging.getLogger(__name__)

_EXAMPLES = 8  # codes that passes and the exporter run the model on
_BATCH = 500
SHEETS = {"samples of the original": "original.png", "of the compressed model": "compressed.png"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """A recipe's model, companion and data, built and known to fit."""

    recipe: GenerationRecipe
    model: nn.Module
    companion: Companion
    data: Splits

    def calibration(self, given: Given) -> list[tuple[Tensor, Tensor]]:
        """Batches of the first training codes, without more than the recipe asks for."""
        count = int(self.recipe.data.calibration)  # type: ignore[arg-type]  # by its validator
        pairs = given.train.codes[:count], given.train.images[:count]
        size = self.recipe.data.batch_size
        return list(zip(torch.split(pairs[0], size), torch.split(pairs[1], size), strict=True))


def generate(
    recipe: GenerationRecipe, *, out: str | Path, resume: bool = False, progress: bool = True
) -> GenerationRecord:
    """Carry out `recipe` and leave everything in the folder `out`; see docs/generation.md.

    Args:
        out: a folder that does not exist yet; until the run is whole it is named `out`.partial.
        resume: take up the trained networks of a run into this folder that was stopped.
        progress: show a bar while training.

    Raises:
        ModelzipError: what is wrong with the recipe, its model or its data, before anything is
            written; or what went wrong later.
    """
    start = time.perf_counter()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("a generator trains in one process; run without accelerate launch")
    check_pillow()
    parts = _build(recipe)
    _rehearse(parts)
    with RunFolder(out, recipe=loader.dump(recipe), resume=resume) as folder:
        trained = _train(parts, folder.path, progress=progress)
        given = parts.companion.given(parts.data)
        original = parts.model
        baseline = _deploy(recipe, original, given, folder / "baseline.onnx")
        prepared, done = _carry_out(parts, original, given)
        module = prepared.convert()
        compressed = _deploy(recipe, module, given, folder / "model.onnx")
        prepared.save(folder / "checkpoint.safetensors")
        for figures, name in zip((baseline, compressed), SHEETS.values(), strict=True):
            write_sheet(_images(folder / figures.file, given.samples), folder / name)
        wanted, absent = servings(
            recipe.measure.runtimes, recipe.measure.precisions, recipe.measure.devices
        )
        failures: list[str] = []
        latency = latency_table(
            {BASELINE: folder / baseline.file, COMPRESSED: folder / compressed.file},
            given.test.codes[:_EXAMPLES],
            modules={BASELINE: original, COMPRESSED: module},
            servings=wanted,
            batch_sizes=recipe.measure.batch_sizes,
            threads=recipe.measure.threads,
            seed=recipe.seed,
            failed=failures.append,
        )
        some = torch.split(given.test.codes[:PARITY_SAMPLES], _BATCH)
        same = parity(module, load(folder / compressed.file), some)
        outcomes = judge(recipe.require, baseline, compressed, latency)
        record = GenerationRecord(
            name=Path(out).name,
            passed=all(o.met for o in outcomes) and parity_holds(same),
            notes=(*notes(outcomes, same), *(n for r in prepared.reports for n in r.notes)),
            seed=recipe.seed,
            seconds=time.perf_counter() - start,
            training_seconds=trained,
            machine=describe(),
            n=len(given.test.codes),
            steps=tuple(done),
            baseline=baseline,
            compressed=compressed,
            parity=same,
            latency=tuple(latency),
            missing=(*absent, *failures),
            requirements=outcomes,
            hashes=folder.hashes(),
        )
        folder.finish({"report.md": markdown(record, SHEETS), FILE: record.to_json()})
    return record


def rehearse(recipe: GenerationRecipe) -> tuple[PassReport, ...]:
    """What each pass would do to the model of `recipe`; nothing is trained or written."""
    return _rehearse(_build(recipe))


def _build(recipe: GenerationRecipe) -> _Parts:
    model = sources.build_model(recipe)
    torch.manual_seed(recipe.seed + 1)  # not the model's own first weights
    companion = build_companion(recipe)
    data = sources.build_data(recipe)
    check(data)
    return _Parts(recipe=recipe, model=model, companion=companion, data=data)


def _rehearse(parts: _Parts) -> tuple[PassReport, ...]:
    recipe = parts.recipe
    few = dataclasses.replace(parts.data, train=parts.data.validation, test=parts.data.validation)
    parts.companion.check(parts.model)
    given = parts.companion.given(few)
    prepared = _prepared(parts, parts.model, given)
    for index, step in enumerate(recipe.steps):
        if isinstance(step, Pass):
            _add(prepared, step, parts, given, index)
        else:
            check_fits(step, given)
    prepared.convert()
    return prepared.reports


def _train(parts: _Parts, folder: Path, *, progress: bool) -> float:
    """Train both networks, or take them from the folder; the seconds that it took."""
    networks = {"original": parts.model, "companion": parts.companion}
    paths = {name: folder / f"{name}.safetensors" for name in networks}
    start = time.perf_counter()
    if all(path.exists() for path in paths.values()):
        for name, network in networks.items():
            network.load_state_dict(load_file(paths[name]))
            network.eval()
        return 0.0
    log.info("training the model with its companion")
    parts.companion.train_with(
        parts.model,
        parts.data,
        batch_size=parts.recipe.data.batch_size,
        seed=parts.recipe.seed,
        progress=progress,
    )
    for name, network in networks.items():
        partial = paths[name].with_suffix(".partial")  # a killed run leaves no half of a file
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, partial)
        partial.replace(paths[name])
    return time.perf_counter() - start


def _carry_out(
    parts: _Parts, original: nn.Module, given: Given
) -> tuple[Prepared, list[GeneratorStep]]:
    recipe, done = parts.recipe, []
    prepared = _prepared(parts, original, given)
    for index, step in enumerate(recipe.steps):
        log.info("step %d of %d: %s", index + 1, len(recipe.steps), step_name(step))
        torch.manual_seed(recipe.seed + index)
        start, loss = time.perf_counter(), None
        if isinstance(step, Pass):
            _add(prepared, step, parts, given, index)
        else:
            loss = finetune_generator(
                prepared,
                given,
                step,
                batch_size=recipe.data.batch_size,
                seed=recipe.seed + index,
                teacher=original if step.distill else None,
            )
        seconds = time.perf_counter() - start
        images = made(prepared.model, given.validation.codes)
        scores = dict(given.scores(images, given.validation.images))
        log.info("  %s on validation after %.1f s", _text(scores), seconds)
        done.append(
            GeneratorStep(
                name=step_name(step),
                settings=settings(step),
                seconds=seconds,
                scores=scores,
                loss=loss,
            )
        )
    return prepared, done


def _prepared(parts: _Parts, model: nn.Module, given: Given) -> Prepared:
    copy = surgery.clone(model).eval()
    return Prepared(copy, example_inputs=given.train.codes[:_EXAMPLES], seed=parts.recipe.seed)


def _add(prepared: Prepared, step: Pass, parts: _Parts, given: Given, index: int) -> None:
    recipe = parts.recipe
    following = next((s for s in recipe.steps[index:] if isinstance(s, FineTune)), None)
    size = recipe.data.batch_size
    prepared.add(
        step,
        calibration=parts.calibration(given),
        training_steps=None if following is None else steps_of(following, given, batch_size=size),
    )


def _deploy(
    recipe: GenerationRecipe, model: nn.Module, given: Given, path: Path
) -> GeneratorFigures:
    example = given.train.codes[:_EXAMPLES]
    export_onnx(model, example, path, opset=recipe.export.opset)
    size = file_size(path, example_inputs=example)
    scores = dict(given.scores(_images(path, given.test.codes), given.test.images))
    packed = None
    if recipe.archive is not None:
        packed = archived(path, path.with_suffix(".mzip"), codec=recipe.archive.codec)
    log.info("%s: %s on test, %d bytes", path.name, _text(scores), size.size_bytes)
    return GeneratorFigures(
        file=path.name,
        sha256=sha256(path),
        size_bytes=size.size_bytes,
        parameters=size.parameters,
        nonzero=size.nonzero,
        macs=size.macs,
        scores=scores,
        archive_bytes=packed,
    )


def _images(path: Path, codes: Tensor) -> Tensor:
    """What the file makes of `codes`, in onnxruntime."""
    session = load(path)
    return torch.cat(
        [torch.from_numpy(session.run(part)[0]) for part in torch.split(codes, _BATCH)]
    )


def _text(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in scores.items())
