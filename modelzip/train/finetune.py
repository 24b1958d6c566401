"""Fine-tuning a prepared model: the four-line loop with everything a real run needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from modelzip.core.prepare import Prepared
from modelzip.data.base import Splits, length
from modelzip.train.settings import FineTune

__all__ = ["Epoch", "FineTune", "FineTuneReport", "finetune", "training_steps"]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One point of the learning curve; accuracies are fractions. Number 0 is before training."""

    number: int
    step: int
    train_loss: float | None
    validation_accuracy: float
    lr: float
    seconds: float
    settled: bool


@dataclass(frozen=True, kw_only=True)
class FineTuneReport:
    """How fine-tuning went, and which epoch the model was left at."""

    curve: tuple[Epoch, ...]
    kept: Epoch
    steps: int
    seconds: float
    precision: str
    device: str
    processes: int


def training_steps(settings: FineTune, splits: Splits, *, batch_size: int) -> int:
    """The number of optimizer steps that `finetune` takes with these arguments.

    >>> data = Splits(train=list(range(100)), validation=[], test=[], classes=2)
    >>> training_steps(FineTune(epochs=1.5), data, batch_size=10)
    15
    """
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None  # noqa: S101 - FineTune has one of the two
    return max(1, round(settings.epochs * steps_per_epoch(splits, batch_size=batch_size)))


def steps_per_epoch(splits: Splits, *, batch_size: int) -> int:
    """Full batches in one pass over the training data; one where there is less than a batch."""
    return max(1, length(splits.train) // batch_size)


def finetune(
    prepared: Prepared,
    splits: Splits,
    settings: FineTune,
    *,
    batch_size: int,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> FineTuneReport:
    """Train `prepared.model` in place."""
    raise NotImplementedError
