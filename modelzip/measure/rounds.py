"""Timing several models side by side, in interleaved rounds."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelzip.core import checks
from modelzip.errors import SettingError
from modelzip.runtime.session import Session

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """`seconds` [rounds, models] of a run, by the models' names; a mean over `repeats` runs."""

    names: list[str]
    seconds: npt.NDArray[np.float64]
    repeats: list[int]
    seed: int

    def latency(self, name: str, baseline: str) -> Latency:
        times = self._of(name)
        ratio, low, high = self.ratio(name, baseline)
        return Latency(
            median_ms=float(np.median(times)) * 1e3,
            p95_ms=float(np.quantile(times, 0.95)) * 1e3,
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            rounds=len(times),
            repeats=self.repeats[self.names.index(name)],
        )

    def ratio(self, name: str, baseline: str) -> tuple[float, float, float]:
        """The ratio, and its interval."""
        ratios = self._of(name) / self._of(baseline)
        picks = np.random.default_rng(self.seed).integers(
            len(ratios), size=(_RESAMPLES, len(ratios))
        )
        low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
        return float(np.median(ratios)), float(low), float(high)

    def _of(self, name: str) -> npt.NDArray[np.float64]:
        return self.seconds[:, self.names.index(name)]


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
    found = time_rounds(
        {name: session.bind(inputs) for name, session in sessions.items()},
        rounds=rounds,
        budget_s=budget_s,
        min_timing_ms=min_timing_ms,
        seed=seed,
        clock=clock,
    )
    return {name: found.latency(name, found.names[0]) for name in found.names}


def time_rounds(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 40,
    budget_s: float = 4.0,
    min_timing_ms: float = 2.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Rounds:
    """Call each of `runs` once a round, in random order; settings as of `measure_latency`."""
    checks.integer("rounds", rounds, low=5)
    checks.positive("budget_s", budget_s)
    checks.positive("min_timing_ms", min_timing_ms)
    repeats = [_warm_up(run, min_timing_ms / 1e3, clock) for run in runs.values()]
    order = np.random.default_rng(seed)
    names = list(runs)
    seconds: list[list[float]] = []
    with _no_garbage_collection():
        start = clock()
        while len(seconds) < rounds and (len(seconds) < 5 or clock() - start < budget_s):
            row = [0.0] * len(names)
            for index in order.permutation(len(names)):
                row[index] = _time(runs[names[index]], repeats[index], clock)
            seconds.append(row)
    return Rounds(names=names, seconds=np.array(seconds), repeats=repeats, seed=seed)


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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
