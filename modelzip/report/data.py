"""Training data as they were stored, as rows of a table."""

from __future__ import annotations

from modelzip.report.record import Figures, StoredData
from modelzip.report.text import Rows, count, kilobytes, percent, times

DATA = ["", "original data", "as stored", "ratio"]


def data_rows(data: StoredData | None, compressed: Figures) -> Rows:
    """Cells under the headers of `DATA`; none where nothing was stored."""
    if data is None:
        return []
    rows = [
        [
            "samples",
            count(data.samples_before),
            count(data.samples),
            times(data.samples, data.samples_before),
        ],
        [
            "bytes",
            kilobytes(data.bytes_before),
            kilobytes(data.bytes_after),
            times(data.bytes_after, data.bytes_before),
        ],
        ["samples/s, chunk-shuffled", "", count(data.shuffled_per_s), ""],
        ["samples/s, random", "", count(data.random_per_s), ""],
    ]
    if data.original is not None and data.comparison is not None:
        change = f"{0 - data.comparison.drop:+.2f} pp"  # 0 - 0.0 has no minus sign
        after = percent(compressed.accuracy.top1)
        rows.append(["accuracy, trained on them", percent(data.original.top1), after, change])
    return rows


def data_lines(data: StoredData | None) -> list[str]:
    """What else is to be said of stored data."""
    if data is None:
        return []
    lines = [f"training data in {data.file}, {'without' if data.lossless else 'with'} loss"]
    if data.duplicates or data.left_out:
        lines.append(
            f"samples left out: {count(data.duplicates)} duplicates, and {count(data.left_out)} "
            "that are not in the coreset"
        )
    if data.comparison is not None:
        found = data.comparison
        lines.append(
            f"trained on stored against original data, same seed and optimizer steps, on {found.n} "
            f"test samples: drop {found.drop:.2f} pp (95 %: {found.drop_low:.2f} to "
            f"{found.drop_high:.2f}), McNemar p = {found.p_value:.3g}"
        )
    return lines
