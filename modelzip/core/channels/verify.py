"""Running a pruned model against the masked original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.channels.resize import Slot, resize, widths, zero_inputs
from modelzip.core.running import call, convert, evaluating, forked_rng, rows, tensors
from modelzip.errors import ModelError, first_line

Removed = Mapping[Slot, Tensor]
T = TypeVar("T")
_ROWS = 2  # of the example batch: enough to tell channels apart
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the largest output; coarser types 5 %


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

    In float64 where the model runs in it, so that rounding hides nothing. With `jitter`, weights
    and inputs are perturbed first: a scale still at zero would hide a wrong channel. Without it,
    a second batch size and a pass in training mode are tried too, where the original takes them.

    >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    >>> trial = Trial(model, torch.ones(1, 1))
    >>> trial.fault({Slot("0", "out"): torch.tensor([1]), Slot("1", "in"): torch.tensor([1])})
    >>> trial.fault({Slot("1", "in"): torch.tensor([1])})
    'pruned, it fails: mat1 and mat2 shapes cannot be multiplied (2x2 and 1x1)'
    """

    def __init__(self, model: nn.Module, inputs: Any, *, jitter: bool = False) -> None:
        self._trains = False
        for double in (True, False):
            self._model = surgery.clone(model).eval()
            given = rows(inputs, _ROWS) if double else inputs
            if double:
                self._model.double()
                given = convert(given, lambda t: t.double() if t.is_floating_point() else t)
            if jitter:
                given = _jitter(self._model, given)
            try:
                self._cases = [(given, _outputs(self._model, given))]
            except Exception as error:  # the model's own code may raise anything
                fault = first_line(error)
                continue
            if all(bool(torch.isfinite(output).all()) for output in self._cases[0][1]):
                break
            fault = "its outputs are not finite"
        else:
            raise ModelError(f"{type(model).__name__} does not run on the example inputs: {fault}")
        if not jitter:
            self._add_cases(given)

    def _add_cases(self, given: Any) -> None:
        other = rows(given, 1)
        with contextlib.suppress(Exception):  # the original may have a fixed batch size
            self._cases.append((other, _outputs(self._model, other)))
        self._trains = _trains(self._model, given)

    def fault(self, removed: Removed) -> str | None:
        """What is wrong with the model once the channels `removed` are gone; None if nothing."""
        pruned, masked = surgery.clone(self._model), surgery.clone(self._model)
        zero_inputs(masked, removed)
        try:
            resize(pruned, kept_channels(pruned, removed))
            for given, _ in self._cases:
                if problem := _difference(_outputs(pruned, given), _outputs(masked, given)):
                    return problem
        except Exception as error:  # the model's own code may raise anything
            return f"pruned, it fails: {first_line(error)}"
        if self._trains and not _trains(pruned, self._cases[0][0]):
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


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with evaluating(model), forked_rng(model):
        torch.manual_seed(0)  # layers that draw numbers even here draw the same each time
        return list(tensors(call(model, inputs)))


def _trains(model: nn.Module, inputs: Any) -> bool:
    trial = surgery.clone(model).train()
    try:
        with torch.no_grad(), forked_rng(model):
            call(trial, inputs)
    except Exception:  # the model's own code may raise anything
        return False
    return True


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


def _jitter(model: nn.Module, inputs: Any) -> Any:
    """Perturb `model` in place by a tenth, and return perturbed `inputs`."""
    generator = torch.Generator().manual_seed(0)

    def noisy(tensor: Tensor, *, positive: bool = False) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        if positive:
            return tensor * (1 + noise.abs())
        return tensor + 0.1 * noise * (
            float(tensor.detach().double().square().mean()) ** 0.5 or 1.0
        )

    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.copy_(noisy(tensor, positive=name.endswith("running_var")))
    return convert(inputs, noisy)
