"""A model and its compressed version, as files, on data that are not as clean as the test set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from modelzip.core import checks
from modelzip.data.base import Texts, generator_for, length, loader
from modelzip.data.corruptions import KINDS, PixelScale, corrupt, scale_of
from modelzip.data.text_corruptions import TEXTS, corrupt_text
from modelzip.errors import DataError, ExportError, ModelError
from modelzip.measure.accuracy import Accuracy, wilson
from modelzip.measure.attacks import attack
from modelzip.measure.bit_flips import flip_bits
from modelzip.measure.conditions import ATTACKS, CLEAN, FAULTS, Condition, Robustness
from modelzip.runtime.inputs import as_array
from modelzip.runtime.session import Session, load

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Batches = Sequence[tuple[Any, Tensor]]
BINS = 15  # of the calibration error, as in its paper
_NONE = -1  # the class of an answer that is not finite
_FAULT_SEED = 1000  # between the seeds of draws, more than there are of them


class Served(NamedTuple):
    """A model: the module, for gradients, and the file made from it, for everything else."""

    module: nn.Module
    path: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Of each sample: its class, or -1 if the outputs are not finite; how sure; its label."""

    classes: Ints
    confidence: Floats
    labels: Ints

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the class is the label: [n]."""
        return np.asarray(self.classes == self.labels)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """One model under one condition.

    `ece` is the expected calibration error, in [0, 1]; `by_class` the accuracy of each class, None
    where it has no sample.
    """

    accuracy: Accuracy
    ece: float
    by_class: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class RobustnessRow:
    """Both models under one condition.

    Attributes:
        condition, level: such as "jpeg" and 75; "clean" has the level 0.
        n: samples, times the draws where faults are drawn.
        flip_rate: fraction of them put in different classes by the two.
        worst_class: the class that the compressed model loses most in, or gains least.
        worst_change: that class's accuracy, compressed less original, in percentage points.
    """

    condition: str
    level: float
    n: int
    baseline: Reliability
    compressed: Reliability
    flip_rate: float
    worst_class: int
    worst_change: float

    def __str__(self) -> str:
        return str(Condition(kind=self.condition, level=self.level))


def check_fits(settings: Robustness, dataset: Dataset[Any]) -> None:
    """DataError or MissingExtraError where a condition cannot be met with these data."""
    inputs, _ = next(iter(loader(Subset(dataset, [0]), batch_size=1)))
    scale = scale_of(dataset)
    for condition in settings.conditions():
        if condition.kind in KINDS:
            _corrupted(inputs, condition, scale, seed=0, index=0)
        elif condition.kind in TEXTS:
            _rewritten(dataset, range(1), condition, seed=0)
        elif condition.kind in ATTACKS:
            scale.pixels(inputs)


def measure_robustness(
    settings: Robustness,
    baseline: Served,
    compressed: Served,
    dataset: Dataset[Any],
    *,
    classes: int,
    batch_size: int = 128,
    seed: int = 0,
    failed: Callable[[str], object] | None = None,
) -> tuple[RobustnessRow, ...]:
    """A row for the clean data and for each condition, both files run in onnxruntime.

    Each model is attacked through its own module, with gradients straight through rounding; where
    the compressed one withstands that, its gradients may only be poor: `fgsm_transfer` and
    `pgd_transfer` give it what was made to fool the original.

    Args:
        dataset: (inputs, label), of which `settings.samples` are taken, evenly spread.
        seed: of noise, random starts and faults.
        failed: is handed a line for a condition that cannot be measured, which is left out;
            without it that is an error.

    Raises:
        DataError, ModelError, ExportError: a condition cannot be measured.
    """
    run = _Run(settings, baseline, compressed, dataset, batch_size=batch_size, seed=seed)
    rows = []
    for condition in (Condition(kind=CLEAN), *settings.conditions()):
        try:
            for kind, before, after in run.answers(condition):
                rows.append(_row(kind, condition.level, before, after, classes=classes))
        except (DataError, ModelError, ExportError) as error:
            if failed is None:
                raise
            failed(f"{condition}: {error}")
    return tuple(rows)


class _Run:
    """The samples, and both files loaded."""

    def __init__(
        self,
        settings: Robustness,
        baseline: Served,
        compressed: Served,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.settings = settings
        self.models = (baseline, compressed)
        self.sessions = tuple(load(model.path) for model in self.models)
        self.scale = scale_of(dataset)
        self.seed = seed
        self.dataset, self.batch_size = dataset, batch_size
        self.batches = self._batches(dataset, _spread(dataset, settings.samples))
        self.attacked = self._batches(dataset, _spread(dataset, settings.attack_samples))

    def answers(self, condition: Condition) -> Iterator[tuple[str, Answers, Answers]]:
        """The name of the condition, and what original and compressed model answer under it."""
        if condition.kind in ATTACKS:
            yield from self._attacked(condition)
        elif condition.kind == FAULTS:
            before, after = (self._faulty(model, condition.level) for model in self.models)
            yield condition.kind, before, after
        else:
            batches = self._shifted(condition)
            before, after = (answers(session, batches) for session in self.sessions)
            yield condition.kind, before, after

    def _batches(self, dataset: Dataset[Any], chosen: Sequence[int]) -> Batches:
        return list(loader(Subset(dataset, chosen), batch_size=self.batch_size))

    def _shifted(self, condition: Condition) -> Batches:
        """The samples, corrupted alike for both models and every level."""
        if condition.kind in TEXTS:
            chosen = _spread(self.dataset, self.settings.samples)
            found = _rewritten(self.dataset, chosen, condition, seed=self.seed)
            return self._batches(found, range(len(chosen)))
        return [
            (_corrupted(inputs, condition, self.scale, seed=self.seed, index=index), targets)
            for index, (inputs, targets) in enumerate(self.batches)
        ]

    def _attacked(self, condition: Condition) -> Iterator[tuple[str, Answers, Answers]]:
        ours, theirs = (self._attack(model.module, condition) for model in self.models)
        original = answers(self.sessions[0], ours)
        yield condition.kind, original, answers(self.sessions[1], theirs)
        yield f"{condition.kind}_transfer", original, answers(self.sessions[1], ours)

    def _attack(self, module: nn.Module, condition: Condition) -> Batches:
        several = condition.kind == "pgd"
        return [
            (
                attack(
                    module,
                    inputs,
                    targets,
                    scale=self.scale,
                    epsilon=condition.level,
                    steps=self.settings.pgd_steps if several else 1,
                    generator=generator_for(self.seed, index) if several else None,
                ),
                targets,
            )
            for index, (inputs, targets) in enumerate(self.attacked)
        ]

    def _faulty(self, model: Served, rate: float) -> Answers:
        """The answers of `draws` files with faults, one after another."""
        found = []
        with tempfile.TemporaryDirectory() as scratch:
            for draw in range(self.settings.draws):
                path = Path(scratch) / f"{draw}.onnx"
                flip_bits(model.path, path, rate=rate, seed=_FAULT_SEED * self.seed + draw)
                found.append(answers(load(path), self.batches))
                path.unlink()
        return Answers(
            **{
                name: np.concatenate([getattr(one, name) for one in found])
                for name in ("classes", "confidence", "labels")
            }
        )


def answers(session: Session, batches: Iterable[tuple[Any, Tensor]]) -> Answers:
    """What `session` answers on `batches` of (inputs, labels); outputs need not be finite."""
    classes, confidence, labels = [], [], []
    for inputs, targets in batches:
        outputs = session.run(inputs)[0].astype(np.float64)
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(outputs).all(axis=1))
        safe = np.where(finite[:, None], outputs, 0.0)
        shifted = np.exp(safe - safe.max(axis=1, keepdims=True))
        classes.append(np.where(finite, safe.argmax(axis=1), _NONE))
        confidence.append(np.where(finite, (shifted / shifted.sum(1, keepdims=True)).max(1), 0.0))
        labels.append(as_array(targets))
    return Answers(
        classes=np.concatenate(classes).astype(np.int64),
        confidence=np.concatenate(confidence),
        labels=np.concatenate(labels).astype(np.int64),
    )


def calibration_error(
    confidence: Floats, right: npt.NDArray[np.bool_], *, bins: int = BINS
) -> float:
    """How far confidence is from accuracy, on average over samples in `bins` equal bins.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    checks.integer("bins", bins, low=1)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def by_class(found: Answers, *, classes: int) -> tuple[float | None, ...]:
    """The accuracy of each class; None for one without a sample."""
    counts = np.bincount(found.labels, minlength=classes)
    hits = np.bincount(found.labels, weights=found.right, minlength=classes)
    return tuple(float(h / c) if c else None for h, c in zip(hits, counts, strict=True))


