"""Latency of several models against the first, timed in interleaved rounds."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from modelzip.core import checks
from modelzip.errors import SettingError
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import Session, load

Clock = Callable[[], float]
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one run of a model, and its ratio to the baseline's, the first model timed.

    Attributes:
        median_ms, p95_ms: over rounds; a round is the mean of `repeats` runs in a row.
        ratio: median over rounds of this model's time by the baseline's in the same round;
            0.5 is half the time.
        ratio_low, ratio_high: its 95 % interval, by bootstrap over rounds.
        rounds: rounds timed, each of them timing every model once.
        repeats: runs in a row that make one timing.
    """

    median_ms: float
    p95_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    repeats: int

    @property
    def speedup(self) -> float:
        """How many times faster than the baseline."""
        return 1 / self.ratio


@dataclass(frozen=True, kw_only=True)
class LatencyRow(Latency):
    """The latency of model `name`, as it was served. One run takes a whole batch."""

    name: str
    runtime: str
    device: str
    precision: str
    batch_size: int
    threads: int


def measure_latency(
    sessions: Mapping[str, Session],
    inputs: Any,
    *,
    rounds: int = 40,
    budget_s: float = 4.0,
    min_timing_ms: float = 2.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Time every session on `inputs`, interleaved: each round times each once, in random order.

    Whatever slows the machine for a while slows all of them, so ratios within a round are
    comparable where times are not.

    Args:
        sessions: at least one, by name; the first is the baseline.
        inputs: one batch, as `Session.run` takes it.
        rounds: how many, at most.
        budget_s: time after which no further round starts, though at least 5 are made.
        min_timing_ms: a model is run in a row until a timing takes about this long.
        seed: of the order within rounds, and of the bootstrap.
        clock: seconds; another one is for tests.
    """
    if not sessions:
        raise SettingError("there are no sessions to time; give at least one")
    checks.integer("rounds", rounds, low=5)
    checks.positive("budget_s", budget_s)
    checks.positive("min_timing_ms", min_timing_ms)
    runs = {name: session.bind(inputs) for name, session in sessions.items()}
    repeats = {name: _warm_up(run, min_timing_ms / 1e3, clock) for name, run in runs.items()}
    order = np.random.default_rng(seed)
    names = list(runs)
    times: list[list[float]] = []
    with _no_garbage_collection():
        start = clock()
        while len(times) < rounds and (len(times) < 5 or clock() - start < budget_s):
            row = [0.0] * len(names)
            for index in order.permutation(len(names)):
                name = names[index]
                row[index] = _time(runs[name], repeats[name], clock)
            times.append(row)
    table = np.array(times)
    return {
        name: _latency(table[:, i], table[:, 0], repeats=repeats[name], seed=seed)
        for i, name in enumerate(names)
    }


def latency_table(
    sources: Mapping[str, Path | nn.Module],
    example_inputs: Any,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1,),
    runtime: str = "onnxruntime",
    devices: Sequence[str] = ("cpu",),
    precision: str = "float32",
    rounds: int = 40,
    budget_s: float = 4.0,
    seed: int = 0,
) -> list[LatencyRow]:
    """Latency of each source at each device, thread count and batch size, against the first.

    Args:
        sources: files for "onnxruntime", modules for "torch" and "torch.compile", by name; the
            first is the baseline.
        example_inputs: one batch of any size; it is repeated to each batch size.
        batch_sizes, threads, devices: what to go through; CUDA has one row for all `threads`.
        runtime, precision: as `modelzip.runtime.session.load` takes them.
        rounds, budget_s, seed: as `measure_latency` takes them, for each combination.

    Raises:
        ExportError: the runtime or a device is not here; ask `runtime.session.missing` first.
    """
    rows = []
    for device in devices:
        for count in threads if device == "cpu" else threads[:1]:
            for batch_size in batch_sizes:
                checks.integer("batch size", batch_size, low=1)
                inputs = resized(example_inputs, batch_size)
                if runtime == "torch.compile":  # past 8 shapes of a class it turns eager, silently
                    torch.compiler.reset()
                sessions = {
                    name: load(
                        source,
                        runtime=runtime,
                        device=device,
                        threads=count,
                        precision=precision,
                        example_inputs=inputs,
                    )
                    for name, source in sources.items()
                }
                timed = measure_latency(
                    sessions, inputs, rounds=rounds, budget_s=budget_s, seed=seed
                )
                rows += [
                    LatencyRow(
                        **vars(latency),
                        name=name,
                        runtime=runtime,
                        device=device,
                        precision=precision,
                        batch_size=batch_size,
                        threads=count,
                    )
                    for name, latency in timed.items()
                ]
    return rows


def _warm_up(run: Callable[[], object], min_timing_s: float, clock: Clock) -> int:
    """Run until times have settled, and say how many runs make a timing long enough."""
    run()  # the first one allocates
    fastest = min(_time(run, 1, clock) for _ in range(5))
    return max(1, min(1000, math.ceil(min_timing_s / max(fastest, 1e-7))))


def _time(run: Callable[[], object], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def _latency(
    times: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64], *, repeats: int, seed: int
) -> Latency:
    ratios = times / baseline
    picks = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return Latency(
        median_ms=float(np.median(times)) * 1e3,
        p95_ms=float(np.quantile(times, 0.95)) * 1e3,
        ratio=float(np.median(ratios)),
        ratio_low=float(low),
        ratio_high=float(high),
        rounds=len(times),
        repeats=repeats,
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
