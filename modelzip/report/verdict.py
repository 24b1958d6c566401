"""Pass or fail, and what a reader of a report must not miss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelzip.measure.classes import f1
from modelzip.measure.latency import LatencyRow
from modelzip.measure.parity import Parity
from modelzip.report import requirements
from modelzip.report.fastest import fastest, situation, where
from modelzip.report.measurements import Findings
from modelzip.report.record import COMPRESSED, Figures
from modelzip.report.requirements import Outcome, Requirement, ratio, show
from modelzip.runtime.session import FILE_RUNTIMES

if TYPE_CHECKING:
    from modelzip.report.generation import GeneratorFigures

PARITY_TOLERANCE = 0.001  # share of samples on which file and module may disagree
_OTHER_AGREEMENT = 0.99  # of runtimes that sum and round in their own order, seen at 8 bits
_SLOWER = 1.05  # below it the same file timed twice can look slower


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a run passed, each requirement, and what must stand in the first lines."""

    passed: bool
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]


def judge(
    required: Sequence[Requirement], baseline: Figures, compressed: Figures, found: Findings
) -> Judgement:
    """A run passes if it meets every requirement and its file computes what its module does."""
    measured = _measured(baseline, compressed, found)
    outcomes = tuple(requirements.judge(r, measured[r.name]) for r in required)
    return Judgement(
        passed=all(o.met for o in outcomes) and parity_holds(found.parity),
        outcomes=outcomes,
        notes=notes(outcomes, found),
    )


def parity_holds(parity: Parity) -> bool:
    """Whether file and module agree on all but 0.1 % of the samples, or all but one of few."""
    disagreeing = round(parity.n * (1 - parity.agreement))
    return disagreeing <= max(1, PARITY_TOLERANCE * parity.n)


def notes(judged: Sequence[Outcome], found: Findings) -> tuple[str, ...]:
    """What must stand in the first lines: missed requirements, lost answers, lost speed."""
    lines = [f"{o.name}: {o.measured}, required {o.required}" for o in judged if not o.met]
    return (*lines, *_answers(found), *_speed(found.latency))


def _answers(found: Findings) -> list[str]:
    lines, parity = [], found.parity
    if not parity_holds(parity):
        agreement, least = 100 * parity.agreement, 100 * (1 - PARITY_TOLERANCE)
        lines.append(
            f"parity: the file agrees with the converted module on {show(agreement, '%')} of "
            f"{parity.n} samples; at least {show(least, '%')} is expected"
        )
    for row in found.answers:
        if row.name == COMPRESSED and row.agreement < _OTHER_AGREEMENT:
            lines.append(
                f"{where(row)} on {row.device} answers as the converted module does on only "
                f"{show(100 * row.agreement, '%')} of {row.n} samples; accuracy there "
                f"{show(100 * row.accuracy.top1, '%')}"
            )
    if found.promise is not None and not found.promise.kept:
        lines.append(found.promise.text)
    return lines


def _speed(latency: Sequence[LatencyRow]) -> list[str]:
    lines = [
        f"slower than the original: {show(row.ratio, 'x')} its time in {where(row)}, "
        f"{situation(row)}"
        for row in latency
        # modules in PyTorch are shown, but not what is deployed
        if row.name == COMPRESSED and row.runtime in FILE_RUNTIMES
        if row.ratio > _SLOWER and row.ratio_low > 1
    ]
    for best in fastest(latency):
        if best.is_original:
            lines.append(
                f"the original in {where(best.original)} is faster than the compressed model "
                f"anywhere, {situation(best.original)}: {show(best.original.overall, 'x')} against "
                f"{show(best.compressed.overall, 'x')} the time of the original in "
                f"{where(best.reference)}"
            )
    return lines


def _worst(rows: Sequence[LatencyRow], ratios: Sequence[float]) -> dict[str, float]:
    return {
        "x": max(ratios, default=math.nan),
        "ms": max((row.median_ms for row in rows), default=math.nan),
    }


def _bytes(compressed: float, baseline: float) -> dict[str, float]:
    return {**ratio(compressed, baseline), "B": compressed}


def _measured(
    baseline: Figures, compressed: Figures, found: Findings
) -> dict[str, Mapping[str, float]]:
    """Each figure that can be required, in each of its units."""
    best = [group.compressed for group in fastest(found.latency)]
    return {
        "accuracy": {"%": 100 * compressed.accuracy.top1},
        "accuracy_drop": {"pp": found.comparison.drop},
        "agreement": {"%": 100 * found.comparison.agreement},
        "best_latency": _worst(best, [row.overall for row in best]),
        "f1": {} if (score := f1(compressed.classes)) is None else {"%": 100 * score},
        "score": {},  # of generators alone
        **of_files(baseline, compressed, found.latency),
    }


def of_files(
    baseline: Figures | GeneratorFigures,
    compressed: Figures | GeneratorFigures,
    latency: Sequence[LatencyRow],
) -> dict[str, Mapping[str, float]]:
    """What can be required of any model's file, each in its units."""
    served = [r for r in latency if r.name == COMPRESSED and r.runtime == "onnxruntime"]
    return {
        "archive": _bytes(compressed.archive_bytes or math.nan, baseline.size_bytes),
        "latency": _worst(served, [row.ratio for row in served]),
        "macs": ratio(compressed.macs, baseline.macs),
        "parameters": ratio(compressed.parameters, baseline.parameters),
        "size": _bytes(compressed.size_bytes, baseline.size_bytes),
    }
