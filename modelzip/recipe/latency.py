"""`prune_channels: {latency: 0.5x}`: widths chosen by the time they save on this machine.

Files are timed, not guessed at. Every bundle of channels is cut to each candidate width, and every
residual block left out, with all later passes carried out, as they will be deployed; those that
look alike are cut together and share the time saved. Of all cuts those are taken that save enough
at the least cost to the model's answers. The file with them is timed in turn, and where the sum of
the parts was wrong, more or fewer are taken.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from modelzip.core import surgery
from modelzip.core.base import Context, Pass
from modelzip.core.channels.blocks import inside
from modelzip.core.channels.choice import divergence, largest, left, split
from modelzip.core.channels.cuts import Candidate, Group, every, layers_of
from modelzip.core.channels.search import Search
from modelzip.core.channels.survey import Goal, Survey
from modelzip.core.prepare import Prepared
from modelzip.errors import SettingError
from modelzip.export.onnx import export_onnx
from modelzip.measure.rounds import time_rounds
from modelzip.passes.prune_channels import PruneChannels
from modelzip.recipe.keep_float import Serving
from modelzip.report.widths import LatencyFit, WidthRow
from modelzip.runtime.inputs import resized
from modelzip.runtime.session import load

log = logging.getLogger(__name__)

_ROUNDS = 30
_BUDGET_S = 60.0  # for the candidates at one batch size
_TURNS = 6  # files timed to meet the target
_STEP = 0.7  # of what a file was off by: the whole of it overshoots where goals pull apart
_NEAR = 0.97  # of the target: a file that takes less could have kept more


@dataclass(frozen=True, kw_only=True)
class Later:
    """What comes after a step: `passes`, what they work with, and what the file is to do."""

    passes: Sequence[Pass]
    example_inputs: Any
    calibration: Sequence[Any]
    training_steps: int | None
    serving: Serving
    seed: int


def settle(
    step: PruneChannels, model: nn.Module, *, original: nn.Module, later: Later
) -> tuple[PruneChannels, LatencyFit]:
    """The step with explicit `widths` in place of its latency, and how they were found.

    Raises:
        SettingError: the target is met without pruning, or by no cuts at all.
        ModelError, DataError: as of `PruneChannels.plan`.
    """
    context = Context(
        example_inputs=later.example_inputs, calibration=later.calibration, seed=later.seed
    )
    goal, there, found = step.search(model, context)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(step, model, later=later, folder=Path(scratch), original=original)
        return fit(bench, goal, there, found)


class Bench:
    """Cuts `model`, deploys it as a file in `folder`, and times that beside the original's."""

    def __init__(
        self,
        step: PruneChannels,
        model: nn.Module,
        *,
        later: Later,
        folder: Path,
        original: nn.Module,
    ) -> None:
        self.step, self.model, self.later, self.folder = step, model, later, folder
        self.files = 0
        self.original = export_onnx(original, later.example_inputs, folder / "original.onnx")
        self.dense = self.deployed(model)

    def settled(self, widths: Mapping[str, int]) -> PruneChannels:
        return dataclasses.replace(
            self.step,
            macs=None,
            params=None,
            latency=None,
            blocks=False,
            scope="global",
            widths=dict(widths),
        )

    def cut(self, widths: Mapping[str, int]) -> Path:
        """The file with `widths`, as it will be deployed."""
        return self.deployed(self.model, self.settled(widths))

    def deployed(self, model: nn.Module, *first: Pass) -> Path:
        later = self.later
        trial = Prepared(surgery.clone(model), example_inputs=later.example_inputs, seed=later.seed)
        for pass_ in (*first, *later.passes):
            few = later.calibration if pass_ in first else later.calibration[:1]
            trial.add(pass_, calibration=few, training_steps=later.training_steps)
        self.files += 1
        return export_onnx(
            trial.convert(), later.example_inputs, self.folder / f"{self.files}.onnx"
        )

    def ratios(self, files: Sequence[Path], *, seed: int = 0) -> npt.NDArray[np.float64]:
        """Times as fractions of the original's, (files, batch sizes)."""
        serving = self.later.serving
        columns = []
        for size in serving.batch_sizes:
            inputs = resized(self.later.example_inputs, size)
            runs = {
                str(path): load(path, runtime=serving.runtime, threads=serving.threads).bind(inputs)
                for path in (self.original, *files)
            }
            found = time_rounds(runs, rounds=_ROUNDS, budget_s=_BUDGET_S, seed=seed)
            columns.append([found.ratio(str(path), str(self.original))[0] for path in files])
        table: npt.NDArray[np.float64] = np.array(columns).T
        return table


