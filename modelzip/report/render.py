"""A record as text: the table on the terminal, the Markdown page, runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelzip.measure.accuracy import Accuracy
from modelzip.measure.latency import LatencyRow
from modelzip.measure.parity import Parity
from modelzip.report import fastest
from modelzip.report.classes import class_sections, f1_row
from modelzip.report.data import DATA, data_lines, data_rows
from modelzip.report.fastest import situation, where
from modelzip.report.record import Figures, Record
from modelzip.report.robustness import ROBUSTNESS, robustness_rows
from modelzip.report.sensitivity import SENSITIVITY, sensitivity_rows
from modelzip.report.steps import step_sections
from modelzip.report.text import (
    OUTCOMES,
    Rows,
    count,
    hash_section,
    headline,
    kilobytes,
    outcome_rows,
    percent,
    section,
    table,
    times,
)

_SUMMARY = ["", "original", "compressed", "ratio"]


def verdict(record: Record) -> list[str]:
    """The first lines of every rendering: pass or fail, what not to miss, what is fastest."""
    first = headline(record.name, record.requirements, passed=record.passed)
    notes = [f"! {note}" for note in record.notes]
    return [first, *notes, *fastest.lines(record.latency, record.answers)]


def terminal(record: Record) -> str:
    """The summary printed at the end of a run."""
    parts = [
        "\n".join(verdict(record)),
        table(summary(record), _SUMMARY),
        "\n".join(_statistics(record)),
    ]
    if record.requirements:
        parts.append(table(outcome_rows(record.requirements), OUTCOMES))
    if record.data is not None:
        parts.append(table(data_rows(record.data, record.compressed), DATA))
        parts.append("\n".join(data_lines(record.data)))
    if record.robustness:
        parts.append(table(robustness_rows(record.robustness), ROBUSTNESS))
    return "\n\n".join(parts)


def markdown(record: Record) -> str:
    """The page `report.md`."""
    first, *rest = verdict(record)
    parts = [
        f"# {first}",
        "\n".join(f"- {line.removeprefix('! ')}" for line in rest),
        table(summary(record), _SUMMARY, form="github"),
        "\n".join(f"- {line}" for line in _statistics(record)),
        section("Requirements", outcome_rows(record.requirements), OUTCOMES),
        section("Steps", _steps(record), ["step", "settings", "seconds", "validation accuracy"]),
        *step_sections(record),
        *class_sections(record),
        section("Data", data_rows(record.data, record.compressed), DATA),
        "\n".join(f"- {line}" for line in data_lines(record.data)),
        section("Robustness", robustness_rows(record.robustness), ROBUSTNESS),
        section("Latency", _latency(record.latency), _LATENCY),
        "\n".join(f"- not measured: {line}" for line in record.missing),
        section("Layers", _layers(record), _LAYERS),
        section("Sensitivity", sensitivity_rows(record.sensitivity), SENSITIVITY),
        section("Left as they were", _protected(record), ["pass", "layer", "why"]),
        hash_section(record.hashes),
        section("Machine", _machine(record), ["", ""]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison(records: Sequence[tuple[str, Record]]) -> str:
    """Runs side by side, one row each, labelled."""
    rows = []
    for label, record in records:
        served = [
            r for r in record.latency if r.name == "compressed" and r.runtime == "onnxruntime"
        ]
        rows.append(
            [
                label,
                "pass" if record.passed else "FAIL",
                percent(record.compressed.accuracy.top1),
                f"{record.comparison.drop:+.2f} pp",
                percent(record.comparison.agreement),
                kilobytes(record.compressed.size_bytes),
                times(record.compressed.size_bytes, record.baseline.size_bytes),
                times(record.compressed.macs, record.baseline.macs),
                ", ".join(
                    f"{row.ratio:.2f}x (b{row.batch_size}, t{row.threads}, {row.device})"
                    for row in served
                ),
            ]
        )
    headers = ["run", "", "top-1", "drop", "agrees", "size", "ratio", "MACs", "latency"]
    return table(rows, headers)


def _archive(before: Figures, after: Figures) -> list[list[str]]:
    if after.archive_bytes is None:
        return []
    sizes = kilobytes(before.size_bytes), kilobytes(after.archive_bytes)
    return [["file, archived", *sizes, times(after.archive_bytes, before.size_bytes)]]


def summary(record: Record) -> list[list[str]]:
    """Rows of what, original, compressed and ratio; latency has a row a configuration."""
    before, after = record.baseline, record.compressed
    rows = [
        ["accuracy", percent(before.accuracy.top1), percent(after.accuracy.top1), _drop(record)],
        *f1_row(before, after),
        ["file", *_pair(before, after, "size_bytes", kilobytes)],
        *_archive(before, after),
        ["parameters", *_pair(before, after, "parameters", count)],
        ["non-zero", *_pair(before, after, "nonzero", count)],
        ["MACs", *_pair(before, after, "macs", count)],
    ]
    if before.memory and after.memory:
        peaks = before.memory.peak_mb, after.memory.peak_mb
        rows.append(["peak memory", *(f"{mb:.1f} MB" for mb in peaks), times(peaks[1], peaks[0])])
    for base, small in _latency_pairs(record.latency):
        what = f"latency, {_served(small)}"
        ratio = f"{small.ratio:.2f}x ({small.ratio_low:.2f} to {small.ratio_high:.2f})"
        rows.append([what, f"{base.median_ms:.3f} ms", f"{small.median_ms:.3f} ms", ratio])
    return rows


def _statistics(record: Record) -> list[str]:
    found, parity = record.comparison, record.parity
    lines = [
        f"accuracy on {found.n} test samples in onnxruntime (95 % Wilson interval): original "
        f"{_interval(record.baseline.accuracy)}, "
        f"compressed {_interval(record.compressed.accuracy)}",
        f"drop {found.drop:.2f} pp (95 %: {found.drop_low:.2f} to {found.drop_high:.2f}), "
        f"McNemar p = {found.p_value:.3g}; same answer on {percent(found.agreement)}, "
        f"KL {found.kl:.2g} nats",
        f"parity of file and converted module on {_parity(parity)}",
    ]
    lines += [
        f"answers of the {_MODELS[row.name]} in {where(row)}: accuracy {_interval(row.accuracy)}; "
        f"against its module on {_parity(row)}"
        for row in record.answers
    ]
    lines += filter(None, [record.promise, record.zeros])
    return lines + [f"not measured: {line}" for line in record.missing]


_MODELS = {"baseline": "original", "compressed": "compressed model"}


def _parity(found: Parity) -> str:
    return (
        f"{found.n} samples: same answer on {percent(found.agreement)}, "
        f"{percent(found.identical)} bit-identical, largest difference {found.max_difference:.3g}"
    )


def _interval(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.top1:.2f} % ({100 * accuracy.low:.2f} to {100 * accuracy.high:.2f})"


def _steps(record: Record) -> Rows:
    return [
        [s.name, _settings(s.settings), f"{s.seconds:.1f}", percent(s.accuracy)]
        for s in record.steps
    ]


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None)


_LATENCY = [
    "model", "where", "median ms", "p95 ms", "to original there", "95 %", "overall", "95 %", "",
]  # fmt: skip


def _latency(rows: Sequence[LatencyRow]) -> Rows:
    best = [row for found in fastest.fastest(rows) for row in (found.original, found.compressed)]
    return [
        [
            row.name,
            _served(row),
            f"{row.median_ms:.3f}",
            f"{row.p95_ms:.3f}",
            f"{row.ratio:.2f}x",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
            f"{row.overall:.2f}x",
            f"{row.overall_low:.2f} to {row.overall_high:.2f}",
            "fastest" if row in best else "",
        ]
        for row in rows
    ]


def _served(row: LatencyRow) -> str:
    return f"{where(row)}, {situation(row)}"


def _latency_pairs(rows: Sequence[LatencyRow]) -> list[tuple[LatencyRow, LatencyRow]]:
    baselines = {_served(row): row for row in rows if row.name == "baseline"}
    return [(baselines[_served(row)], row) for row in rows if row.name == "compressed"]


_LAYERS = ["layer", "kind", "parameters", "after", "non-zero", "bits", "note"]


def _layers(record: Record) -> Rows:
    return [
        [r.name, r.kind, r.parameters_before, r.parameters_after, r.nonzero, f"{r.bits:g}", r.note]
        for r in record.layers
    ]


def _protected(record: Record) -> Rows:
    return [
        [name, layer, why] for name, rows in record.protected.items() for layer, why in rows.items()
    ]


def _machine(record: Record) -> Rows:
    machine = record.machine
    return [
        ["processor", f"{machine.cpu}, {machine.usable_cores} cores"],
        ["instruction sets", ", ".join(machine.isa)],
        ["memory", f"{machine.memory_gb} GB"],
        ["GPU", ", ".join(machine.gpu) or "none"],
        ["system", f"{machine.system}, Python {machine.python}"],
        ["packages", ", ".join(f"{n} {v}" for n, v in machine.packages.items())],
        ["seed", record.seed],
        ["time of the run", f"{record.seconds:.0f} s"],
    ]


def _drop(record: Record) -> str:
    return f"{0 - record.comparison.drop:+.2f} pp"  # 0 - 0.0 has no minus sign


def _pair(before: Figures, after: Figures, name: str, show: Any) -> list[str]:
    old, new = getattr(before, name), getattr(after, name)
    return [show(old), show(new), times(new, old)]
