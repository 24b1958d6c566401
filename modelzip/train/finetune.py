"""Fine-tuning a prepared model: the four-line loop, with everything a real run needs."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from modelzip.core.checkpoint import is_checkpoint
from modelzip.core.prepare import Prepared
from modelzip.core.running import evaluating
from modelzip.data.base import Splits, length, loader
from modelzip.data.corrupted import Corrupted
from modelzip.errors import DataError, SettingError
from modelzip.train.features import feature_names
from modelzip.train.generator import Generated
from modelzip.train.loop import Run, epoch_steps, make_optimizer
from modelzip.train.processes import Processes, placed, uses_bfloat16
from modelzip.train.randomness import own_randomness
from modelzip.train.settings import FineTune
from modelzip.train.source import Stored
from modelzip.train.state import Epoch
from modelzip.train.synthetic import one_float_tensor

__all__ = ["Epoch", "FineTune", "FineTuneReport", "finetune", "training_steps"]


@dataclass(frozen=True, kw_only=True)
class FineTuneReport:
    """How fine-tuning went: the learning curve, and the epoch the model was left at."""

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
    return max(1, round((settings.epochs or 0.0) * epoch_steps(splits, batch_size)))


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
    """Train `prepared.model` in place and leave it at its best epoch on the validation data.

    Only epochs after which every pass has settled are candidates; without one, the last stands.
    Runs on the device, and among the processes, that `accelerate launch` gives; `batch_size` is
    that of all processes together. The model comes back to its own device, in eval mode.

    Args:
        batch_size: samples of one optimizer step; an incomplete last batch is left out.
        teacher: the model to distill from, if `settings.distill`; usually the original.
        checkpoint: a file to write after each epoch; it stands when the run is stopped.
        resume: go on from `checkpoint` if it is there; the result is that of a run in one piece.
            `prepared` must be as it was before the run.
        seed: of the order, the augmentation and the layers' own randomness.
        progress: show a progress bar on stderr.

    Raises:
        SettingError: arguments that do not fit together, or a checkpoint of another run.
        DataError, ModelError: labels out of range, outputs of the wrong shape, or a loss that is
            not finite; the last checkpoint stands.

    >>> import modelzip as mz
    >>> from modelzip.data import digits
    >>> from modelzip.zoo import digits_cnn
    >>> zipped = mz.prepare(digits_cnn(width=4), [mz.MagnitudePrune(sparsity=0.5)])
    >>> report = finetune(
    ...     zipped, digits(), mz.FineTune(steps=10, lr=0.1), batch_size=64, progress=False
    ... )
    >>> report.steps, len(report.curve)
    (10, 2)
    """
    began = time.perf_counter()
    processes = Processes()
    _check_arguments(splits, settings, batch_size, teacher, checkpoint, processes)
    with ExitStack() as stack:
        stack.enter_context(own_randomness(processes.device))
        stack.enter_context(placed(prepared.model, processes.device))
        if teacher is not None:
            stack.enter_context(placed(teacher, processes.device))
            stack.enter_context(evaluating(teacher))
            stack.enter_context(torch.enable_grad())  # for the student
        source = _source(splits, settings, processes, teacher, batch_size=batch_size, seed=seed)
        run = Run(
            prepared=prepared,
            splits=splits,
            source=source,
            settings=settings,
            batch_size=source.batch_size,
            total=training_steps(settings, splits, batch_size=batch_size),
            teacher=teacher if settings.distill else None,
            seed=seed,
            processes=processes,
            optimizer=make_optimizer(prepared.model, settings),
            bfloat16=uses_bfloat16(settings.precision, processes.device),
            features=()
            if teacher is None
            else feature_names(prepared.model, teacher, settings.distill_features),
        )
        state = run.train(checkpoint, resume=resume, progress=progress)
    return FineTuneReport(
        curve=tuple(state.curve),
        kept=state.curve[-1 if state.kept is None else state.kept],
        steps=run.total,
        seconds=time.perf_counter() - began,
        precision="bfloat16" if run.bfloat16 else "float32",
        device=str(processes.device),
        processes=processes.count,
    )


def _source(
    splits: Splits,
    settings: FineTune,
    processes: Processes,
    teacher: nn.Module | None,
    *,
    batch_size: int,
    seed: int,
) -> Generated | Stored:
    if settings.data == "generator" and teacher is not None:
        example, _ = next(iter(loader(splits.validation, batch_size=1)))
        return Generated(
            teacher=teacher,
            shape=one_float_tensor(example).shape[1:],
            classes=splits.classes,
            batch_size=batch_size,
            warmup=settings.generator_warmup,
            seed=seed,
            device=processes.device,
            bfloat16=uses_bfloat16(settings.precision, processes.device),
        )
    train = splits.train
    if settings.augment is not None:
        train = Corrupted(train, settings.augment, share=settings.augment_share, seed=seed)
    size = min(batch_size, length(train))
    return Stored(dataset=train, batch_size=size, seed=seed, processes=processes)


def _check_arguments(
    splits: Splits,
    settings: FineTune,
    batch_size: int,
    teacher: nn.Module | None,
    checkpoint: Path | None,
    processes: Processes,
) -> None:
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size}")
    generated = settings.data == "generator"
    for name in ("validation",) if generated else ("train", "validation"):
        if length(getattr(splits, name)) == 0:
            raise DataError(f"the {name} data are empty")
    if generated and processes.count > 1:
        raise SettingError(
            f"data: generator trains in one process, and there are {processes.count}; start one"
        )
    if not generated and min(batch_size, length(splits.train)) % processes.count:
        raise SettingError(
            f"batch_size must be a multiple of the {processes.count} processes, got {batch_size}"
        )
    if settings.distill and teacher is None:
        raise SettingError("distill is true, but there is no teacher; pass teacher=original_model")
    if checkpoint is not None and not checkpoint.parent.is_dir():
        raise SettingError(f"there is no folder {checkpoint.parent} for the checkpoint; create it")
    if settings.save_to is not None:
        _check_place(settings.save_to)


def _check_place(save_to: str) -> None:
    """SettingError where nothing can be saved, or something of the user's would be lost."""
    path = Path(save_to)
    if not path.parent.is_dir():
        raise SettingError(f"there is no folder for save_to={save_to!r}; create it")
    if path.exists() and not is_checkpoint(path):
        raise SettingError(
            f"save_to={save_to!r} is there, and no checkpoint of modelzip; give another name"
        )