def fit(bench: Bench, goal: Goal, there: Survey, found: Search) -> tuple[PruneChannels, LatencyFit]:
    """The cheapest of the cuts `found` with which the file takes the time that `goal` leaves.

    SettingError where it takes no more without any, or more with all of them.
    """
    target = goal.ratios["latency"]
    dense, saved = _savings(bench, there, found, target)

    def saves(cut: Candidate) -> list[float]:
        rest = left(goal, there.cost, *split([cut]))
        return [saved[cut.layer, cut.width], *(1 - each for each in rest.values())]

    aims = [target, *(ratio for kind, ratio in goal.ratios.items() if kind != "latency")]
    needed = [dense - target, *(1 - aim for aim in aims[1:])]
    best: tuple[float, list[Candidate]] | None = None
    least = float("inf")
    for turn in range(_TURNS):
        cuts = found.choose(saves, needed=needed)
        if cuts is None and best is not None:
            break
        everything = cuts is None  # more is predicted to be needed than there is: see
        cuts = largest(found.groups) if cuts is None else cuts
        measured = float(bench.ratios([bench.cut(layers_of(cuts))], seed=turn + 1).max())
        reached = [measured, *left(goal, there.cost, *split(cuts)).values()]
        log.info("  %d cuts: %s", len(cuts), ", ".join(f"{each:.3f}x" for each in reached))
        least = min(least, measured)
        if all(each <= aim + 1e-9 for each, aim in zip(reached, aims, strict=True)):
            if best is None or divergence(cuts) < divergence(best[1]):
                best = measured, cuts
            if any(each >= _NEAR * aim for each, aim in zip(reached, aims, strict=True)):
                break
        if everything:
            break
        middle = [target * (1 + _NEAR) / 2, *aims[1:]]
        needed = [
            n + _STEP * (each - aim) for n, each, aim in zip(needed, reached, middle, strict=True)
        ]
    if best is None:
        raise SettingError(
            f"{goal} cannot be met: {least:.3f}x is the least time that was measured, "
            f"{dense:.3f}x without pruning; set blocks: true, a higher max_sparsity, a lower "
            "round_to, or ask for less"
        )
    measured, cuts = best
    serving = bench.later.serving
    how = LatencyFit(
        target=target,
        dense=dense,
        predicted=dense - sum(saved[cut.layer, cut.width] for cut in cuts),
        measured=measured,
        runtime=serving.runtime,
        batch_sizes=serving.batch_sizes,
        threads=serving.threads,
        files=bench.files,
        rows=tuple(
            WidthRow(
                layer=cut.layer,
                of=cut.of,
                width=cut.width,
                kl=cut.cost.kl,
                agreement=cut.cost.agreement,
                saved=saved[cut.layer, cut.width],
            )
            for cut in cuts
        ),
    )
    log.info("  %s", how.text)
    return bench.settled(layers_of(cuts)), how


def _savings(
    bench: Bench, there: Survey, found: Search, target: float
) -> tuple[float, dict[tuple[str, int], float]]:
    """The time of the uncut file, and what each cut takes off, as fractions of the original's."""
    kinds = _alike(bench, there, found.groups)
    log.info("  timing %d kinds of cuts", len(kinds))
    files = [bench.cut(layers_of(cuts)) for cuts in kinds]
    ratios = bench.ratios([bench.dense, *files])
    dense = float(ratios[0].max())
    if dense <= target:
        raise SettingError(
            f"latency={target:g}x is met without pruning: the file takes {dense:.3f}x; ask for less"
        )
    return dense, {
        (cut.layer, cut.width): max(0.0, float((ratios[0] - row).mean()) / len(cuts))
        for cuts, row in zip(kinds, ratios[1:], strict=True)
        for cut in cuts
    }


def _alike(bench: Bench, there: Survey, groups: Sequence[Group]) -> list[list[Candidate]]:
    """Cuts of layers of the same shapes that run on inputs of the same sizes, together."""
    modules = dict(bench.model.named_modules())

    def kind(name: str) -> object:
        shapes = tuple(tuple(p.shape) for p in modules[name].parameters(recurse=False))
        return type(modules[name]).__name__, shapes, there.cost.layer_macs(name)

    found: dict[Any, list[Candidate]] = defaultdict(list)
    for cut in every(groups):
        if cut.chunk is not None:
            layers = [slot.layer for slot in cut.chunk.bundle.channels]
        else:
            layers = [name for name in modules if name == cut.layer or inside(name, cut.layer)]
        found[cut.width, tuple(kind(name) for name in layers)].append(cut)
    return list(found.values())
