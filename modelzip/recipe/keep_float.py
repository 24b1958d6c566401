"""`keep_float: auto`: which layers int8 makes slower here, or costs too much accuracy.

Files are timed, not guessed at. Layers that take longer in the int8 file than in the float one, by
the runtime's own profile, are put back to float a group of neighbours at a time, the most time to
gain first, and stay there if the whole file gets faster. Then, while the accuracy lost on the
validation data is more than allowed, layers that make up a good part of what quantizing all of
them costs are put back one by one.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from modelzip.core import surgery
from modelzip.core.prepare import Prepared
from modelzip.export.onnx import export_onnx
from modelzip.measure.profile import LayerTime, layer_times
from modelzip.measure.rounds import measure_latency
from modelzip.passes.int8 import Int8
from modelzip.quantization.sensitivity import sensitivity
from modelzip.recipe.schema import Measure
from modelzip.report.requirements import Requirement
from modelzip.report.text import percent
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import FILE_RUNTIMES, load

log = logging.getLogger(__name__)

DOMINATES = 0.1  # share of the divergence of all layers, each quantized alone
_TRIALS = 6  # of either kind, at most
_FASTER = 0.98  # ratio of two files; nearer to 1, the same file can differ from itself
_BUDGET_S = 2.0  # for timing one file against another at one batch size


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What the deployed model is to do: runtime, batch sizes, threads, accuracy to lose at most.

    `drop` is in percentage points.
    """

    runtime: str = "onnxruntime"
    batch_sizes: tuple[int, ...] = (1, 32)
    threads: int = 1
    drop: float = 1.0

    @classmethod
    def of(cls, measure: Measure, required: Sequence[Requirement]) -> Serving:
        """What those sections of a recipe say; without a requirement 1 point may be lost."""
        limits = {r.name: r.limit for r in required}
        files = [name for name in measure.runtimes if name in FILE_RUNTIMES]
        return cls(
            runtime=files[0] if files else cls.runtime,
            batch_sizes=measure.batch_sizes,
            threads=measure.threads[0],
            drop=limits.get("accuracy_drop", cls.drop),
        )


class Bench:
    """Makes int8 models of the float `model`, with some layers left in float."""

    def __init__(
        self,
        step: Int8,
        model: nn.Module,
        *,
        example_inputs: Any,
        calibration: Sequence[Any],
        serving: Serving,
        seed: int,
    ) -> None:
        self.step = step
        self.model = model
        self.example_inputs = example_inputs
        self.calibration = calibration
        self.serving = serving
        self.seed = seed

    def quantized(self, kept: dict[str, str]) -> Prepared:
        prepared = Prepared(surgery.clone(self.model), example_inputs=self.example_inputs)
        prepared.add(dataclasses.replace(self.step, keep_float=kept), calibration=self.calibration)
        return prepared

    def layers(self, kept: dict[str, str]) -> list[str]:
        """The layers that are quantized; those called several times are not for choosing."""
        prepared = self.quantized(kept)
        prepared.convert()
        there = dict(self.model.named_modules())
        rows = (row for report in prepared.reports for row in report.layers)
        return [row.name for row in rows if row.name in there]

    def file(self, model: nn.Module, path: Path) -> Path:
        return export_onnx(model, self.example_inputs, path)

    def times(self, path: Path) -> dict[int, list[LayerTime]]:
        threads = self.serving.threads
        return {
            size: layer_times(path, resized(self.example_inputs, size), threads=threads)
            for size in self.serving.batch_sizes
        }

    def is_faster(self, path: Path, than: Path) -> bool:
        """Beyond noise, twice, at one batch size or more, and slower at none."""
        return all(self._is_faster(path, than, seed=self.seed + turn) for turn in range(2))

    def _is_faster(self, path: Path, than: Path, *, seed: int) -> bool:
        threads = self.serving.threads
        sessions = {"than": load(than, threads=threads), "file": load(path, threads=threads)}
        found = []
        for size in self.serving.batch_sizes:
            inputs = resized(self.example_inputs, size)
            timed = measure_latency(sessions, inputs, budget_s=_BUDGET_S, seed=seed)
            found.append(timed["file"])
        faster = any(row.ratio < _FASTER and row.ratio_high < 1 for row in found)
        return faster and not any(row.ratio > 1 / _FASTER for row in found)


