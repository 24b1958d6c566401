"""Settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from modelzip.core import checks
from modelzip.errors import SettingError

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")
KEEPS = ("best", "best_or_start", "last")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Settings of fine-tuning; give `epochs` or `steps`.

    Args:
        epochs: passes over the training data, above 0; may be a fraction.
        steps: optimizer steps, in place of epochs.
        lr: peak learning rate.
        optimizer: "sgd", "adam" or "adamw".
        momentum: of SGD, a fraction in [0, 1).
        weight_decay: on tensors of two or more real dimensions; biases, norms and scales go free.
        schedule: "cosine" to zero, "step" (times 0.1 at half and at three quarters), "constant".
        warmup: fraction of the steps over which the learning rate rises linearly from zero.
        label_smoothing: a fraction in [0, 1). Szegedy et al. 2016, https://arxiv.org/abs/1512.00567.
        distill: also match the teacher's softened outputs. Hinton et al. 2015,
            https://arxiv.org/abs/1503.02531.
        distill_weight: share of the distillation term in the loss, in (0, 1].
        temperature: that both outputs are divided by before the softmax, above 0.
        keep: the model to end with: that of the "best" epoch on the validation data; the same with
            the model before training as a candidate, "best_or_start", so that training never
            loses; or that of the "last". A pretrained model that has seen the validation slice is
            hard to beat there.
        clip_norm: largest L2 norm of all gradients together; none by default.
        precision: "auto" is bfloat16 autocast where the processor computes it natively, else
            float32. Weights, optimizer and validation are float32 in any case.

    >>> FineTune(epochs=2, lr=0.02).schedule
    'cosine'
    >>> FineTune(epochs=2, steps=100)
    Traceback (most recent call last):
    modelzip.errors.SettingError: finetune takes epochs or steps, got epochs=2 and steps=100
    """

    epochs: float | None = None
    steps: int | None = None
    lr: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    distill: bool = False
    distill_weight: float = 0.9
    temperature: float = 4.0
    keep: str = "best"
    clip_norm: float | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise SettingError(
                "finetune takes epochs or steps, got "
                + ("neither" if self.epochs is None else f"epochs={self.epochs} and ")
                + (f"steps={self.steps}" if self.steps is not None else "")
            )
        if self.epochs is not None:
            checks.positive("epochs", self.epochs)
        if self.steps is not None:
            checks.integer("steps", self.steps, low=1)
        checks.positive("lr", self.lr)
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.fraction("momentum", self.momentum)
        checks.positive("weight_decay", self.weight_decay, zero=True)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.fraction("warmup", self.warmup)
        checks.fraction("label_smoothing", self.label_smoothing)
        checks.flag("distill", self.distill)
        checks.fraction("distill_weight", self.distill_weight, zero=False, one=True)
        checks.positive("temperature", self.temperature)
        checks.choice("keep", self.keep, KEEPS)
        if self.clip_norm is not None:
            checks.positive("clip_norm", self.clip_norm)
        checks.choice("precision", self.precision, PRECISIONS)