def _row(
    kind: str, level: float, before: Answers, after: Answers, *, classes: int
) -> RobustnessRow:
    first, second = (_reliability(found, classes=classes) for found in (before, after))
    changes = [
        (100 * (new - old), number)
        for number, (old, new) in enumerate(zip(first.by_class, second.by_class, strict=True))
        if old is not None and new is not None
    ]
    worst_change, worst_class = min(changes)
    return RobustnessRow(
        condition=kind,
        level=level,
        n=len(before.labels),
        baseline=first,
        compressed=second,
        flip_rate=float((before.classes != after.classes).mean()),
        worst_class=worst_class,
        worst_change=worst_change,
    )


def _reliability(found: Answers, *, classes: int) -> Reliability:
    n, correct = len(found.labels), int(found.right.sum())
    low, high = wilson(correct, n)
    return Reliability(
        accuracy=Accuracy(top1=correct / n, low=low, high=high, correct=correct, n=n),
        ece=calibration_error(found.confidence, found.right),
        by_class=by_class(found, classes=classes),
    )


def _corrupted(
    inputs: Any, condition: Condition, scale: PixelScale, *, seed: int, index: int
) -> Any:
    if condition.kind == CLEAN:
        return inputs
    noise = generator_for(seed, index)
    return scale.inputs(corrupt(scale.pixels(inputs), condition.kind, condition.level, noise))


def _rewritten(
    dataset: Dataset[Any], chosen: Sequence[int], condition: Condition, *, seed: int
) -> Dataset[Any]:
    """The samples `chosen` with their texts corrupted; DataError for what has none."""
    while isinstance(dataset, Subset):
        chosen = [dataset.indices[index] for index in chosen]
        dataset = dataset.dataset
    if not isinstance(dataset, Texts):
        raise DataError(
            f"{condition} is for texts, which {type(dataset).__name__} does not have; let it "
            "derive from modelzip.data.Texts"
        )
    texts = [
        corrupt_text(
            dataset.texts[index],
            condition.kind,
            condition.level,
            np.random.default_rng((seed, index)),
        )
        for index in chosen
    ]
    return dataset.rewritten(chosen, texts)


def _spread(dataset: Dataset[Any], samples: int) -> list[int]:
    """Indices of so many samples, evenly spread to the end: a dataset may be in order of class."""
    size = length(dataset)
    count = min(size, samples)
    return [index * size // count for index in range(count)]
