"""`low_rank` in a recipe: ranks that are faster on this machine, or no factors at all.

The factored model is deployed as it will be, with all later passes, and its layers are timed in the
runtime's own profile beside those of the model without factors. Layers that take longer are left
whole, and a budget is then met by the others. `latency` is met by trying budgets of
multiply-accumulates until the file's time is near it.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from modelzip.core import checks, surgery
from modelzip.core.base import Pass
from modelzip.core.prepare import Prepared
from modelzip.errors import ModelError, SettingError
from modelzip.export.onnx import export_onnx
from modelzip.measure.profile import LayerTime, layer_times
from modelzip.measure.rounds import Latency, measure_latency
from modelzip.passes.low_rank import LowRank
from modelzip.recipe.latency import Later
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import load

log = logging.getLogger(__name__)

Times = Mapping[int, Sequence[LayerTime]]  # by batch size

_SLOWER = 1.05  # ratio of a layer's times; nearer to 1, the same layer can differ from itself
_TURNS = 6  # budgets tried for a latency
_NEAR = 0.96  # of a latency: a file that takes less could have kept more
_BUDGET_S = 2.0  # for timing one file against another at one batch size


class Trial(NamedTuple):
    """A step with explicit ranks, its file, and the layers that are slower than before, and why."""

    step: LowRank
    file: Path
    slow: Mapping[str, str]


def settle(step: LowRank, model: nn.Module, *, original: nn.Module, later: Later) -> LowRank:
    """The step with explicit `ranks` of layers that are faster factored, and why others are not.

    Raises:
        ModelError: every layer stays whole, or the file is slower though its layers are not.
        SettingError: the target cannot be met with the layers that are left.
    """
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(model, original=original, later=later, folder=Path(scratch))
        found = _meet_latency(bench, step) if step.latency is not None else _meet(bench, step)
        timed = bench.time(found.file, bench.whole)
        if timed.ratio_low > 1:  # a busy machine can make it seem so, once
            timed = bench.time(found.file, bench.whole, seed=1)
    if timed.ratio_low > 1:
        raise ModelError(
            f"low_rank makes the file {timed.ratio:.2f}x slower on this machine, though none of "
            "its layers is; leave it out, or prune channels"
        )
    for name, reason in (found.step.keep or {}).items():
        log.info("  %s: %s", name or "the model", reason)
    log.info("  %d layers factored, %.3fx the time", len(found.step.ranks or {}), timed.ratio)
    return found.step


class Bench:
    """Factors `model`, deploys it as a file in `folder`, and times that."""

    def __init__(
        self, model: nn.Module, *, original: nn.Module, later: Later, folder: Path
    ) -> None:
        self.model, self.later, self.folder = model, later, folder
        self.files = 0
        self.original = export_onnx(original, later.example_inputs, folder / "original.onnx")
        self.whole = self._deployed()[1]

    def trial(self, step: LowRank) -> Trial:
        """What `step` comes to: ranks, file, and layers slower than whole."""
        prepared, file = self._deployed(step)
        layers = prepared.attached[0].context.record["layers"]
        ranks = {name: entry["ranks"] for name, entry in layers.items()}
        explicit = dataclasses.replace(step, ranks=ranks, energy=None, macs=None, params=None)
        slow = self._slow(file, list(layers))
        return Trial(explicit, file, self._slow(file, list(slow)) if slow else slow)

    def time(self, file: Path, than: Path, *, seed: int = 0) -> Latency:
        """The time of `file` beside that of `than`, at the batch size of the largest ratio."""
        serving = self.later.serving
        sessions = {
            name: load(path, runtime=serving.runtime, threads=serving.threads)
            for name, path in (("than", than), ("file", file))
        }
        found = []
        for size in serving.batch_sizes:
            inputs = resized(self.later.example_inputs, size)
            timed = measure_latency(sessions, inputs, budget_s=_BUDGET_S, seed=seed)
            found.append(timed["file"])
        return max(found, key=lambda timed: timed.ratio)

    def _deployed(self, *first: Pass) -> tuple[Prepared, Path]:
        later = self.later
        made = Prepared(
            surgery.clone(self.model), example_inputs=later.example_inputs, seed=later.seed
        )
        for pass_ in (*first, *later.passes):
            few = later.calibration if pass_ in first else later.calibration[:1]
            made.add(pass_, calibration=few, training_steps=later.training_steps)
        self.files += 1
        path = self.folder / f"{self.files}.onnx"
        return made, export_onnx(made.convert(), later.example_inputs, path)

    def _slow(self, file: Path, layers: Sequence[str]) -> dict[str, str]:
        return slower(self._times(self.whole), self._times(file), layers)

    def _times(self, path: Path) -> Times:
        serving = self.later.serving
        return {
            size: layer_times(
                path, resized(self.later.example_inputs, size), threads=serving.threads
            )
            for size in serving.batch_sizes
        }


def slower(before: Times, after: Times, layers: Sequence[str]) -> dict[str, str]:
    """Those of `layers` whose factors together take longer at some batch size, and the ratio."""
    worst: dict[str, float] = {}
    for size, rows in after.items():
        whole = {row.layer: row.time_ms for row in before[size]}
        for name in layers:
            time_ms = sum(row.time_ms for row in rows if row.layer.startswith(f"{name}."))
            if name in whole and time_ms:
                worst[name] = max(worst.get(name, 0.0), time_ms / max(whole[name], 1e-6))
    return {
        name: f"{ratio:.2f}x slower factored on this machine"
        for name, ratio in worst.items()
        if ratio > _SLOWER
    }


def _meet(bench: Bench, step: LowRank) -> Trial:
    """`step` with the layers left whole that are slower factored, until none is."""
    keep = dict(step.keep or {})
    while True:  # until nothing is slow: with every layer left whole there is an error
        try:
            found = bench.trial(dataclasses.replace(step, keep=keep))
        except SettingError as error:
            slow = "; ".join(f"{name}: {why}" for name, why in keep.items())
            raise SettingError(f"{error}. Left whole: {slow}" if slow else str(error)) from error
        if not found.slow:
            return found
        keep |= found.slow
        step = _without(step, found)


def _without(step: LowRank, found: Trial) -> LowRank:
    """`step` with its given ranks, if it has them, named layer by layer and less the slow ones."""
    if step.ranks is None:
        return step
    left = {n: r for n, r in (found.step.ranks or {}).items() if n not in found.slow}
    if not left:
        raise ModelError(
            "low_rank leaves every layer whole: "
            + "; ".join(f"{name}: {why}" for name, why in found.slow.items())
        )
    return dataclasses.replace(step, ranks=left)


def _meet_latency(bench: Bench, step: LowRank) -> Trial:
    """The budget of multiply-accumulates, by bisection, whose file takes nearly the latency."""
    target = checks.ratio("latency", step.latency)
    whole = bench.time(bench.whole, bench.original).ratio
    if whole <= target:
        raise SettingError(
            f"latency={target:g}x is met without low_rank: the file takes {whole:.3f}x; ask for "
            "less"
        )
    best: tuple[float, Trial] | None = None
    low, high, least = 0.0, 1.0, whole
    for turn in range(_TURNS):
        budget = target / whole if turn == 0 else (low + high) / 2
        try:
            found = _faster_alone(bench, dataclasses.replace(step, latency=None, macs=f"{budget}x"))
        except SettingError:  # fewer than the least ranks leave
            low = budget
            continue
        ratio = bench.time(found.file, bench.original, seed=turn + 1).ratio
        log.info("  %.2fx the multiply-accumulates: %.3fx the time", budget, ratio)
        least = min(least, ratio)
        if ratio > target:
            high = budget
            continue
        low = budget
        if best is None or ratio > best[0]:
            best = ratio, found
        if ratio >= _NEAR * target:
            break
    if best is None:
        raise SettingError(
            f"latency={target:g}x cannot be met by low_rank: {least:.3f}x is the least that was "
            f"measured, {whole:.3f}x without it; ask for more time, or prune channels as well"
        )
    return best[1]


def _faster_alone(bench: Bench, step: LowRank) -> Trial:
    """The ranks of `step`, with the layers that are slower so left whole and no others changed."""
    found = bench.trial(step)
    if not found.slow:
        return found
    keep = {**(step.keep or {}), **found.slow}
    explicit = _without(found.step, found)
    return bench.trial(dataclasses.replace(explicit, keep=keep))
