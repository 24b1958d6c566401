"""How well a model answers for each class: precision, recall, F1 and where its answers went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from modelzip.errors import DataError
from modelzip.measure.accuracy import Predictions

MOST_CLASSES = 100  # beyond it a table of all pairs serves nobody


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class, and the model's answers to its samples.

    Attributes:
        name: of the class; its number where it has none.
        n: its samples.
        answers: how many of them were put in each class, in order: its row of the confusion matrix.
        precision: share of the samples put in this class that belong there; 0 where none were.
        recall: share of its samples that were put in it; 0 where there are none.
        f1: harmonic mean of the two, which leaves out what was rightly put elsewhere.
    """

    name: str
    n: int
    answers: tuple[int, ...]
    precision: float
    recall: float
    f1: float


def class_scores(predictions: Predictions, names: Sequence[str] = ()) -> tuple[ClassScore, ...]:
    """A score for each class, in order; none at all for over 100 classes.

    Args:
        names: of the classes; numbers from 0 by default.

    Raises:
        DataError: as many names are given as there are not outputs, or a label is out of range.

    >>> outputs = np.array([[2, 1], [0, 1], [0, 1]], dtype=np.float32)
    >>> ham, spam = class_scores(Predictions(outputs=outputs, labels=np.array([0, 0, 1])))
    >>> ham.answers, spam.precision, spam.recall, round(spam.f1, 3)
    ((1, 1), 0.5, 1.0, 0.667)
    """
    count = predictions.outputs.shape[1]
    if names and len(names) != count:
        raise DataError(f"the model has {count} outputs and the data {len(names)} names of classes")
    if count > MOST_CLASSES:
        return ()
    low, high = int(predictions.labels.min()), int(predictions.labels.max())
    if low < 0 or high >= count:
        raise DataError(
            f"a label is {low if low < 0 else high}; with {count} outputs it must be 0 to "
            f"{count - 1}"
        )
    pairs = predictions.labels * count + predictions.classes
    matrix = np.bincount(pairs, minlength=count * count).reshape(count, count)
    right, actual, given = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return tuple(
        ClassScore(
            name=names[i] if names else str(i),
            n=int(actual[i]),
            answers=tuple(int(v) for v in matrix[i]),
            precision=_share(right[i], given[i]),
            recall=_share(right[i], actual[i]),
            f1=_share(2 * right[i], given[i] + actual[i]),
        )
        for i in range(count)
    )


def f1(scores: Sequence[ClassScore]) -> float | None:
    """F1 of the second of two classes, the mean over more, or None where there are no scores.

    Of two classes the second is the one looked for, such as spam. van Rijsbergen 1979,
    http://www.dcs.gla.ac.uk/Keith/Preface.html.
    """
    if not scores:
        return None
    return scores[1].f1 if len(scores) == 2 else fmean(score.f1 for score in scores)


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0
