"""Latency of several models, served in several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelzip.core import checks
from modelzip.errors import ExportError
from modelzip.measure.rounds import Latency, Rounds, time_rounds
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import FILE_RUNTIMES, Serving, load


@dataclass(frozen=True, kw_only=True)
class LatencyRow(Latency):
    """The latency of model `name`, as it was served. One run takes a whole batch.

    Attributes:
        ratio: to the first model, served in the same way.
        overall: to the first model, served in the first way: one scale for all that is timed on
            the same batch, threads and device. `overall_low`, `overall_high`: as of `ratio`.
    """

    name: str
    runtime: str
    device: str
    precision: str
    batch_size: int
    threads: int
    overall: float
    overall_low: float
    overall_high: float


def latency_table(
    files: Mapping[str, Path],
    example_inputs: Any,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    servings: Sequence[Serving] = (Serving(),),
    batch_sizes: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1,),
    rounds: int = 40,
    budget_s: float = 4.0,
    seed: int = 0,
    failed: Callable[[str], object] | None = None,
) -> list[LatencyRow]:
    """Latency of each model in each serving, device by device, at each thread count and batch size.

    All that shares those three is timed in the same rounds.

    Args:
        files: what the runtimes of files serve, by name; the first is the baseline.
        example_inputs: one batch of any size; it is repeated to each batch size.
        modules: the same models for "torch" and "torch.compile", where they are timed.
        servings: ways to serve them; the first on each device is the one `overall` refers to.
        batch_sizes, threads: what to go through; CUDA has one row for all `threads`.
        rounds, seed: as `measure_latency` takes them, for each combination.
        budget_s: as `measure_latency` takes it, times the number of servings.
        failed: called with one line for a serving in which one of the models does not load, which
            is then left out; without it that is an error.

    Raises:
        ExportError: a runtime or a device is not here; ask `runtime.session.missing` first.
    """
    rows = []
    for device in dict.fromkeys(serving.device for serving in servings):
        wanted = [serving for serving in servings if serving.device == device]
        for count in threads if device == "cpu" else threads[:1]:
            for batch_size in batch_sizes:
                checks.integer("batch size", batch_size, low=1)
                inputs = resized(example_inputs, batch_size)
                runs = _load_all(files, modules or {}, inputs, wanted, count, failed)
                if not runs:
                    continue
                found = time_rounds(
                    {_label(name, serving): run for (name, serving), run in runs.items()},
                    rounds=rounds,
                    budget_s=budget_s * len({serving for _, serving in runs}),
                    seed=seed,
                )
                rows += _rows(found, list(runs), batch_size=batch_size, threads=count)
    return rows


def _load_all(
    files: Mapping[str, Path],
    modules: Mapping[str, nn.Module],
    inputs: Any,
    servings: Sequence[Serving],
    threads: int,
    failed: Callable[[str], object] | None,
) -> dict[tuple[str, Serving], Callable[[], object]]:
    """What runs each model once in each serving, those of one serving together or not at all."""
    runs: dict[tuple[str, Serving], Callable[[], object]] = {}
    if any(serving.runtime == "torch.compile" for serving in servings):
        torch.compiler.reset()  # past 8 shapes of a class it turns eager, silently
    for serving in servings:
        sources: Mapping[str, Path | nn.Module] = (
            files if serving.runtime in FILE_RUNTIMES else modules
        )
        try:
            runs |= {
                (name, serving): load(
                    source, threads=threads, example_inputs=inputs, **vars(serving)
                ).bind(inputs)
                for name, source in sources.items()
            }
        except ExportError as error:
            if failed is None:
                raise
            failed(f"{serving}: {error}")
    return runs


def _label(name: str, serving: Serving) -> str:
    return f"{name}, {serving}"


def _rows(
    found: Rounds, timed: Sequence[tuple[str, Serving]], *, batch_size: int, threads: int
) -> list[LatencyRow]:
    rows = []
    for name, serving in timed:
        first = next(other for other, where in timed if where == serving)
        latency = found.latency(_label(name, serving), _label(first, serving))
        overall, low, high = found.ratio(_label(name, serving), _label(*timed[0]))
        rows.append(
            LatencyRow(
                **vars(latency),
                **vars(serving),
                name=name,
                batch_size=batch_size,
                threads=threads,
                overall=overall,
                overall_low=low,
                overall_high=high,
            )
        )
    return rows
