"""Settings of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelzip.core import checks
from modelzip.data.corruptions import check_ranges
from modelzip.errors import SettingError

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")
FEATURE_KINDS = ("attention", "values")
KEEPS = ("best", "best_or_start", "last")
DATA = ("train", "generator")
PRECISIONS = ("auto", "float32", "bfloat16")
_NEEDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # settings, and what they are part of
    "momentum": ("optimizer", lambda optimizer: optimizer == "sgd"),
    "distill_weight": ("distill", bool),
    "temperature": ("distill", bool),
    "feature_kind": ("distill_features", bool),
    "feature_weight": ("distill_features", bool),
    "generator_warmup": ("data", lambda data: data == "generator"),
    "augment_share": ("augment", bool),
}


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
        distill_features: globs over module names, or "type:Conv2d", of modules that teacher and
            student have, and whose outputs are to resemble each other too.
        feature_kind: "attention" compares where outputs [N, C, H, W] or [N, T, C] are large, for
            any number of channels. Zagoruyko & Komodakis 2017, https://arxiv.org/abs/1612.03928.
            "values" compares all values, normalised by sample, for equal shapes. Romero et al.
            2015, https://arxiv.org/abs/1412.6550.
        feature_weight: of the mean squared distance of features in the loss, above 0.
        keep: the model to end with: that of the "best" epoch on the validation data; the same with
            the model before training as a candidate, "best_or_start", so that training never
            loses; or that of the "last". A pretrained model that has seen the validation slice is
            hard to beat there.
        data: "train" is the training data; "generator" none, but images that a generator learns to
            make from the teacher's answers and batch norms, whose statistics the student keeps.
            It needs `distill` and `steps`. Xu et al. 2020, https://arxiv.org/abs/2003.03603.
        generator_warmup: steps that the generator trains alone, before the first of those.
        augment: corruptions of training images and the levels, [low, high], that are drawn between,
            such as {"jpeg": [50, 95]}; `corruptions.KINDS` lists them. Validation stays clean.
        augment_share: the fraction of images that each epoch corrupts, in (0, 1].
        clip_norm: largest L2 norm of all gradients together; none by default.
        precision: "auto" is bfloat16 autocast where the processor computes it natively, else
            float32. Weights, optimizer and validation are float32 in any case.
        save_at: when to save the early weights that `rewind` goes back to: epochs from the start
            of this fine-tuning, or steps where its length is in steps; 0 is before training.
        save_to: the file to save them to, a checkpoint, relative to the current folder.

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
    distill_features: tuple[str, ...] = ()
    feature_kind: str = "attention"
    feature_weight: float = 1.0
    keep: str = "best"
    data: str = "train"
    generator_warmup: int = 200
    augment: Mapping[str, Sequence[float]] | None = None
    augment_share: float = 0.6
    clip_norm: float | None = None
    precision: str = "auto"
    save_at: float | None = None
    save_to: str | None = None

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
        names = checks.names("distill_features", self.distill_features)
        object.__setattr__(self, "distill_features", names)
        if names and not self.distill:
            raise SettingError(f"distill_features={list(names)} needs distill: true")
        checks.choice("feature_kind", self.feature_kind, FEATURE_KINDS)
        checks.positive("feature_weight", self.feature_weight)
        checks.choice("keep", self.keep, KEEPS)
        checks.choice("data", self.data, DATA)
        checks.integer("generator_warmup", self.generator_warmup, low=0)
        if self.data == "generator":
            self._check_generator()
        if self.augment is not None:
            object.__setattr__(self, "augment", check_ranges("augment", self.augment))
        checks.fraction("augment_share", self.augment_share, zero=False, one=True)
        if self.clip_norm is not None:
            checks.positive("clip_norm", self.clip_norm)
        checks.choice("precision", self.precision, PRECISIONS)
        self._check_saving()
        self._check_used()

    def _check_used(self) -> None:
        """SettingError for a setting that would do nothing."""
        for name, (switch, on) in _NEEDS.items():
            given, default = getattr(self, name), getattr(FineTune, name)
            if given != default and not on(getattr(self, switch)):
                raise SettingError(
                    f"{name}={given!r} does nothing with {switch}={getattr(self, switch)!r}"
                )

    def _check_generator(self) -> None:
        if not self.distill:
            raise SettingError(
                "data: generator needs distill: true; it learns from the teacher alone"
            )
        if self.steps is None:
            raise SettingError(
                f"data: generator has no end, so epochs={self.epochs} says nothing; give steps"
            )
        if self.augment is not None:
            raise SettingError("augment is for training images, not for data: generator")

    def _check_saving(self) -> None:
        if (self.save_at is None) != (self.save_to is None):
            raise SettingError(
                f"save_at and save_to go together, got save_at={self.save_at!r} and "
                f"save_to={self.save_to!r}"
            )
        if self.save_at is None:
            return
        checks.positive("save_at", self.save_at, zero=True)
        if not isinstance(self.save_to, str) or not self.save_to:
            raise SettingError(f"save_to must be the path of a file to write, got {self.save_to!r}")
        if self.steps is not None:
            checks.integer("save_at", self.save_at, low=0)
        length = self.epochs if self.steps is None else self.steps
        if length is not None and self.save_at > length:
            raise SettingError(f"save_at={self.save_at} is after the end of training, {length}")
