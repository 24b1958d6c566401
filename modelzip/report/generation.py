"""The record of a generator's run, and its renderings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelzip.errors import SettingError
from modelzip.measure.latency import LatencyRow
from modelzip.measure.machine import Machine
from modelzip.measure.parity import Parity
from modelzip.report import requirements
from modelzip.report.fastest import situation, where
from modelzip.report.record import BASELINE, COMPRESSED, FILE, decode
from modelzip.report.requirements import Outcome, Requirement
from modelzip.report.text import (
    OUTCOMES,
    Rows,
    count,
    hash_section,
    headline,
    kilobytes,
    outcome_rows,
    section,
    table,
    times,
)
from modelzip.report.verdict import of_files

SCHEMA = "generation 1"
FARTHEST = 0.001  # mean difference of file and module, of the largest pixel
_SUMMARY = ["", "original", "compressed", "ratio"]


@dataclass(frozen=True, kw_only=True)
class GeneratorFigures:
    """What was measured on one ONNX file; `scores` on the test data in onnxruntime, low is good."""

    file: str
    sha256: str
    size_bytes: int
    parameters: int
    nonzero: int
    macs: int
    scores: dict[str, float]
    archive_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorStep:
    """One step of a run; `scores` on the validation data after it, `loss` of a fine-tuning."""

    name: str
    settings: dict[str, Any]
    seconds: float
    scores: dict[str, float]
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """Everything a generator's run found out. `n` is the number of test samples."""

    schema: str = SCHEMA
    name: str
    passed: bool
    notes: tuple[str, ...]
    seed: int
    seconds: float
    training_seconds: float
    machine: Machine
    n: int
    steps: tuple[GeneratorStep, ...]
    baseline: GeneratorFigures
    compressed: GeneratorFigures
    parity: Parity
    latency: tuple[LatencyRow, ...]
    missing: tuple[str, ...]
    requirements: tuple[Outcome, ...]
    hashes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of `report.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


def read(folder: str | Path) -> GenerationRecord:
    """The record in the folder of a generator's run; SettingError if there is none."""
    path = Path(folder) / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise SettingError(f"{path} has schema {data['schema']!r}, not {SCHEMA!r}")
        return decode(GenerationRecord, data)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} is no readable report of a generator: {error}") from error


def judge(
    required: Sequence[Requirement],
    before: GeneratorFigures,
    after: GeneratorFigures,
    latency: Sequence[LatencyRow],
) -> tuple[Outcome, ...]:
    """Each requirement, the figure that was measured, and whether it is met."""
    measured = {
        **of_files(before, after, latency),
        "score": requirements.ratio(_first(after), _first(before)),
    }
    return tuple(requirements.judge(r, measured[r.name]) for r in required)


def notes(outcomes: Sequence[Outcome], parity: Parity) -> tuple[str, ...]:
    """What must stand in the first lines."""
    lines = [f"{o.name}: {o.measured}, required {o.required}" for o in outcomes if not o.met]
    if not parity_holds(parity):
        lines.append(
            f"parity: the file differs from its module by {parity.mean_difference:.2g} in the mean"
        )
    return tuple(lines)


def parity_holds(parity: Parity) -> bool:
    """Whether file and module make the same images, but for a thousandth."""
    return parity.mean_difference <= FARTHEST * parity.scale


def terminal(record: GenerationRecord) -> str:
    """The summary printed at the end of a run."""
    parts = [_verdict(record), table(summary(record), _SUMMARY), "\n".join(_statistics(record))]
    if record.requirements:
        parts.append(table(outcome_rows(record.requirements), OUTCOMES))
    return "\n\n".join(parts)


def markdown(record: GenerationRecord, sheets: Mapping[str, str]) -> str:
    """The page `report.md`; `sheets` are the files of samples, by what they show."""
    first, *rest = _verdict(record).splitlines()
    parts = [
        f"# {first}",
        "\n".join(f"- {line.removeprefix('! ')}" for line in rest),
        table(summary(record), _SUMMARY, form="github"),
        "\n".join(f"- {line}" for line in _statistics(record)),
        "\n\n".join(f"![{what}]({name})\n\n{what}" for what, name in sheets.items()),
        section("Requirements", outcome_rows(record.requirements), OUTCOMES),
        section("Steps", _steps(record), ["step", "settings", "seconds", "loss", "on validation"]),
        section("Latency", _latency(record), ["model", "where", "median ms", "to original"]),
        hash_section(record.hashes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(record: GenerationRecord) -> list[list[str]]:
    """Rows of what, original, compressed and ratio."""
    before, after = record.baseline, record.compressed
    rows = [
        [name, f"{old:.5g}", f"{after.scores[name]:.5g}", times(after.scores[name], old)]
        for name, old in before.scores.items()
    ]
    rows.append(["file", *_pair(before.size_bytes, after.size_bytes, kilobytes)])
    if before.archive_bytes and after.archive_bytes:
        rows.append(["archive", *_pair(before.archive_bytes, after.archive_bytes, kilobytes)])
    rows += [
        ["parameters", *_pair(before.parameters, after.parameters, count)],
        ["non-zero", *_pair(before.nonzero, after.nonzero, count)],
        ["MACs", *_pair(before.macs, after.macs, count)],
    ]
    pairs = zip(
        (row for row in record.latency if row.name == BASELINE),
        (row for row in record.latency if row.name == COMPRESSED),
        strict=True,
    )
    for old_row, row in pairs:
        ratio = f"{row.ratio:.2f}x ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        times_ms = f"{old_row.median_ms:.3f} ms", f"{row.median_ms:.3f} ms"
        rows.append([f"latency, {where(row)}, {situation(row)}", *times_ms, ratio])
    return rows


def _verdict(record: GenerationRecord) -> str:
    first = headline(record.name, record.requirements, passed=record.passed)
    return "\n".join([first, *(f"! {note}" for note in record.notes)])


def _statistics(record: GenerationRecord) -> list[str]:
    parity = record.parity
    lines = [
        f"scores on {record.n} test samples in onnxruntime; the lower the better",
        f"parity of file and converted module on {parity.n} samples: "
        f"{100 * parity.identical:.2f} % bit-identical, largest difference of a pixel "
        f"{parity.max_difference:.3g}, mean {parity.mean_difference:.3g}",
        f"trained in {record.training_seconds:.0f} s of {record.seconds:.0f} s on "
        f"{record.machine.cpu}",
    ]
    return lines + [f"not measured: {line}" for line in record.missing]


def _steps(record: GenerationRecord) -> Rows:
    return [
        [
            step.name,
            ", ".join(f"{k}: {v}" for k, v in step.settings.items() if v is not None),
            f"{step.seconds:.1f}",
            "" if step.loss is None else f"{step.loss:.5g}",
            ", ".join(f"{name} {value:.5g}" for name, value in step.scores.items()),
        ]
        for step in record.steps
    ]


def _latency(record: GenerationRecord) -> Rows:
    return [
        [row.name, f"{where(row)}, {situation(row)}", f"{row.median_ms:.3f}", f"{row.ratio:.2f}x"]
        for row in record.latency
    ]


def _pair(old: float, new: float, show: Any) -> list[str]:
    return [show(old), show(new), times(new, old)]


def _first(figures: GeneratorFigures) -> float:
    return next(iter(figures.scores.values()))
