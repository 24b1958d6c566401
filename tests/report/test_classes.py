from dataclasses import replace

import pytest

from modelzip.measure.classes import ClassScore
from modelzip.report.classes import class_sections, f1_row
from modelzip.report.record import Record, decode, read
from modelzip.report.render import markdown, terminal

HAM = ClassScore(name="ham", n=8, answers=(7, 1), precision=0.875, recall=0.875, f1=0.875)
SPAM = ClassScore(name="spam", n=4, answers=(1, 3), precision=0.75, recall=0.75, f1=0.75)
BETTER = ClassScore(name="spam", n=4, answers=(0, 4), precision=0.8, recall=1.0, f1=0.8889)


@pytest.fixture
def scored(record: Record) -> Record:
    return replace(
        record,
        baseline=replace(record.baseline, classes=(HAM, SPAM)),
        compressed=replace(record.compressed, classes=(HAM, BETTER)),
    )


def test_the_summary_has_f1_of_the_class_looked_for(scored):
    (row,) = [line for line in terminal(scored).splitlines() if line.startswith("F1")]
    assert row.split() == ["F1,", "spam", "75.00", "%", "88.89", "%", "+13.89", "pp"]


def test_over_two_classes_the_mean_counts(scored):
    figures = replace(scored.baseline, classes=(HAM, SPAM, BETTER))
    assert f1_row(figures, figures)[0][:2] == ["F1, mean", "83.80 %"]


def test_the_page_has_scores_and_both_confusion_matrices(scored):
    section = markdown(scored).split("## Classes\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    assert ["compressed", "spam", "4", "80.00 %", "100.00 %", "88.89 %"] in rows
    assert ["original: samples of", "put in ham", "put in spam"] in rows
    assert rows.count(["ham", "7", "1"]) == 2
    assert ["spam", "1", "3"] in rows
    assert ["spam", "0", "4"] in rows


def test_nothing_is_said_of_classes_that_were_not_looked_at(record):
    assert class_sections(record) == []
    assert f1_row(record.baseline, record.compressed) == []
    assert "Classes" not in markdown(record)


def test_the_record_keeps_them(scored, tmp_path):
    (tmp_path / "report.json").write_text(scored.to_json())
    assert read(tmp_path).compressed.classes == (HAM, BETTER)
    old = {k: v for k, v in vars(scored.baseline).items() if k != "classes"}
    old = {k: vars(v) if k in ("accuracy", "memory") else v for k, v in old.items()}
    assert decode(type(scored.baseline), old).classes == ()
