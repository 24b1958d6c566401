"""Running a pruned model against the masked original."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.channels.attributes import Attributes
from modelzip.core.channels.jitter import perturbed, perturbed_inputs
from modelzip.core.channels.masked import (
    Removed,
    Setup,
    in_float64,
    masked_reads,
    masked_weights,
    outputs,
    outputs_with,
)
from modelzip.core.channels.resize import resize
from modelzip.core.channels.slots import Slot, widths
from modelzip.core.running import rows
from modelzip.errors import ModelError, first_line

Mask = Callable[[nn.Module, Setup, Removed], list[Tensor] | None]
T = TypeVar("T")
_ROWS = 2  # of the example batch: enough to tell channels apart
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the largest output; coarser types 5 %
_SMALL = 20_000_000  # parameters that may be copied to float64


def kept_channels(model: nn.Module, removed: Removed) -> dict[Slot, list[int]]:
    """The channels of each slot in `removed` that stay, ascending."""
    kept = {}
    for slot, index in removed.items():
        stays = torch.ones(widths(model.get_submodule(slot.layer))[slot.side], dtype=torch.bool)
        stays[index] = False
        kept[slot] = stays.nonzero().flatten().tolist()
    return kept


class Trial:
    """Compares `model` pruned with `model` masked, on copies, in eval mode.

    The copies share all tensors that are the same. Where rounding could explain a difference, small
    models are compared again in float64. What could hide a wrong channel is perturbed, such as a
    scale still at zero, if the model takes that. With `training`, a pass in training mode is tried
    too, on a batch of another size where the original takes one.

    >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    >>> trial = Trial(model, torch.ones(1, 1))
    >>> trial.fault({Slot("0", "out"): torch.tensor([1]), Slot("1", "in"): torch.tensor([1])})
    >>> trial.fault({Slot("1", "in"): torch.tensor([1])})
    'pruned, it fails: mat1 and mat2 shapes cannot be multiplied (2x2 and 1x1)'
    """

    def __init__(self, model: nn.Module, inputs: Any, *, training: bool = True) -> None:
        self._model, self._trained = model, training
        floats = [p for p in model.parameters() if p.is_floating_point()]
        self._small = sum(p.numel() for p in floats) <= _SMALL
        self._coarse = any(p.dtype not in _TOLERANCE for p in floats)
        self._setups = self._ways(inputs)
        self._settled = False  # whether the original is known to run as set up
        self._masked: tuple[Removed, dict[Mask, list[Tensor] | None]] | None = None

    @functools.cached_property
    def _setup(self) -> Setup:
        return next(self._setups)

    def fault(self, removed: Removed, attributes: Attributes | None = None) -> str | None:
        """What is wrong with the model once the channels `removed` are gone; None if nothing.

        Args:
            attributes: integer attributes of modules that change with them.

        Raises:
            ModelError: the model does not run on the example inputs.
        """
        while True:
            problem = self._problem(removed, attributes or {})
            if problem is None or self._settled:
                return problem
            self._settle()

    def _ways(self, inputs: Any) -> Iterator[Setup]:
        """Setups, the next one for when the model does not run in those before."""
        for given in (rows(inputs, _ROWS), inputs):
            for jitter in (True, False):
                for double in (True, False) if self._coarse and self._small else (False,):
                    values = perturbed(self._model) if jitter else {}
                    changed = perturbed_inputs(given) if jitter else given
                    setup = Setup(changed, values)
                    yield in_float64(self._model, setup) if double else setup

    def _settle(self) -> None:
        """Make sure that the original runs as set up, or take the next setup."""
        error = _unfit(self._model, self._setup)
        if error is None:
            self._settled = True
            return
        following = next(self._setups, None)
        if following is None:
            name = type(self._model).__name__
            raise ModelError(f"{name} does not run on the example inputs: {error}")
        self._setup, self._masked = following, None

    def _problem(self, removed: Removed, attributes: Attributes) -> str | None:
        setup = self._setup
        try:
            pruned = _pruned(self._model, setup, removed, attributes)
            ours = outputs(pruned, setup.given)
            problem = self._unlike(ours, removed)
            if problem and self._small:  # rounding may be all there is to it
                problem = self._exactly(problem, removed, attributes)
            if problem is None and self._trained:
                problem = self._training(pruned)
        except Exception as error:  # the model's own code may raise anything
            return f"pruned, it fails: {first_line(error)}"
        return problem

    def _exactly(self, problem: str, removed: Removed, attributes: Attributes) -> str | None:
        """`problem`, or what is wrong in float64 if the original runs in it."""
        exact = in_float64(self._model, self._setup)
        if _unfit(self._model, exact) is not None:
            return problem
        pruned = _pruned(self._model, exact, removed, attributes)
        masked = masked_weights(self._model, exact, removed)
        return _difference(outputs(pruned, exact.given), masked)

    def _unlike(self, ours: list[Tensor], removed: Removed) -> str | None:
        """How `ours` differ from what the masked model returns, remembered for these channels."""
        if self._masked is None or self._masked[0] is not removed:
            self._masked = removed, {}
        problem = None
        for mask in (masked_reads, masked_weights):
            if mask not in self._masked[1]:
                self._masked[1][mask] = mask(self._model, self._setup, removed)
            theirs = self._masked[1][mask]
            if theirs is not None and (problem := _difference(ours, theirs)) is None:
                return None
        return problem

    def _training(self, pruned: nn.Module) -> str | None:
        """What is wrong in training mode, which `pruned` is left in."""
        pruned.train()
        for given in (rows(self._setup.given, _ROWS + 1), self._setup.given):
            if _attempt(pruned, given) is not None:
                return None
            if _attempt(_twin(self._model, self._setup.values).train(), given) is not None:
                return "pruned, it fails in training mode"
        return None


def faults(items: Sequence[T], fault: Callable[[Sequence[T]], str | None]) -> dict[T, str]:
    """The items to leave out so that `fault` of the rest is None, each with its reason.

    Halves the list where it fails, so that few faults take few trials.

    >>> faults([1, 2, 3, 4], lambda items: "odd" if 3 in items else None)
    {3: 'odd'}
    """
    if not items or (problem := fault(items)) is None:
        return {}
    found = _split(list(items), problem, fault)
    good = [item for item in items if item not in found]
    if good and fault(good) is not None:  # fine one by one, not together: add one at a time
        fine: list[T] = []
        for item in good:
            if problem := fault([*fine, item]):
                found[item] = problem
            else:
                fine.append(item)
    return found


def _split(
    items: list[T], problem: str, fault: Callable[[Sequence[T]], str | None]
) -> dict[T, str]:
    if len(items) == 1:
        return {items[0]: problem}
    found: dict[T, str] = {}
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        if (wrong := fault(half)) is not None:
            found.update(_split(half, wrong, fault))
    return found


def _twin(model: nn.Module, values: Mapping[int, Tensor]) -> nn.Module:
    """A copy of `model` with its parameters, or `values` instead, and buffers of its own."""
    shared: dict[int, Tensor] = {id(p): p for p in model.parameters()} | dict(values)
    for buffer in model.buffers():  # a forward may write into them
        shared[id(buffer)] = shared.get(id(buffer), buffer).clone()
    return surgery.clone_with(model, shared).eval()


def _pruned(model: nn.Module, setup: Setup, removed: Removed, attributes: Attributes) -> nn.Module:
    twin = _twin(model, setup.values)
    resize(twin, kept_channels(model, removed), attributes)
    return twin


def _attempt(model: nn.Module, given: Any) -> list[Tensor] | None:
    """What `model` returns; None if it fails."""
    try:
        return outputs(model, given)
    except Exception:  # the model's own code may raise anything
        return None


def _unfit(model: nn.Module, setup: Setup) -> str | None:
    """Why nothing can be compared in this setup; None if the original runs in it."""
    try:
        found = outputs_with(model, setup.values, setup.given)
    except Exception as error:  # the model's own code may raise anything
        return first_line(error)
    finite = all(bool(torch.isfinite(output).all()) for output in found)
    return None if finite else "its outputs are not finite"


def _difference(pruned: list[Tensor], masked: list[Tensor]) -> str | None:
    for ours, theirs in zip(pruned, masked, strict=True):
        if ours.shape != theirs.shape:
            return f"pruned, an output is {list(ours.shape)} instead of {list(theirs.shape)}"
        if not ours.is_floating_point():
            if not torch.equal(ours, theirs):
                return "pruned, an integer output differs from the masked model's"
            continue
        if not ours.numel():
            continue
        scale = float(theirs.abs().max()) or 1.0
        relative = float((ours - theirs).abs().max()) / scale
        if not relative <= _TOLERANCE.get(ours.dtype, 0.05):
            return f"pruned, the outputs differ from the masked model's by {relative:.1%}"
    return None