def settle(bench: Bench, *, accuracy: Callable[[nn.Module], float]) -> Int8:
    """The step with "auto" replaced by the layers to keep in float, and why.

    `accuracy` of a model is a fraction, on data that choices may be made by.
    """
    kept = slower(bench)
    kept |= costly(bench, kept, accuracy=accuracy)
    for name, reason in kept.items():
        log.info("  %s: %s", name, reason)
    return dataclasses.replace(bench.step, keep_float=kept or None)


def slower(bench: Bench) -> dict[str, str]:
    """Layers that are slower in int8 here, and without which the file is faster."""
    kept: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        float_file = bench.file(bench.model, folder / "float.onnx")
        best = bench.file(bench.quantized({}).convert(), folder / "int8.onnx")
        layers = bench.layers({})
        found = groups(bench.times(float_file), bench.times(best), layers)
        for number, group in enumerate(found[:_TRIALS]):
            wanted = kept | group
            if len(wanted) == len(layers):
                continue  # nothing would be left to quantize
            trial = bench.file(bench.quantized(wanted).convert(), folder / f"{number}.onnx")
            if bench.is_faster(trial, best):
                kept, best = wanted, trial
    return kept


def costly(
    bench: Bench, kept: dict[str, str], *, accuracy: Callable[[nn.Module], float]
) -> dict[str, str]:
    """Further layers to keep in float, because of the accuracy that they cost."""
    floor = accuracy(bench.model) - bench.serving.drop / 100
    now = accuracy(bench.quantized(kept).model)
    if now >= floor:
        return {}
    rows = sensitivity(bench.model, bench.calibration[:2], layers=bench.layers(kept))
    total = sum(row.kl for row in rows)
    found: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: -row.kl)[: min(_TRIALS, len(rows) - 1)]:
        if now >= floor or row.kl < DOMINATES * total:
            break
        share = row.kl / total
        reason = f"kept in float: {share:.0%} of the divergence that int8 causes"
        reached = accuracy(bench.quantized({**kept, **found, row.layer: reason}).model)
        if reached > now:
            gain = f"validation accuracy is {percent(reached)} with it, {percent(now)} without"
            found[row.layer] = f"{reason}; {gain}"
            now = reached
    return found


def groups(
    before: dict[int, list[LayerTime]], after: dict[int, list[LayerTime]], layers: list[str]
) -> list[dict[str, str]]:
    """Neighbouring layers that take longer `after`, with the reason, the most to gain first.

    A group by which less than 2 % of the time of the file can be gained at any batch size is
    left out: no timing of the whole file would show it.
    """
    gains: dict[str, float] = {}  # the most at any batch size, as a fraction of the file's time
    worst: dict[str, float] = {}
    for size, rows in after.items():
        there = {row.layer: row.time_ms for row in before[size]}
        total = sum(row.time_ms for row in rows)
        for row in rows:
            if row.layer in layers and row.layer in there:
                lost = (row.time_ms - there[row.layer]) / total
                gains[row.layer] = max(gains.get(row.layer, lost), lost)
                ratio = row.time_ms / max(there[row.layer], 1e-6)
                worst[row.layer] = max(worst.get(row.layer, 0.0), ratio)
    runs: list[list[str]] = [[]]
    for name, gain in gains.items():
        if gain > 0:
            runs[-1].append(name)
        elif runs[-1]:
            runs.append([])
    sums = [(sum(gains[name] for name in names), names) for names in runs]
    ordered = [names for gain, names in sorted(sums, reverse=True) if gain > 1 - _FASTER]
    return [
        {n: f"kept in float: {worst[n]:.1f}x slower in int8 on this machine" for n in group}
        for group in ordered
    ]
