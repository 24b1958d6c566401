"""Choosing which units go: in chunks that keep widths aligned, least important first."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.resize import Slot

_MET = 1 + 1e-9  # a goal met exactly is met, whatever its fraction is rounded to


class Chunk(NamedTuple):
    """Units of one bundle that go together, after the bundle's earlier chunks."""

    bundle: Bundle
    units: Tensor
    key: tuple[float, float]


def sizes(bundle: Bundle, *, round_to: int, max_sparsity: float) -> range:
    """The numbers of units that may be left of `bundle`, falling; empty if it must stay whole.

    They leave a multiple of `round_to` channels, and at least the fraction 1 - `max_sparsity`.

    >>> bundle = Bundle({Slot("a", "out"): torch.arange(20)[:, None]})
    >>> list(sizes(bundle, round_to=8, max_sparsity=0.9))
    [16, 8]
    """
    step = round_to // math.gcd(round_to, bundle.channels_per_unit)
    # 1e-9: 10 * (1 - 0.9) is a little above 1
    least = max(step, math.ceil(bundle.units * (1 - max_sparsity) - 1e-9))
    return range((bundle.units - 1) // step * step, least - 1, -step)


def chunks(
    scores: Mapping[Bundle, Tensor], *, scope: str, round_to: int, max_sparsity: float
) -> list[Chunk]:
    """Everything that may go, in the order in which it goes.

    Widths after each chunk are multiples of `round_to`, and no bundle loses more than the fraction
    `max_sparsity`. scope "global" orders by mean score; "layer" by the fraction of the bundle gone
    half-way through the chunk, so all bundles shrink alike.
    """
    found = []
    for bundle, values in scores.items():
        order = torch.argsort(values, stable=True)
        start = 0
        for keep in sizes(bundle, round_to=round_to, max_sparsity=max_sparsity):
            units = order[start : bundle.units - keep]
            mean = float(values[units].mean())
            middle = (start + len(units) / 2) / bundle.units
            found.append(
                Chunk(bundle, units, (mean, middle) if scope == "global" else (middle, mean))
            )
            start += len(units)
    return sorted(found, key=lambda chunk: chunk.key)


def by_sparsity(ordered: Sequence[Chunk], sparsity: float, *, scope: str) -> list[Chunk]:
    """The chunks to remove for the fraction `sparsity` of channels, as near as chunks allow."""
    if scope == "layer":
        return [chunk for chunk in ordered if chunk.key[0] < sparsity]
    bundles = {chunk.bundle for chunk in ordered}
    goal = sparsity * sum(b.units * b.channels_per_unit for b in bundles)
    taken: list[Chunk] = []
    gone = 0
    for chunk in ordered:
        size = len(chunk.units) * chunk.bundle.channels_per_unit
        if gone + size / 2 > goal:
            break
        taken.append(chunk)
        gone += size
    return taken


def by_cost(
    ordered: Sequence[Chunk], cost: Callable[[Sequence[Chunk]], float]
) -> list[Chunk] | None:
    """The fewest chunks, first ones first, that bring `cost` down to 1; None if none do.

    Then the later ones are put back where that still holds.
    """
    reached = lambda n: -cost(ordered[:n])  # noqa: E731  # grows with n
    first = bisect.bisect_left(range(len(ordered) + 1), -_MET, key=reached)
    if first > len(ordered):
        return None
    taken = list(ordered[:first])
    kept_whole: set[Bundle] = set()  # bundles whose last chunk stays gone: earlier ones must too
    for chunk in reversed(ordered[:first]):
        if chunk.bundle in kept_whole:
            continue
        without = [other for other in taken if other is not chunk]
        if cost(without) <= _MET:
            taken = without
        else:
            kept_whole.add(chunk.bundle)
    return taken


def removed(taken: Sequence[Chunk]) -> dict[Slot, Tensor]:
    """The channels of each slot that go with the chunks `taken`."""
    parts: dict[Slot, list[Tensor]] = {}
    for chunk in taken:
        for slot, channels in chunk.bundle.channels.items():
            parts.setdefault(slot, []).append(channels[chunk.units].flatten())
    return {slot: torch.cat(found) for slot, found in parts.items()}


def counts(taken: Sequence[Chunk]) -> dict[Slot, int]:
    """How many channels of each slot go with the chunks `taken`."""
    result: dict[Slot, int] = {}
    for chunk in taken:
        for slot, channels in chunk.bundle.channels.items():
            result[slot] = result.get(slot, 0) + len(chunk.units) * channels.shape[1]
    return result
