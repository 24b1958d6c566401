"""Original and compressed model on shifted data, attacked and faulty, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from modelzip.measure.robustness import Reliability, RobustnessRow
from modelzip.report.text import Rows, percent

ROBUSTNESS = [
    "condition", "samples", "original", "compressed", "change", "other answer", "worst class",
    "ECE, original", "ECE, compressed",
]  # fmt: skip


def robustness_rows(rows: Sequence[RobustnessRow]) -> Rows:
    """Cells under the headers of `ROBUSTNESS`; changes are in percentage points."""
    return [
        [
            str(row),
            row.n,
            percent(row.baseline.accuracy.top1),
            percent(row.compressed.accuracy.top1),
            f"{_change(row.baseline, row.compressed):+.2f} pp",
            percent(row.flip_rate),
            f"{row.worst_class}: {row.worst_change:+.1f} pp",
            f"{row.baseline.ece:.3f}",
            f"{row.compressed.ece:.3f}",
        ]
        for row in rows
    ]


def _change(before: Reliability, after: Reliability) -> float:
    return 100 * (after.accuracy.top1 - before.accuracy.top1)
