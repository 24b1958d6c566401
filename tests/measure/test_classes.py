from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from modelzip.errors import DataError
from modelzip.measure.accuracy import Predictions
from modelzip.measure.classes import ClassScore, class_scores, f1


def predictions(given: list[int], labels: list[int], *, classes: int = 3) -> Predictions:
    return Predictions(
        outputs=np.eye(classes, dtype=np.float32)[given], labels=np.array(labels, dtype=np.int64)
    )


def test_scores_by_hand():
    ham, spam = class_scores(predictions([0, 1, 1, 1, 0], [0, 0, 1, 1, 1], classes=2), ("h", "s"))
    assert (ham.name, ham.n, ham.answers) == ("h", 2, (1, 1))
    assert (spam.name, spam.n, spam.answers) == ("s", 3, (1, 2))
    assert (spam.precision, spam.recall) == (2 / 3, 2 / 3)
    assert spam.f1 == pytest.approx(2 / 3)
    assert ham == ClassScore(name="h", n=2, answers=(1, 1), precision=0.5, recall=0.5, f1=0.5)


def test_a_class_without_samples_or_answers_scores_nothing():
    rows = class_scores(predictions([0, 0], [0, 1]))
    assert [(r.name, r.precision, r.recall, r.f1) for r in rows[1:]] == [
        ("1", 0.0, 0.0, 0.0),
        ("2", 0.0, 0.0, 0.0),
    ]


pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


@given(pairs)
def test_scores_are_those_of_scikit_learn(found):
    answers, labels = map(list, zip(*found, strict=True))
    rows = class_scores(predictions(answers, labels))
    order = [0, 1, 2]
    expected = metrics.precision_recall_fscore_support(
        labels, answers, labels=order, zero_division=0
    )
    for row, *values in zip(rows, *expected, strict=True):
        assert [row.precision, row.recall, row.f1, row.n] == pytest.approx(values)
    matrix = metrics.confusion_matrix(labels, answers, labels=order)
    assert [list(row.answers) for row in rows] == matrix.tolist()
    assert f1(rows) == pytest.approx(fmean(expected[2]))


def test_f1_of_two_classes_is_that_of_the_second():
    rows = class_scores(predictions([0, 0, 1, 1], [0, 0, 0, 1], classes=2))
    assert [row.f1 for row in rows] == pytest.approx([0.8, 2 / 3])
    assert f1(rows) == rows[1].f1


def test_over_100_classes_have_no_scores():
    assert class_scores(predictions([0], [100], classes=101)) == ()
    assert f1(()) is None
    assert len(class_scores(predictions([0], [99], classes=100))) == 100


@pytest.mark.parametrize(("label", "named"), [(3, 3), (-1, -1)])
def test_labels_out_of_range_are_refused(label, named):
    with pytest.raises(DataError, match=f"a label is {named}; with 3 outputs it must be 0 to 2"):
        class_scores(predictions([0, 0], [0, label]))


def test_names_must_be_as_many_as_outputs():
    with pytest.raises(DataError, match="the model has 3 outputs and the data 2 names of classes"):
        class_scores(predictions([0], [0]), ("ham", "spam"))
