"""Widths that were chosen by the time they save: what was asked, predicted and measured."""

from __future__ import annotations

from dataclasses import dataclass

from modelzip.report.text import Rows

WIDTHS = ["layer", "channels", "KL alone", "same answer", "time saved"]


@dataclass(frozen=True, kw_only=True)
class WidthRow:
    """Why a layer got its width.

    Attributes:
        layer: the layer, or a residual block that goes whole.
        of, width: channels before and after; both 0 for a block.
        kl, agreement: what this cut alone does to the answers, before any training; in nats of
            outputs softened at a temperature of 3, and as a fraction.
        saved: the time that it takes off, as a fraction of the original file's.
    """

    layer: str
    of: int
    width: int
    kl: float
    agreement: float
    saved: float


@dataclass(frozen=True, kw_only=True)
class LatencyFit:
    """How a latency target was met. All are ratios to the original float file's time.

    Attributes:
        target: what was asked for.
        dense: of the file without this step, every later step carried out.
        predicted: the sum of what the cuts alone save, taken off `dense`.
        measured: of the file with the cuts; the largest over `batch_sizes`.
        runtime, batch_sizes, threads: what was timed.
        files: how many candidate files were timed for it.
        rows: the cuts that were made, in the model's order.
    """

    target: float
    dense: float
    predicted: float
    measured: float
    runtime: str
    batch_sizes: tuple[int, ...]
    threads: int
    files: int
    rows: tuple[WidthRow, ...]

    @property
    def text(self) -> str:
        """One line for a log or a report."""
        return (
            f"latency {self.target:g}x asked, {self.predicted:.3f}x predicted, "
            f"{self.measured:.3f}x measured, {self.dense:.3f}x without pruning; {self.runtime}, "
            f"batch {', '.join(map(str, self.batch_sizes))}, {self.files} candidates timed"
        )


def width_rows(fit: LatencyFit) -> Rows:
    """The table of `fit`, under the headings `WIDTHS`."""
    return [
        [
            row.layer,
            f"{row.of} -> {row.width}" if row.of else "the block is gone",
            f"{row.kl:.4f}",
            f"{row.agreement:.1%}",
            f"{row.saved:.1%}",
        ]
        for row in fit.rows
    ]
