"""Accuracy on a deployed model's own outputs, and two models compared on the same samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from modelzip.core import checks
from modelzip.errors import DataError
from modelzip.runtime.inputs import as_array
from modelzip.runtime.session import Session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a model said about each sample: its `outputs` [n, classes] and the `labels` [n]."""

    outputs: Floats
    labels: Ints

    @property
    def classes(self) -> Ints:
        """The class of the largest output of each sample, the first of equals: [n]."""
        return np.asarray(self.outputs.argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Fraction of samples whose largest output is their label, with its 95 % Wilson interval."""

    top1: float
    low: float
    high: float
    correct: int
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A compressed model against its baseline on the same samples.

    Attributes:
        n: samples.
        agreement: fraction of them put in the same class by both.
        kl: mean Kullback-Leibler divergence of the softmax outputs from the baseline's, in nats.
        drop, drop_low, drop_high: loss of accuracy in percentage points, and its 95 % interval.
        only_baseline: samples that the baseline alone gets right.
        only_compressed: samples that the compressed model alone gets right.
        p_value: McNemar's exact two-sided test that the two are equally accurate.
    """

    n: int
    agreement: float
    kl: float
    drop: float
    drop_low: float
    drop_high: float
    only_baseline: int
    only_compressed: int
    p_value: float


def predict(session: Session, batches: Iterable[tuple[Any, Any]]) -> Predictions:
    """The first output of `session` on every sample of `batches` of (inputs, labels).

    Raises:
        DataError: there are no batches; outputs that are not [samples, classes]; or an output
            that is not finite, named by the sample's number from 0.
    """
    outputs: list[Floats] = []
    labels: list[Ints] = []
    seen = 0
    for inputs, targets in batches:
        output = session.run(inputs)[0]
        target = as_array(targets)
        if output.ndim != 2 or target.shape != output.shape[:1]:
            raise DataError(
                f"the model's first output has shape {list(output.shape)} for labels of shape "
                f"{list(target.shape)}; accuracy needs [samples, classes] and [samples]"
            )
        finite = np.isfinite(output).all(axis=1)
        if not finite.all():
            raise DataError(
                f"the model's output for sample {seen + int(finite.argmin())} holds NaN or infinity"
            )
        outputs.append(output.astype(np.float32))
        labels.append(target.astype(np.int64))
        seen += len(output)
    if not seen:
        raise DataError("there are no samples to measure accuracy on; give at least one batch")
    return Predictions(outputs=np.concatenate(outputs), labels=np.concatenate(labels))


def accuracy(predictions: Predictions) -> Accuracy:
    """Top-1 accuracy with its 95 % Wilson interval.

    >>> outputs = np.eye(2, dtype=np.float32)
    >>> accuracy(Predictions(outputs=outputs, labels=np.array([0, 1]))).top1
    1.0
    """
    n = len(predictions.labels)
    correct = int((predictions.classes == predictions.labels).sum())
    low, high = wilson(correct, n)
    return Accuracy(top1=correct / n, low=low, high=high, correct=correct, n=n)


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a binomial fraction, good near 0 and 1 too. Wilson 1927.

    https://doi.org/10.1080/01621459.1927.10502953

    >>> [round(bound, 4) for bound in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    checks.integer("n", n, low=1)
    checks.integer("successes", successes, low=0, high=n)
    checks.fraction("confidence", confidence, zero=False)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, middle - half)  # exact, where rounding is not
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


def compare(baseline: Predictions, compressed: Predictions) -> Comparison:
    """The two models on the same samples; DataError if the samples or classes differ."""
    same = baseline.outputs.shape == compressed.outputs.shape
    if not same or not np.array_equal(baseline.labels, compressed.labels):
        raise DataError(
            "baseline and compressed were not run on the same samples: outputs "
            f"{list(baseline.outputs.shape)} and {list(compressed.outputs.shape)}, labels "
            f"{'equal' if np.array_equal(baseline.labels, compressed.labels) else 'different'}"
        )
    right = baseline.classes == baseline.labels
    right_compressed = compressed.classes == compressed.labels
    lost = int((right & ~right_compressed).sum())
    won = int((~right & right_compressed).sum())
    n = len(baseline.labels)
    low, high = drop_interval(lost, won, n)
    return Comparison(
        n=n,
        agreement=float((baseline.classes == compressed.classes).mean()),
        kl=kl_divergence(baseline.outputs, compressed.outputs),
        drop=100 * (lost - won) / n,
        drop_low=100 * low,
        drop_high=100 * high,
        only_baseline=lost,
        only_compressed=won,
        p_value=mcnemar(lost, won),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two classifiers err equally often. McNemar 1947.

    Given the samples on which exactly one of them is right, each is as likely to be it.
    https://doi.org/10.1007/BF02295996

    >>> mcnemar(1, 4)
    0.375
    """
    from scipy.stats import binomtest  # half a second to import, for this alone

    checks.integer("only_first", only_first, low=0)
    checks.integer("only_second", only_second, low=0)
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def drop_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """95 % interval of (lost - won) / n over n paired samples, adjusted as Agresti & Min 2005.

    Half a sample is added to each of the four cells. https://doi.org/10.1002/sim.1781

    >>> [round(bound, 4) for bound in drop_interval(15, 5, 100)]
    [0.0121, 0.184]
    """
    total, up, down = n + 2, lost + 0.5, won + 0.5
    middle = (up - down) / total
    spread = math.sqrt((up + down) - (up - down) ** 2 / total) / total
    half = NormalDist().inv_cdf(0.975) * spread
    return max(-1.0, middle - half), min(1.0, middle + half)


def kl_divergence(reference: Floats, other: Floats) -> float:
    """Mean over samples of KL(softmax(reference) || softmax(other)), in nats.

    >>> kl_divergence(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    0.0
    """
    p, q = _log_softmax(reference), _log_softmax(other)
    return max(0.0, float((np.exp(p) * (p - q)).sum(axis=1).mean()))  # >= 0 but for rounding


def _log_softmax(outputs: Floats) -> npt.NDArray[np.float64]:
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
