"""Everything that is measured on the saved files of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from modelzip.data.base import Splits, loader
from modelzip.errors import ExportError
from modelzip.measure.accuracy import Comparison, Predictions, accuracy, predict
from modelzip.measure.accuracy import compare as compare_predictions
from modelzip.measure.latency import LatencyRow, latency_table
from modelzip.measure.machine import sha256
from modelzip.measure.memory import peak_memory
from modelzip.measure.parity import Parity, parity
from modelzip.measure.size import file_size
from modelzip.report.record import BASELINE, COMPRESSED, Figures
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import load, missing

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
    """The compressed model against the original; `missing` says what could not be measured."""

    comparison: Comparison
    parity: Parity
    latency: tuple[LatencyRow, ...]
    missing: tuple[str, ...]


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
        memory=peak_memory(path, resized(example_inputs, 1)),
    )
    return Deployed(module=module, path=path, figures=figures, predictions=predictions)


def compare(
    baseline: Deployed,
    compressed: Deployed,
    splits: Splits,
    example_inputs: Any,
    *,
    batch_size: int,
    runtimes: Sequence[str],
    devices: Sequence[str],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seed: int,
) -> Findings:
    """Everything that takes both models, on the same samples and in the same minutes."""
    models = {BASELINE: baseline, COMPRESSED: compressed}
    latency, absent = measure_latency(
        {name: model.path for name, model in models.items()},
        {name: model.module for name, model in models.items()},
        example_inputs,
        runtimes=runtimes,
        devices=devices,
        batch_sizes=batch_sizes,
        threads=threads,
        seed=seed,
    )
    return Findings(
        comparison=compare_predictions(baseline.predictions, compressed.predictions),
        parity=measure_parity(compressed.module, compressed.path, splits, batch_size=batch_size),
        latency=latency,
        missing=absent,
    )


def measure_parity(module: nn.Module, path: Path, splits: Splits, *, batch_size: int) -> Parity:
    """The converted `module` against the file made from it, on up to 2,000 test samples."""
    batches = (inputs for inputs, _ in loader(splits.test, batch_size=batch_size))
    needed = -(-PARITY_SAMPLES // batch_size)
    return parity(module, load(path), islice(batches, needed))


def measure_latency(
    files: Mapping[str, Path],
    modules: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    runtimes: Sequence[str],
    devices: Sequence[str],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seed: int,
) -> tuple[tuple[LatencyRow, ...], tuple[str, ...]]:
    """Latency of the compressed model beside the baseline's, and a line for each thing missing.

    On CUDA, PyTorch eager and compiled, in float32 and float16, are measured as well.
    """
    rows: list[LatencyRow] = []
    lines: list[str] = []
    for device in devices:
        absent = []
        wanted = [*runtimes, *(_CUDA_RUNTIMES if device == "cuda" else ())]
        for runtime in dict.fromkeys(wanted):
            if why := missing(runtime, device):
                absent.append(why)
                continue
            halves = device == "cuda" and runtime in _CUDA_RUNTIMES
            for precision in _CUDA_PRECISIONS if halves else ("float32",):
                try:
                    rows += latency_table(
                        files if runtime == "onnxruntime" else modules,
                        example_inputs,
                        batch_sizes=batch_sizes,
                        threads=threads,
                        runtime=runtime,
                        devices=(device,),
                        precision=precision,
                        seed=seed,
                    )
                except ExportError as error:  # a module that this one runtime cannot run
                    absent.append(f"{runtime} on {device} in {precision}: {error}")
        # without any CUDA device each runtime says so; once is enough
        lines += absent if any(row.device == device for row in rows) else absent[:1]
    return tuple(rows), tuple(lines)
