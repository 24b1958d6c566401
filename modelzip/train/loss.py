"""What fine-tuning minimises, and the learning rate it does so with."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from modelzip.train.settings import FineTune

_STEP_DECAY = 0.1
_STEP_MILESTONES = (0.5, 0.75)  # fractions of the steps after warm-up, as He et al. 2016


def loss(
    outputs: Tensor, targets: Tensor, settings: FineTune, *, teacher: Tensor | None = None
) -> Tensor:
    """Mean cross entropy of logits [N, classes], mixed with the distillation term; a scalar.

    The distillation term is T^2 KL(teacher / T || outputs / T), Hinton et al. 2015, whose
    gradient then has the same size at every temperature T.

    >>> import torch
    >>> hard = loss(torch.zeros(2, 4), torch.tensor([0, 3]), FineTune(epochs=1))
    >>> round(float(hard), 4)  # log 4
    1.3863
    """
    hard = F.cross_entropy(outputs, targets, label_smoothing=settings.label_smoothing)
    if teacher is None:
        return hard
    t = settings.temperature
    soft = F.kl_div(
        F.log_softmax(outputs / t, dim=1),
        F.log_softmax(teacher / t, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    weight = settings.distill_weight
    return (1 - weight) * hard + weight * t * t * soft


def learning_rate(settings: FineTune, step: int, *, total: int) -> float:
    """The learning rate of optimizer step number `step`, counted from 1, of `total`.

    >>> settings = FineTune(steps=8, lr=1.0, warmup=0.5)
    >>> [round(learning_rate(settings, s, total=8), 3) for s in (1, 4, 5, 7)]
    [0.25, 1.0, 1.0, 0.5]
    """
    warmup = round(settings.warmup * total)
    if step <= warmup:
        return settings.lr * step / warmup
    progress = (step - 1 - warmup) / (total - warmup)
    if settings.schedule == "cosine":
        return cosine(settings.lr, progress)
    if settings.schedule == "step":
        passed = sum(progress >= milestone for milestone in _STEP_MILESTONES)
        return float(settings.lr * _STEP_DECAY**passed)
    return settings.lr


def cosine(lr: float, over: float) -> float:
    """The learning rate when the share `over` of a training is over, which began with `lr`.

    >>> cosine(0.1, 0.5)
    0.05
    """
    return 0.5 * lr * (1 + math.cos(math.pi * over))


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every group of parameters the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
