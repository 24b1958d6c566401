"""Everything that is measured on the saved files of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelzip.archive.pack import pack
from modelzip.archive.unpack import unpack
from modelzip.data.base import Splits, loader
from modelzip.errors import ExportError, ModelzipError, OutputError
from modelzip.measure.accuracy import Comparison, Predictions, accuracy, predict
from modelzip.measure.accuracy import compare as compare_predictions
from modelzip.measure.classes import class_scores
from modelzip.measure.latency import LatencyRow, latency_table
from modelzip.measure.layers import compare_layers
from modelzip.measure.machine import describe, sha256
from modelzip.measure.memory import peak_memory
from modelzip.measure.parity import Parity, ParityRow, parities, parity
from modelzip.measure.promise import Promise, integer_promise
from modelzip.measure.semi_structured import time_semi_structured
from modelzip.measure.size import file_size
from modelzip.measure.sparsity import file_zeros
from modelzip.report.layers import without_rule
from modelzip.report.record import BASELINE, COMPRESSED, Figures
from modelzip.report.zeros import kernels_line, zeros_line
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import FILE_RUNTIMES, Serving, load, missing
from modelzip.runtime.session import precisions as known_precisions

PARITY_SAMPLES = 2000
_CUDA_RUNTIMES = ("torch", "torch.compile")
_CUDA_PRECISIONS = ("float32", "float16")


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployed:
    """A module, the file made from it, and what was measured on the file."""

    module: nn.Module
    path: Path
    figures: Figures
    predictions: Predictions


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The compressed model against the original; `missing` says what could not be measured.

    `zeros` says what the zeros of the compressed file are worth, where it has many.
    """

    comparison: Comparison
    parity: Parity
    latency: tuple[LatencyRow, ...]
    answers: tuple[ParityRow, ...]
    missing: tuple[str, ...]
    promise: Promise | None
    zeros: str = ""


def deployed(
    module: nn.Module, path: Path, splits: Splits, *, example_inputs: Any, batch_size: int
) -> Deployed:
    """Measure the file `path`, made from `module`, alone: onnxruntime, the whole test set."""
    size = file_size(path, example_inputs=example_inputs)
    predictions = predict(load(path), loader(splits.test, batch_size=batch_size))
    figures = Figures(
        file=path.name,
        sha256=sha256(path),
        size_bytes=size.size_bytes,
        parameters=size.parameters,
        nonzero=size.nonzero,
        bits=size.bits,
        macs=size.macs,
        uncounted=size.uncounted,
        accuracy=accuracy(predictions),
        classes=class_scores(predictions, splits.names),
        memory=peak_memory(path, resized(example_inputs, 1)),
    )
    return Deployed(module=module, path=path, figures=figures, predictions=predictions)


def archived(path: Path, archive: Path, *, codec: str) -> int:
    """Pack the file at `path`; the bytes of the archive, once it has unpacked to the same ones.

    OutputError if it does not.
    """
    packed = pack(path, archive, codec=codec)
    with tempfile.TemporaryDirectory() as scratch:
        again = unpack(archive, Path(scratch) / path.name)
        if sha256(again) != sha256(path):
            raise OutputError(f"{archive} does not unpack to the bytes of {path}")
    return packed.after


def compare(
    baseline: Deployed,
    compressed: Deployed,
    splits: Splits,
    example_inputs: Any,
    *,
    batch_size: int,
    runtimes: Sequence[str],
    precisions: Sequence[str],
    devices: Sequence[str],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seed: int,
) -> Findings:
    """Everything that takes both models, on the same samples and in the same minutes."""
    models = {BASELINE: baseline, COMPRESSED: compressed}
    wanted, absent = servings(runtimes, precisions, devices)
    failures: list[str] = []
    latency = latency_table(
        {name: model.path for name, model in models.items()},
        example_inputs,
        modules={name: model.module for name, model in models.items()},
        servings=wanted,
        batch_sizes=batch_sizes,
        threads=threads,
        seed=seed,
        failed=failures.append,
    )
    timed = {Serving(runtime=r.runtime, precision=r.precision, device=r.device) for r in latency}
    answers = [
        row
        for name, model in models.items()
        for row in measure_answers(
            name,
            model,
            (serving for serving in wanted if serving in timed),
            splits,
            batch_size=batch_size,
            failed=failures.append,
        )
    ]
    same = measure_parity(compressed.module, compressed.path, splits, batch_size=batch_size)
    zeros = _zeros(
        compressed,
        example_inputs,
        devices=devices,
        batch_size=max(batch_sizes),
        failed=failures.append,
    )
    promise = integer_promise(compressed.path, describe().isa)
    if promise is not None and same.identical < 1:
        promise = replace(promise, text=f"{promise.text}{_exceptions(compressed, example_inputs)}")
    return Findings(
        comparison=compare_predictions(baseline.predictions, compressed.predictions),
        parity=same,
        latency=tuple(latency),
        answers=tuple(answers),
        missing=(*absent, *dict.fromkeys(failures)),
        promise=promise,
        zeros=zeros,
    )


