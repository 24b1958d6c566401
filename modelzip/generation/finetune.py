"""Fine-tuning a prepared generator."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from modelzip.core.prepare import Prepared
from modelzip.core.running import evaluating
from modelzip.data.base import generator_for
from modelzip.errors import ModelError, SettingError
from modelzip.generation.companion import Given
from modelzip.train.loop import make_optimizer
from modelzip.train.loss import learning_rate, set_rate
from modelzip.train.processes import Processes, placed, uses_bfloat16
from modelzip.train.randomness import own_randomness, seed_all
from modelzip.train.settings import FineTune

_FOLLOWED = (
    "epochs", "steps", "lr", "optimizer", "momentum", "weight_decay", "schedule", "warmup",
    "distill", "distill_weight", "clip_norm", "precision", "keep",
)  # fmt: skip


def check_settings(settings: FineTune) -> None:
    """SettingError where `settings` ask for what is for classifiers.

    >>> check_settings(FineTune(steps=1))
    Traceback (most recent call last):
    modelzip.errors.SettingError: a generator is left as the last step leaves it; give keep: last
    """
    if settings.keep != "last":
        raise SettingError("a generator is left as the last step leaves it; give keep: last")
    for field in dataclasses.fields(settings):
        if field.name not in _FOLLOWED and getattr(settings, field.name) != field.default:
            raise SettingError(f"{field.name} is for classifiers; a generator has no use for it")


def check_fits(settings: FineTune, given: Given) -> None:
    """SettingError where `settings` would have the generator learn what nobody wants of it."""
    if not given.paired and _share(settings) < 1:
        raise SettingError(
            "finetune: with this companion no image is the right one for a code; give distill: "
            "true and distill_weight: 1.0"
        )


def steps_of(settings: FineTune, given: Given, *, batch_size: int) -> int:
    """Optimizer steps that `finetune_generator` takes with these arguments."""
    if settings.steps is not None:
        return settings.steps
    per_epoch = max(1, len(given.train.codes) // batch_size)
    return max(1, round((settings.epochs or 0.0) * per_epoch))


def finetune_generator(
    prepared: Prepared,
    given: Given,
    settings: FineTune,
    *,
    batch_size: int,
    seed: int,
    teacher: nn.Module | None = None,
) -> float:
    """Train `prepared.model` in place, and leave it in eval mode; the mean loss of the last tenth.

    The loss is that of `given`, against its images; with `settings.distill`, and in the share
    `distill_weight`, against what `teacher` makes of the same codes.

    Raises:
        SettingError: settings that are for classifiers or do not fit `given`, or `distill` without
            a teacher.
        ModelError: the loss is not finite.
    """
    check_settings(settings)
    check_fits(settings, given)
    if settings.distill and teacher is None:
        raise SettingError("distill is true, but there is no teacher; pass teacher=original_model")
    share = _share(settings)
    processes = Processes()
    total = steps_of(settings, given, batch_size=batch_size)
    optimizer = make_optimizer(prepared.model, settings)
    losses = []
    with ExitStack() as stack:
        stack.enter_context(own_randomness(processes.device))
        stack.enter_context(placed(prepared.model, processes.device))
        if teacher is not None:
            stack.enter_context(placed(teacher, processes.device))
        half = uses_bfloat16(settings.precision, processes.device)
        autocast = torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=half)
        seed_all(seed)
        prepared.model.train()
        choices = _choices(len(given.train.codes), batch_size, seed=seed)
        for step, chosen in zip(range(1, total + 1), choices, strict=False):
            set_rate(optimizer, learning_rate(settings, step, total=total))
            pair = given.train.codes[chosen], given.train.images[chosen]
            codes, images = processes.moved(pair)
            with autocast:
                found = prepared.model(codes).float()
            loss = (1 - share) * given.loss(found, images)
            if teacher is not None and share:
                with evaluating(teacher):
                    wanted = teacher(codes)
                loss = loss + share * given.loss(found, wanted)
            loss = loss + prepared.penalty()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ModelError(f"the loss is {losses[-1]} at step {step} of {total}; lower lr")
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(prepared.model.parameters(), settings.clip_norm)
            optimizer.step()
            prepared.step()
    prepared.model.eval()
    prepared.model.zero_grad(set_to_none=True)
    last = losses[-max(1, total // 10) :]
    return sum(last) / len(last)


def _share(settings: FineTune) -> float:
    """The share of the loss that is against the teacher's images."""
    return settings.distill_weight if settings.distill else 0.0


def _choices(size: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """The samples of each step, without end: of a new order in each epoch, in whole batches."""
    count = min(batch_size, size)
    for epoch in itertools.count():
        order = torch.randperm(size, generator=generator_for(seed, epoch, 3))
        yield from torch.split(order[: size - size % count], count)
