from math import comb, log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modelzip.errors import DataError, SettingError
from modelzip.measure.accuracy import (
    Predictions,
    accuracy,
    compare,
    drop_interval,
    kl_divergence,
    mcnemar,
    predict,
    wilson,
)
from modelzip.runtime.inputs import InputSpec
from modelzip.runtime.session import load


class Echo:
    """A session that returns what it is given."""

    inputs: tuple[InputSpec, ...] = ()

    def run(self, inputs: np.ndarray) -> list[np.ndarray]:
        return [inputs]

    def bind(self, inputs: np.ndarray) -> object:
        raise NotImplementedError


def predictions(classes: list[int], labels: list[int]) -> Predictions:
    return Predictions(outputs=np.eye(4, dtype=np.float32)[classes], labels=np.array(labels))


def test_predictions_come_from_the_file(float_file: Path, images: np.ndarray) -> None:
    session = load(float_file)
    labels = torch.tensor([0, 1, 2, 1, 0])
    found = predict(session, [(images[:3], labels[:3]), (torch.from_numpy(images[3:]), labels[3:])])
    np.testing.assert_array_equal(found.outputs, session.run(images)[0])
    assert found.outputs.dtype == np.float32
    assert found.labels.tolist() == labels.tolist()
    assert found.classes.tolist() == session.run(images)[0].argmax(1).tolist()


def test_equal_outputs_are_the_first_class() -> None:
    found = Predictions(outputs=np.zeros((2, 3), np.float32), labels=np.zeros(2, np.int64))
    assert found.classes.tolist() == [0, 0]


def test_accuracy_counts_hits() -> None:
    found = accuracy(predictions([0, 1, 2, 3], [0, 1, 2, 0]))
    assert (found.top1, found.correct, found.n) == (0.75, 3, 4)
    assert found.low < 0.75 < found.high


def test_no_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="there are no samples to measure accuracy on"):
        predict(Echo(), [])


def test_nan_names_the_sample() -> None:
    outputs = np.zeros((4, 2), np.float32)
    outputs[1, 1] = np.nan
    good = np.zeros((4, 2), np.float32)
    batches = [(good, np.zeros(4, int)), (outputs, np.zeros(4, int))]
    with pytest.raises(DataError, match="output for sample 5 holds NaN or infinity"):
        predict(Echo(), batches)


@pytest.mark.parametrize(("outputs", "labels"), [((4,), 4), ((4, 2, 2), 4), ((4, 2), 3)])
def test_shapes_that_are_no_classification_are_refused(
    outputs: tuple[int, ...], labels: int
) -> None:
    message = r"first output has shape \[4.*\] for labels of shape .*needs \[samples, classes\]"
    with pytest.raises(DataError, match=message):
        predict(Echo(), [(np.zeros(outputs, np.float32), np.zeros(labels, int))])


@given(n=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_is_scipys(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    found = wilson(successes, n, confidence=confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)  # Wilson by hand: n / (n + z^2)
    with pytest.raises(SettingError, match="successes must be an integer from 0 to 3, got 4"):
        wilson(4, 3)


@given(b=st.integers(0, 30), c=st.integers(0, 30))
def test_mcnemar_is_the_binomial_sum(b: int, c: int) -> None:
    n = b + c
    tail = sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_the_drop_interval_covers_its_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    chances = [0.03, 0.01, 0.96]  # lost, won, the same: a true drop of 0.02
    draws = rng.multinomial(500, chances, size=4000)
    intervals = [drop_interval(int(lost), int(won), 500) for lost, won, _ in draws]
    covered = np.mean([low <= 0.02 <= high for low, high in intervals])
    assert 0.94 < covered < 0.97


def test_compare_counts_pairs() -> None:
    labels = [0, 1, 2, 3, 0, 1]
    baseline = predictions([0, 1, 2, 0, 1, 0], labels)  # right on the first three
    compressed = predictions([0, 2, 1, 3, 1, 0], labels)  # right on the first and the fourth
    found = compare(baseline, compressed)
    assert (found.only_baseline, found.only_compressed, found.n) == (2, 1, 6)
    assert found.agreement == 0.5
    assert found.drop == pytest.approx(100 / 6)
    assert found.drop_low < found.drop < found.drop_high
    assert found.p_value == 1.0


def test_a_model_equals_itself() -> None:
    same = predictions([0, 1], [0, 0])
    found = compare(same, same)
    assert (found.agreement, found.kl, found.drop, found.p_value) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (predictions([0], [0]), r"outputs \[2, 4\] and \[1, 4\], labels different"),
        (predictions([0, 1], [1, 1]), "labels different"),
    ],
)
def test_other_samples_are_refused(other: Predictions, message: str) -> None:
    with pytest.raises(DataError, match=f"were not run on the same samples: .*{message}"):
        compare(predictions([0, 1], [0, 1]), other)


def test_kl_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32)) + 1000
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32)) - 50
    expected = 0.5 * (0.5 * log(2) + 0.5 * log(0.5 / 0.75))
    assert kl_divergence(reference, other) == pytest.approx(expected, abs=1e-4)
