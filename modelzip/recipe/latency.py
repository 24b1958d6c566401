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

from modelzip.core import checks, surgery
from modelzip.core.base import Context, Pass
from modelzip.core.channels.blocks import inside
from modelzip.core.channels.candidates import Candidate, Group, Search, every, layers_of
from modelzip.core.channels.cost import Cost
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
_TURNS = 5  # files timed to meet the target
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
    target = checks.ratio("latency", step.latency)
    found = step.search(
        model,
        Context(
            example_inputs=later.example_inputs, calibration=later.calibration, seed=later.seed
        ),
    )
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(step, model, later=later, folder=Path(scratch), original=original)
        return fit(bench, found, target)


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
            self.step, latency=None, blocks=False, scope="global", widths=dict(widths)
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


def fit(bench: Bench, found: Search, target: float) -> tuple[PruneChannels, LatencyFit]:
    """The cheapest of the cuts `found` with which the file takes `target` of the original's time.

    SettingError where it takes no more without any, or more with all of them.
    """
    serving = bench.later.serving
    kinds = _alike(bench, found.groups)
    log.info("  timing %d kinds of cuts", len(kinds))
    files = [bench.cut(layers_of(cuts)) for cuts in kinds]
    ratios = bench.ratios([bench.dense, *files])
    dense = float(ratios[0].max())
    if dense <= target:
        raise SettingError(
            f"latency={target:g}x is met without pruning: the file takes {dense:.3f}x; ask for less"
        )
    saved = {
        (cut.layer, cut.width): max(0.0, float((ratios[0] - row).mean()) / len(cuts))
        for cuts, row in zip(kinds, ratios[1:], strict=True)
        for cut in cuts
    }
    needed = dense - target
    best: tuple[float, list[Candidate]] | None = None
    least = float("inf")
    for turn in range(_TURNS):
        cuts = found.choose(lambda cut: saved[cut.layer, cut.width], needed=needed)
        if cuts is None:
            break
        measured = float(bench.ratios([bench.cut(layers_of(cuts))], seed=turn + 1).max())
        log.info("  %d cuts: %.3fx", len(cuts), measured)
        least = min(least, measured)
        if measured <= target and (best is None or measured > best[0]):
            best = measured, cuts
        if _NEAR * target <= measured <= target:
            break
        needed += measured - target * (1 + _NEAR) / 2
    if best is None:
        raise SettingError(
            f"latency={target:g}x cannot be met: {least:.3f}x is the least that was measured, "
            f"{dense:.3f}x without pruning; set blocks: true, a higher max_sparsity, a lower "
            "round_to, or ask for more time"
        )
    measured, cuts = best
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


def _alike(bench: Bench, groups: Sequence[Group]) -> list[list[Candidate]]:
    """Cuts of layers of the same shapes that run on inputs of the same sizes, together."""
    cost = Cost(bench.model, bench.later.example_inputs)
    there = dict(bench.model.named_modules())

    def kind(name: str) -> object:
        shapes = tuple(tuple(p.shape) for p in there[name].parameters(recurse=False))
        return type(there[name]).__name__, shapes, cost.layer_macs(name)

    found: dict[Any, list[Candidate]] = defaultdict(list)
    for cut in every(groups):
        if cut.chunk is not None:
            layers = [slot.layer for slot in cut.chunk.bundle.channels]
        else:
            layers = [name for name in there if name == cut.layer or inside(name, cut.layer)]
        found[cut.width, tuple(kind(name) for name in layers)].append(cut)
    return list(found.values())
