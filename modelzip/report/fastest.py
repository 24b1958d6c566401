"""Which way to serve a model is the fastest, for each batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelzip.measure.latency import LatencyRow
from modelzip.measure.parity import ParityRow
from modelzip.report.record import BASELINE, COMPRESSED
from modelzip.report.text import percent


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """The fastest rows of the original and of the compressed model, timed in the same rounds.

    `reference` is what their `overall` ratio refers to: the original, in onnxruntime where it is.
    """

    reference: LatencyRow
    original: LatencyRow
    compressed: LatencyRow

    @property
    def is_original(self) -> bool:
        """Whether the original, served as fast as can be, is clearly the faster of the two."""
        return self.original.overall_high < self.compressed.overall_low


def fastest(rows: Sequence[LatencyRow]) -> tuple[Fastest, ...]:
    """The fastest of `rows` on each device, at each number of threads and batch size."""
    groups: dict[tuple[str, int, int], list[LatencyRow]] = {}
    for row in rows:
        groups.setdefault((row.device, row.threads, row.batch_size), []).append(row)
    found = []
    for group in groups.values():
        best = {
            name: min((row for row in group if row.name == name), key=lambda row: row.overall)
            for name in {row.name for row in group}
        }
        if best.keys() >= {BASELINE, COMPRESSED}:
            found.append(
                Fastest(reference=group[0], original=best[BASELINE], compressed=best[COMPRESSED])
            )
    return tuple(found)


def lines(rows: Sequence[LatencyRow], answers: Sequence[ParityRow]) -> list[str]:
    """A line for each batch size: what is fastest, by how much, and whether answers stay."""
    return [_line(found, answers) for found in fastest(rows)]


def where(row: LatencyRow | ParityRow) -> str:
    """How a model was served: the runtime, and the precision it was asked for if any.

    onnxruntime takes the precision of the file.
    """
    return row.runtime if row.runtime == "onnxruntime" else f"{row.runtime} {row.precision}"


def situation(row: LatencyRow) -> str:
    """The batch size, device and threads of `row`."""
    threads = (
        f", {row.threads} thread{'s' if row.threads > 1 else ''}" if row.device == "cpu" else ""
    )
    return f"batch {row.batch_size} on {row.device}{threads}"


def _line(found: Fastest, answers: Sequence[ParityRow]) -> str:
    small, original = found.compressed, found.original
    text = (
        f"fastest at {situation(small)}: the compressed model in {where(small)}, {_ratio(small)} "
        f"the time of the original in {where(found.reference)}"
    )
    for row in answers:
        if (row.name, row.device, where(row)) == (COMPRESSED, small.device, where(small)):
            text += (
                f" (accuracy {percent(row.accuracy.top1)}, same answer as its module on "
                f"{percent(row.agreement)} of {row.n} samples)"
            )
    return f"{text}; the original in {where(original)}, {_ratio(original)}"


def _ratio(row: LatencyRow) -> str:
    return f"{row.overall:.2f}x ({row.overall_low:.2f} to {row.overall_high:.2f})"
