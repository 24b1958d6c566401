"""What each step of a run did: training curves, and widths met by a latency."""

from __future__ import annotations

from modelzip.report.record import Record, StepRecord
from modelzip.report.text import Rows, percent, table
from modelzip.report.widths import WIDTHS, width_rows

_CURVE = ["epoch", "step", "training loss", "validation accuracy", "learning rate", "seconds", ""]


def step_sections(record: Record) -> list[str]:
    """A Markdown section for each step that has more to say than its settings."""
    parts = []
    for number, step in enumerate(record.steps, 1):
        title = f"### Step {number}: {step.name}"
        if step.curve:
            parts += [title, table(_curve(step), _CURVE, form="github")]
        if step.fit is not None:
            parts += [title, step.fit.text, table(width_rows(step.fit), WIDTHS, form="github")]
    return parts


def _curve(step: StepRecord) -> Rows:
    return [
        [
            epoch.number,
            epoch.step,
            "" if epoch.train_loss is None else f"{epoch.train_loss:.4f}",
            percent(epoch.validation_accuracy),
            f"{epoch.lr:.2g}",
            f"{epoch.seconds:.0f}",
            "kept" if epoch.number == step.kept else "",
        ]
        for epoch in step.curve
    ]
