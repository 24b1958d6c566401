"""Applying passes to a model: prepare, then train, then convert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modelzip.core import checkpoint, surgery
from modelzip.core.base import Context, Need, Pass, PassReport
from modelzip.core.running import as_batches, evaluating
from modelzip.core.wrapped import refuse_wrapped
from modelzip.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A pass on a model, its context, and the optimizer step at which it was attached."""

    pass_: Pass
    context: Context
    since_step: int = 0


class Prepared:
    """A trainable model with passes attached; made by `prepare`."""

    def __init__(self, model: nn.Module, *, example_inputs: Any = None, seed: int = 0) -> None:
        self.model = model
        self.attached: list[Attached] = []
        self.steps = 0
        self.reports: tuple[PassReport, ...] = ()
        self._example_inputs = example_inputs
        self._seed = seed

    def add(
        self,
        pass_: Pass,
        *,
        calibration: Iterable[Any] | None = None,
        training_steps: int | None = None,
    ) -> None:
        """Attach one more pass to `self.model`; its schedule counts steps from now.

        A STRUCTURE pass replaces parameters, so build the optimizer afterwards.
        SettingError for an illegal order or an unmet need.
        """
        check_order([*(a.pass_ for a in self.attached), pass_])
        context = Context(
            example_inputs=self._example_inputs,
            calibration=() if calibration is None else as_batches(calibration),
            training_steps=training_steps,
            seed=self._seed,
            earlier=[(a.pass_.name, a.context.record) for a in self.attached],
        )
        check_needs(pass_, context)
        self.model = pass_.prepare(self.model, context)
        self.attached.append(Attached(pass_=pass_, context=context, since_step=self.steps))

    def penalty(self) -> Tensor | float:
        """The sum of what the passes add to the loss."""
        return sum((a.pass_.penalty(self.model) for a in self.attached), 0.0)

    def step(self) -> None:
        """Follow every schedule; call once after each optimizer step."""
        self.steps += 1
        for attached in self.attached:
            attached.pass_.step(self.model, self.steps - attached.since_step)

    def settled(self) -> bool:
        """Whether every schedule has ended; before that, no epoch is the best one yet."""
        return all(a.pass_.settled(self.model, self.steps - a.since_step) for a in self.attached)

    def convert(self) -> nn.Module:
        """A plain module in eval mode with nothing attached; `self.model` stays trainable.

        What each pass changed is in `self.reports` afterwards.
        """
        model = surgery.clone(self.model).eval()
        with evaluating(model):
            self.reports = tuple(a.pass_.convert(model, a.context) for a in self.attached)
        for parameter in model.parameters():
            parameter.grad = None
        return model

    def save(self, path: str | Path) -> None:
        """Write model, passes and step to one safetensors file; `load` reads it."""
        header = {
            "step": self.steps,
            "passes": [
                {
                    "name": a.pass_.name,
                    "settings": a.pass_.settings(),
                    "record": a.context.record,
                    "training_steps": a.context.training_steps,
                    "since_step": a.since_step,
                }
                for a in self.attached
            ],
        }
        checkpoint.write(path, self.model.state_dict(), header)


def prepare(
    model: nn.Module,
    passes: Sequence[Pass],
    *,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    training_steps: int | None = None,
    seed: int = 0,
    inplace: bool = False,
) -> Prepared:
    """Attach `passes`, in order, to a copy of `model`.

    Args:
        example_inputs: one batch of inputs: a tensor, a tuple of arguments, or a dict of keywords.
        calibration: batches as a loader yields them, (inputs, targets), or bare inputs.
        training_steps: optimizer steps to come, for passes with a schedule.
        inplace: work on `model` itself, after a trial on a copy. Still use the result's `.model`,
            since some passes rebuild the model around the same layers.

    Raises:
        SettingError: no passes, an illegal order, or a need that is not met.
        ModelError: `model` is compiled, scripted, exported, or wrapped for several devices.
        SelectionError, ModelError, DataError: from a pass; `model` is untouched.

    >>> import modelzip as mz
    >>> zipped = mz.prepare(nn.Linear(4, 2), [mz.MagnitudePrune(sparsity=0.5)])
    >>> int((zipped.convert().weight == 0).sum())
    4
    """
    if not passes:
        raise SettingError("passes is empty; give at least one")
    check_order(passes)
    refuse_wrapped(model)
    batches = None if calibration is None else as_batches(calibration)

    def attach_all(target: nn.Module) -> Prepared:
        prepared = Prepared(target, example_inputs=example_inputs, seed=seed)
        for pass_ in passes:
            prepared.add(pass_, calibration=batches, training_steps=training_steps)
        return prepared

    prepared = attach_all(surgery.clone(model))
    return attach_all(model) if inplace else prepared


def load_prepared(
    make_model: Callable[[], nn.Module],
    path: str | Path,
    *,
    example_inputs: Any = None,
    seed: int = 0,
) -> Prepared:
    """The `Prepared` that `save` wrote, around a model from `make_model()`, to train further."""
    header, read_tensors = checkpoint.read(path)
    prepared = Prepared(make_model(), example_inputs=example_inputs, seed=seed)
    for entry in header.passes:
        context = Context(
            example_inputs=example_inputs,
            training_steps=entry.training_steps,
            seed=seed,
            record=entry.record,
        )
        prepared.model = entry.pass_.restore(prepared.model, context)
        prepared.attached.append(
            Attached(pass_=entry.pass_, context=context, since_step=entry.since_step)
        )
    prepared.steps = header.step
    read_tensors(prepared.model)
    return prepared


def load(make_model: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """The converted model of a checkpoint, rebuilt in a fresh process from `make_model()`.

    Args:
        make_model: builds the original model, weights aside.
        path: a file that `Prepared.save` or a recipe run wrote.

    Raises:
        SettingError: the file is missing, damaged, or does not fit the model.

    >>> import modelzip as mz, tempfile, pathlib
    >>> zipped = mz.prepare(nn.Linear(4, 2), [mz.MagnitudePrune(sparsity=0.5)])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> zipped.save(path)
    >>> type(mz.load(lambda: nn.Linear(4, 2), path)).__name__
    'Linear'
    """
    return load_prepared(make_model, path).convert()


def check_order(passes: Sequence[Pass]) -> None:
    """SettingError if a pass follows one of a later stage that is still attached."""
    before: Pass | None = None
    for after in passes:
        if before is not None and after.stage < before.stage:
            raise SettingError(
                f"{after.name} ({after.stage.name}) must come before {before.name} "
                f"({before.stage.name}): stages run in the order "
                "STRUCTURE, WEIGHT, ACTIVATION, PRECISION"
            )
        if after.attaches:
            before = after


def check_needs(pass_: Pass, context: Context) -> None:
    """SettingError naming what `pass_` needs and `context` lacks."""
    have = {
        Need.EXAMPLE_INPUTS: (context.example_inputs is not None, "example_inputs=..."),
        Need.CALIBRATION: (bool(context.calibration), "calibration=batches"),
        Need.TRAINING: (context.training_steps is not None, "training_steps=..."),
    }
    for need, (there, argument) in have.items():
        if need in pass_.requires and not there:
            label = str(need.name).lower().replace("_", " ")
            raise SettingError(
                f"{pass_.name} needs {label} with these settings; pass {argument} to prepare, "
                "or put it where the recipe gives it"
            )
