"""How original and compressed model fare on each class, as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

from modelzip.measure.classes import ClassScore, f1
from modelzip.report.record import Figures, Record
from modelzip.report.text import Rows, percent, table

_SCORES = ["model", "class", "samples", "precision", "recall", "F1"]
_MODELS = ("original", "compressed")


def f1_row(before: Figures, after: Figures) -> list[list[str]]:
    """The row of the summary; none where the classes were not looked at.

    >>> from types import SimpleNamespace
    >>> one = ClassScore(name="spam", n=4, answers=(1, 3), precision=0.75, recall=0.75, f1=0.75)
    >>> figures = SimpleNamespace(classes=(one, one))
    >>> f1_row(figures, figures)
    [['F1, spam', '75.00 %', '75.00 %', '+0.00 pp']]
    """
    old, new = f1(before.classes), f1(after.classes)
    if old is None or new is None:
        return []
    of = after.classes[1].name if len(after.classes) == 2 else "mean"
    return [[f"F1, {of}", percent(old), percent(new), f"{100 * (new - old):+.2f} pp"]]


def class_sections(record: Record) -> list[str]:
    """A Markdown section with the scores of each class and both confusion matrices."""
    found = {
        model: figures.classes
        for model, figures in zip(_MODELS, (record.baseline, record.compressed), strict=True)
        if figures.classes
    }
    if not found:
        return []
    scores = [row for model, rows in found.items() for row in _scores(model, rows)]
    parts = ["## Classes", table(scores, _SCORES, form="github")]
    for model, rows in found.items():
        headers = [f"{model}: samples of", *(f"put in {row.name}" for row in rows)]
        parts.append(table([[r.name, *r.answers] for r in rows], headers, form="github"))
    return parts


def _scores(model: str, rows: Sequence[ClassScore]) -> Rows:
    return [
        [model, row.name, row.n, percent(row.precision), percent(row.recall), percent(row.f1)]
        for row in rows
    ]