def _zeros(
    model: Deployed,
    example_inputs: Any,
    *,
    devices: Sequence[str],
    batch_size: int,
    failed: Callable[[str], object],
) -> str:
    """What the zeros of the file are worth; on CUDA, where there is one, timed."""
    lines = [zeros_line(file_zeros(model.path))]
    if "cuda" in devices and torch.cuda.is_available():
        try:
            timed = time_semi_structured(model.module, resized(example_inputs, batch_size))
        except ExportError as error:
            failed(str(error))
        else:
            lines += [kernels_line(timed)] if timed is not None else []
    return "; ".join(filter(None, lines))


def _exceptions(model: Deployed, example_inputs: Any) -> str:
    """The operators of the file that the promise leaves out, with the size of the gap."""
    try:
        found = compare_layers(model.module, model.path, [example_inputs])
    except ModelzipError as error:  # the run has its figures already
        return f"; its layers could not be compared: {error}"
    return f"; {without_rule(found)}" if found.uncovered else ""


def measure_parity(module: nn.Module, path: Path, splits: Splits, *, batch_size: int) -> Parity:
    """The converted `module` against the file made from it, on up to 2,000 test samples."""
    return parity(module, load(path), _inputs(splits, batch_size=batch_size))


def measure_answers(
    name: str,
    model: Deployed,
    served: Iterable[Serving],
    splits: Splits,
    *,
    batch_size: int,
    failed: Callable[[str], object],
) -> list[ParityRow]:
    """Parity and accuracy of a file in the runtimes of files but onnxruntime, on the CPU."""
    sessions = {
        serving: load(model.path, **vars(serving))
        for serving in served
        if serving.runtime in FILE_RUNTIMES[1:] and serving.device == "cpu"
    }
    if not sessions:
        return []
    found = parities(
        model.module,
        sessions,
        _inputs(splits, batch_size=batch_size),
        failed=lambda serving, error: failed(f"{serving}: {error}"),
    )
    rows = []
    for serving, one in found.items():
        predictions = predict(sessions[serving], loader(splits.test, batch_size=batch_size))
        rows.append(
            ParityRow(**vars(one), **vars(serving), name=name, accuracy=accuracy(predictions))
        )
    return rows


def servings(
    runtimes: Sequence[str], precisions: Sequence[str], devices: Sequence[str]
) -> tuple[list[Serving], list[str]]:
    """Every way to serve a model that is wanted and is here, and a line for each that is not here.

    onnxruntime, which computes in the types of the file, is listed once, and first. On CUDA,
    PyTorch eager and compiled, in float32 and float16, are listed as well.
    """
    found: list[Serving] = []
    lines: list[str] = []
    for device in devices:
        more = _CUDA_RUNTIMES if device == "cuda" else ()
        absent = []
        for runtime in sorted(
            dict.fromkeys([*runtimes, *more]), key=lambda name: name != "onnxruntime"
        ):
            halves = _CUDA_PRECISIONS if runtime in more else ()
            known = known_precisions(runtime)
            asked = [p for p in dict.fromkeys([*halves, *precisions]) if p in known] or known[:1]
            for precision in asked:
                if why := missing(runtime, device, precision=precision):
                    absent.append(why)
                else:
                    found.append(Serving(runtime=runtime, precision=precision, device=device))
        absent = list(dict.fromkeys(absent))
        # without any CUDA device each runtime says so; once is enough
        lines += absent if any(serving.device == device for serving in found) else absent[:1]
    return found, lines


def _inputs(splits: Splits, *, batch_size: int) -> Iterator[Any]:
    """Batches of about `PARITY_SAMPLES` test samples, without labels."""
    batches = (inputs for inputs, _ in loader(splits.test, batch_size=batch_size))
    return islice(batches, -(-PARITY_SAMPLES // batch_size))
