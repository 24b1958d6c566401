"""What a model answers, and how far from that a changed model's answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelzip.core.running import tensors
from modelzip.errors import ModelError

TEMPERATURE = 3.0  # softens the outputs, so that more than the largest of them counts


def logits(outputs: Any, targets: Tensor | None = None) -> Tensor:
    """The logits among the outputs of a model, one row for each answer: (answers, classes).

    They are the first tensor of floats of two dimensions or more. Classes lie along its last axis,
    or along its second one where `targets` have all its axes but that. One output alone is the
    logit of the second of two classes.

    Raises:
        ModelError: there is no such tensor, or one of its values is not finite.

    >>> logits(torch.tensor([[3.0]])).tolist()
    [[0.0, 3.0]]
    """
    found = (t for t in tensors(outputs) if t.is_floating_point() and t.dim() > 1)
    first = next(found, None)
    if first is None:
        raise ModelError("the model has no output of floats with at least two dimensions")
    if not bool(torch.isfinite(first).all()):
        raise ModelError("the model's output is NaN or infinite on the calibration data")
    second = torch.Size([*first.shape[:1], *first.shape[2:]])  # all axes but the second
    if targets is not None and second == targets.shape != first.shape[:-1]:
        first = first.movedim(1, -1)
    if first.shape[-1] == 1:
        first = torch.cat([torch.zeros_like(first), first], dim=-1)
    return first.flatten(0, -2)


def log_probabilities(
    outputs: Any, targets: Tensor | None = None, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Log-probabilities of the `logits`, softened at a temperature of 3, in float64.

    >>> log_probabilities(torch.tensor([[0.0, 0.0]])).exp().tolist()
    [[0.5, 0.5]]
    """
    return torch.log_softmax(logits(outputs, targets).double() / temperature, dim=-1)


@dataclass
class Tally:
    """Sums over batches of how a changed model's answers differ from the original's.

    >>> tally = Tally()
    >>> answers = log_probabilities(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    >>> tally.add(answers, answers.flip(1), torch.tensor([0, 0]))
    >>> tally.agreement, tally.accuracy
    (0.0, 0.5)
    """

    _divergence: float = 0.0
    _same: int = 0
    _right: int = 0
    _labelled: int = 0
    _count: int = 0

    def add(self, original: Tensor, changed: Tensor, targets: Tensor | None = None) -> None:
        """Count one batch of log-probabilities, and of labels where they fit the answers."""
        answers = changed.argmax(dim=-1)
        self._divergence += float((original.exp() * (original - changed)).sum())
        self._same += int((original.argmax(dim=-1) == answers).sum())
        self._count += len(original)
        if targets is None or targets.is_floating_point() or targets.numel() != len(answers):
            return
        self._right += int((answers == targets.flatten().to(answers.device)).sum())
        self._labelled += len(answers)

    @property
    def kl(self) -> float:
        """Mean Kullback-Leibler divergence from the original's answers, in nats for each."""
        return max(0.0, self._divergence / self._count)  # rounding may take it below

    @property
    def agreement(self) -> float:
        """Fraction of the answers that are the same."""
        return self._same / self._count

    @property
    def accuracy(self) -> float | None:
        """Fraction of the answers that are the label; None unless every one has a label."""
        return self._right / self._count if self._labelled == self._count else None
