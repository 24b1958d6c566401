"""Training curves and fitted widths as text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

from modelzip.report.record import Record, StepRecord, decode
from modelzip.report.render import markdown
from modelzip.report.steps import step_sections
from modelzip.report.widths import LatencyFit, WidthRow
from modelzip.train.state import Epoch

CURVE = (
    Epoch(
        number=0, step=0, train_loss=None, validation_accuracy=0.5, lr=0.1, seconds=1, settled=True
    ),
    Epoch(
        number=1, step=9, train_loss=1.25, validation_accuracy=0.75, lr=0.1, seconds=7, settled=True
    ),
)
TRAINED = StepRecord(name="finetune", settings={}, seconds=8, accuracy=0.75, curve=CURVE, kept=1)
FIT = LatencyFit(
    target=0.5,
    dense=0.9,
    predicted=0.49,
    measured=0.48,
    runtime="onnxruntime",
    batch_sizes=(1, 32),
    threads=1,
    files=7,
    rows=(
        WidthRow(layer="conv1", of=32, width=16, kl=0.01, agreement=0.99, saved=0.3),
        WidthRow(layer="layer1.2", of=0, width=0, kl=0.02, agreement=0.98, saved=0.11),
    ),
)
FITTED = StepRecord(name="prune_channels", settings={}, seconds=60, accuracy=0.5, fit=FIT)


def test_the_curve_says_which_epoch_was_kept(record: Record) -> None:
    title, rows = step_sections(replace(record, steps=(FITTED, TRAINED)))[-2:]
    assert title == "### Step 2: finetune"
    kept = next(line for line in rows.splitlines() if "kept" in line)
    assert [cell.strip() for cell in kept.split("|")[1:8]] == [
        "1", "9", "1.2500", "75.00 %", "0.1", "7", "kept",
    ]  # fmt: skip


def test_a_fit_says_why_each_layer_got_its_width(record: Record) -> None:
    page = markdown(replace(record, steps=(FITTED,)))
    assert (
        "latency 0.5x asked, 0.490x predicted, 0.480x measured, 0.900x without pruning; "
        "onnxruntime, batch 1, 32, 7 candidates timed"
    ) in page
    assert "32 -> 16" in page
    assert "the block is gone" in page


def test_a_step_without_either_has_no_section(record: Record) -> None:
    assert step_sections(record) == []


def test_both_survive_the_file(record: Record) -> None:
    for step in (TRAINED, FITTED):
        text = json.dumps(dataclasses.asdict(step))
        assert decode(StepRecord, json.loads(text)) == step
