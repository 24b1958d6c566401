"""The training loop: epochs, steps, validation, and the best model of them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import Dataset, Subset

from modelzip.core.prepare import Prepared
from modelzip.core.running import call, evaluating
from modelzip.data.base import Splits, length, loader
from modelzip.data.checking import logits
from modelzip.errors import DataError, ModelError
from modelzip.train import state as saved
from modelzip.train.features import Features, check_ran, feature_distance, recording
from modelzip.train.loss import learning_rate, loss, set_rate
from modelzip.train.processes import Processes
from modelzip.train.progress import Tell, bar
from modelzip.train.randomness import seed_all
from modelzip.train.settings import FineTune
from modelzip.train.source import Source
from modelzip.train.state import Epoch, State

_EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of `finetune`: its arguments, resolved."""

    prepared: Prepared
    splits: Splits
    source: Source
    settings: FineTune
    batch_size: int
    total: int
    teacher: nn.Module | None
    seed: int
    processes: Processes
    optimizer: Optimizer
    bfloat16: bool
    features: tuple[str, ...] = ()

    def train(self, checkpoint: Path | None, *, resume: bool, progress: bool) -> State:
        """Train from the start, or from where `checkpoint` stopped, and restore the best model."""
        began = time.perf_counter()
        model = self.prepared.model
        self.processes.agree(model)
        state = self._state(checkpoint if resume else None)
        if not state.curve:
            self._save_early(0)
            state.curve.append(self._point(0, 0, train_loss=None, since=began))
            if self.settings.keep == "best_or_start":
                self._keep_best(state)
        per_epoch = self.source.per_epoch
        epochs = math.ceil(self.total / per_epoch)
        with bar(total=self.total, epochs=epochs, shown=progress and self.processes.main) as tell:
            for number in range(state.done + 1, epochs + 1):
                since = time.perf_counter()
                first, last = (number - 1) * per_epoch, min(number * per_epoch, self.total)
                accuracy = state.curve[-1].validation_accuracy
                mean = self._epoch(number, first, last, accuracy=accuracy, tell=tell)
                self.processes.agree(model)  # running statistics differ between processes
                self._refuse_nan(last)
                state.curve.append(self._point(number, last, train_loss=mean, since=since))
                if self.settings.keep != "last":
                    self._keep_best(state)
                if checkpoint is not None and self.processes.main:
                    saved.save(
                        checkpoint,
                        state,
                        model=model,
                        optimizer=self.optimizer,
                        source=self.source,
                    )
                self.processes.wait()
        if state.best is not None:
            model.load_state_dict(state.best)
        model.eval()
        model.zero_grad(set_to_none=True)
        return state

    def _state(self, checkpoint: Path | None) -> State:
        """The state to go on from: that of `checkpoint` where there is one."""
        run = {
            "settings": json.loads(json.dumps(asdict(self.settings))),  # as it will be read back
            "batch_size": self.batch_size,
            "seed": self.seed,
            "samples": self.source.samples,
            "since_step": self.prepared.steps,
        }
        if checkpoint is None or not checkpoint.is_file():
            return State(run=run, curve=[])
        model = self.prepared.model
        found = saved.load(
            checkpoint, run=run, model=model, optimizer=self.optimizer, source=self.source
        )
        self.prepared.steps += found.curve[-1].step
        return found

    def _epoch(self, number: int, first: int, last: int, *, accuracy: float, tell: Tell) -> float:
        """Train from step `first` to step `last`; the mean loss."""
        seed_all(self.seed, number, self.processes.index)
        batches = self.source.batches(number)
        self.prepared.model.train()
        self.source.hold(self.prepared.model)
        losses = 0.0
        with (
            recording(self.prepared.model, self.features) as found,
            recording(self.teacher, self.features) as taught,
        ):
            for step, (inputs, targets) in zip(range(first + 1, last + 1), batches, strict=False):
                value = self._step(step, inputs, targets, features=(found, taught))
                losses += value
                tell(step=step, epoch=number, loss=value, accuracy=accuracy)
        return losses / (last - first)

    def _step(
        self, step: int, inputs: Any, targets: Tensor, *, features: tuple[Features, Features]
    ) -> float:
        rate = learning_rate(self.settings, step, total=self.total)
        set_rate(self.optimizer, rate)
        self._check_labels(targets)
        inputs, targets = self.processes.moved((inputs, targets))
        self.optimizer.zero_grad()
        outputs = self._outputs(self.prepared.model, inputs)
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = self._outputs(self.teacher, inputs)
        value = loss(outputs, targets, self.settings, teacher=taught) + self.prepared.penalty()
        if self.features:
            value = value + self.settings.feature_weight * self._distance(*features)
        value.backward()  # type: ignore[no-untyped-call]
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        mean = self.processes.average(parameters, value)
        if not math.isfinite(mean):
            raise ModelError(
                f"the loss is {mean} at step {step} of {self.total} (learning rate {rate:g}); "
                "lower lr, or set warmup or clip_norm. The last checkpoint stands"
            )
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        self.optimizer.step()
        self.prepared.step()
        self._save_early(step)
        return mean

    def _distance(self, found: Features, taught: Features) -> Tensor:
        check_ran(self.features, found, "student")
        check_ran(self.features, taught, "teacher")
        return feature_distance(found, taught, kind=self.settings.feature_kind)

    def _save_early(self, step: int) -> None:
        """Save the model for `rewind` if this is the step to do so."""
        at, path = self.settings.save_at, self.settings.save_to
        if at is None or path is None or not self.processes.main:
            return
        unit = 1 if self.settings.steps is not None else self.source.per_epoch
        if step == min(round(at * unit), self.total):
            self.prepared.save(path)

    def _outputs(self, model: nn.Module, inputs: Any) -> Tensor:
        device = self.processes.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bfloat16):
            output = call(model, inputs)
        return logits(output, model=model, classes=self.splits.classes).float()

    def _check_labels(self, targets: Tensor) -> None:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= self.splits.classes:
            raise DataError(
                f"a training label is {low if low < 0 else high}; with {self.splits.classes} "
                f"classes it must be 0 to {self.splits.classes - 1}"
            )

    def _point(self, number: int, step: int, *, train_loss: float | None, since: float) -> Epoch:
        accuracy = self._accuracy(self.splits.validation)
        return Epoch(
            number=number,
            step=step,
            train_loss=train_loss,
            validation_accuracy=accuracy,
            lr=learning_rate(self.settings, max(step, 1), total=self.total),
            seconds=time.perf_counter() - since,
            settled=self.prepared.settled(),
        )

    def _accuracy(self, dataset: Dataset[Any]) -> float:
        """Top-1, in float32 as the model will be converted; each process takes a part."""
        model = self.prepared.model
        mine = range(self.processes.index, length(dataset), self.processes.count)
        correct = 0
        batches = loader(Subset(dataset, mine), batch_size=_EVALUATION_BATCH) if mine else ()
        with evaluating(model):
            for batch in batches:
                inputs, targets = self.processes.moved(batch)
                output = logits(call(model, inputs), model=model, classes=self.splits.classes)
                correct += int((output.argmax(dim=1) == targets).sum())
        return self.processes.total([correct])[0] / length(dataset)

    def _keep_best(self, state: State) -> None:
        """Remember the model if this epoch is settled and as good as the best, or better.

        The model before training counts only where asked for: a pretrained one may have seen the
        validation slice, and would win by that alone.
        """
        here = state.curve[-1]
        best = -1.0 if state.kept is None else state.curve[state.kept].validation_accuracy
        if here.settled and here.validation_accuracy >= best:
            state.kept = here.number
            state.best = {k: v.clone() for k, v in self.prepared.model.state_dict().items()}

    def _refuse_nan(self, step: int) -> None:
        for name, tensor in self.prepared.model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ModelError(
                    f"{name} holds NaN or infinity at step {step} of {self.total}; lower lr, or "
                    "set warmup or clip_norm. The last checkpoint stands"
                )


def make_optimizer(model: nn.Module, settings: FineTune) -> Optimizer:
    """The optimizer that `settings` name, over every parameter that requires a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ModelError(f"{type(model).__name__} has no parameter that requires a gradient")
    # biases, norms and quantizer scales have one real dimension; decay would pull them to zero
    decayed = [p for p in trained if p.squeeze().ndim > 1]
    free = [p for p in trained if p.squeeze().ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.momentum)
    kind = Adam if settings.optimizer == "adam" else AdamW
    return kind(groups, lr=settings.lr)


def epoch_steps(splits: Splits, batch_size: int) -> int:
    """Full batches in one pass over the training data; one where there is less than a batch."""
    return max(1, length(splits.train) // batch_size)
