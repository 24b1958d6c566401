"""What cutting each bundle of channels alone costs, so that the cheapest ones are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.answers import Tally, log_probabilities
from modelzip.core.base import Batch
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.prefix import Change, Shared, run
from modelzip.core.channels.resize import Slot, zero_inputs
from modelzip.errors import DataError, ModelError, SettingError

_NO_BATCHES = "cuts are tried on calibration batches; give at least one"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What one change does to the answers of a model that else stays as it is.

    Attributes:
        kl: mean Kullback-Leibler divergence from the unchanged model's answers, softened at a
            temperature of 3, in nats for each.
        agreement: fraction of the answers whose largest output stays the same.
        accuracy: fraction of the answers that are right; None without labels for all of them.
    """

    kl: float
    agreement: float
    accuracy: float | None


def cut_costs(
    model: nn.Module,
    bundles: Sequence[Bundle],
    scores: Mapping[Bundle, Tensor],
    batches: Sequence[Batch],
    *,
    widths: Mapping[Bundle, Sequence[int]],
) -> dict[Bundle, dict[int, Cut]]:
    """What it costs to leave each of `bundles` alone with each of its `widths`, in units.

    The units of the lowest `scores` are masked, those of equal scores in their order. Every cut
    takes one run over the batches, from the first layer that it changes on where the model can be
    traced (after the layer-wise analysis of Li et al. 2017, https://arxiv.org/abs/1608.08710).
    `model` itself is untouched.

    Raises:
        SettingError: a width is not below the bundle's units, or not above 0.
        DataError: there are no batches.
        ModelError: an output that is not finite, or no output of floats.

    >>> import torch
    >>> from modelzip.core.channels.bundles import find_bundles
    >>> model, x = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), torch.ones(3, 2)
    >>> found, _ = find_bundles(model, x, chosen=["0"])
    >>> values = {found[0]: torch.arange(4)}
    >>> costs = cut_costs(model, found, values, [Batch(x, None)], widths={found[0]: [3, 1]})
    >>> sorted(costs[found[0]]), costs[found[0]][3].accuracy
    ([1, 3], None)
    """
    if not batches:
        raise DataError(_NO_BATCHES)
    trial = surgery.clone(model).eval()
    cuts = [(bundle, left) for bundle in bundles for left in widths[bundle]]
    changes = [_change(trial, bundle, left, scores[bundle]) for bundle, left in cuts]
    with torch.no_grad():
        shared = Shared(trial, changes, batches[0].inputs)
        tallies = _tallies(
            trial,
            batches,
            shared.outputs,
            names=[f"{bundle.units - left} units of {bundle.name!r} cut" for bundle, left in cuts],
        )
    result: dict[Bundle, dict[int, Cut]] = {bundle: {} for bundle in bundles}
    for (bundle, left), tally in zip(cuts, tallies, strict=True):
        result[bundle][left] = _cut(tally)
    return result


def edit_costs(
    model: nn.Module,
    edits: Mapping[str, Callable[[nn.Module], None]],
    batches: Sequence[Batch],
) -> dict[str, Cut]:
    """What each of `edits` alone costs, by name; `model` itself is untouched.

    Each edit is given a copy of the model to change in place. It may replace modules and
    parameters, but must not write into tensors: the copies share them.

    Raises:
        DataError: there are no batches.
        ModelError: an output that is not finite, or no output of floats.

    >>> import torch
    >>> def drop(model):
    ...     model[0] = nn.Identity()
    >>> model, x = nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), torch.ones(3, 2)
    >>> edit_costs(model, {"no relu": drop}, [Batch(x, None)])
    {'no relu': Cut(kl=0.0, agreement=1.0, accuracy=None)}
    """
    if not batches:
        raise DataError(_NO_BATCHES)
    changed = []
    for edit in edits.values():
        changed.append(surgery.clone(model, share=True).eval())
        edit(changed[-1])

    def outputs(inputs: Any) -> Iterator[tuple[int, Any]]:
        yield from enumerate(run(copy, inputs) for copy in changed)

    with torch.no_grad():
        original = surgery.clone(model, share=True).eval()
        tallies = _tallies(
            original, batches, outputs, names=[f"the edit {name!r}" for name in edits]
        )
    return dict(zip(edits, map(_cut, tallies), strict=True))


def _tallies(
    model: nn.Module,
    batches: Sequence[Batch],
    outputs: Callable[[Any], Iterable[tuple[int, Any]]],
    *,
    names: Sequence[str],
) -> list[Tally]:
    """How the `outputs`, with the numbers of their changes, differ from those of `model`."""
    tallies = [Tally() for _ in names]
    for batch in batches:
        original = log_probabilities(run(model, batch.inputs), batch.targets)
        for number, found in outputs(batch.inputs):
            try:
                answers = log_probabilities(found, batch.targets)
            except ModelError as error:
                raise ModelError(f"with {names[number]}, {error}") from error
            tallies[number].add(original, answers, batch.targets)
    return tallies


def _cut(tally: Tally) -> Cut:
    return Cut(kl=tally.kl, agreement=tally.agreement, accuracy=tally.accuracy)


def _change(model: nn.Module, bundle: Bundle, left: int, scores: Tensor) -> Change:
    if not 0 < left < bundle.units:
        raise SettingError(
            f"{bundle.name!r} has {bundle.units} units, of which 1 to {bundle.units - 1} can be "
            f"left, got {left}"
        )
    units = scores.argsort(stable=True)[: bundle.units - left]
    removed = {s: index[units].flatten() for s, index in bundle.channels.items() if s.side == "in"}
    return Change([slot.layer for slot in removed], partial(_masked, model, removed))


@contextmanager
def _masked(model: nn.Module, removed: Mapping[Slot, Tensor]) -> Iterator[None]:
    """Inside, the weights that read the channels `removed` are zero."""
    layers = [model.get_submodule(slot.layer) for slot in removed]
    kept = [(t, t.clone()) for layer in layers for t in layer.state_dict().values()]
    zero_inputs(model, removed)
    try:
        yield
    finally:
        for tensor, value in kept:
            tensor.copy_(value)
