"""Cuts that could be made of a model, and the cheapest of them that save enough."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.sensitivity import Cut
from modelzip.numerics.allocation import allocate

_LEAST = 1e-9  # nats: even a cut that cost nothing on these samples is not made for nothing
_WEIGHINGS = 20  # of several savings


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing that could be cut: all but `width` of the `of` channels of `layer`, or a block.

    Attributes:
        layer: the layer that gives the bundle its name, or the name of the block.
        width: channels left; 0 where a whole block goes.
        of: channels now; of a block, the residual stream's own width is kept and this is 0.
        cost: what this cut does to the answers of the model as it was when it was chosen.
        chunk: the units that go; None for a block.
    """

    layer: str
    width: int
    of: int
    cost: Cut
    chunk: Chunk | None


@dataclass(frozen=True, eq=False)
class Group:
    """Cuts that exclude each other: of each bundle at most one, or else the whole block.

    `bundles` holds the candidates of each bundle, the smallest cut first.
    """

    bundles: Sequence[Sequence[Candidate]]
    block: Candidate | None = None


# what a cut alone saves of each of several things, in any unit; sums are taken
Saved = Callable[[Candidate], Sequence[float]]


def cheapest(
    groups: Sequence[Group], saved: Saved, *, needed: Sequence[float]
) -> list[Candidate] | None:
    """The cuts that together save all of `needed`, at the least total of what each alone costs.

    Where several things are to be saved, their weighted sum is, and more is asked the next time of
    what falls short: then the cuts are good, not always the best. None where none were found.
    """
    asked = list(needed)
    weights = [1 / each if each > 0 else 0.0 for each in needed]
    for _ in range(_WEIGHINGS):
        weighted = functools.partial(_weighted, saved, weights)
        total = sum(w * each for w, each in zip(weights, asked, strict=True))
        cuts = _knapsack(groups, weighted, needed=total)
        if cuts is None:
            return None
        short = less(needed, [saved(cut) for cut in cuts])
        if all(each <= 1e-9 for each in short):
            return cuts
        for index, each in enumerate(short):
            if each > 0:  # ask for more of it, and let it weigh more
                asked[index] += each
                weights[index] *= 1.2
    return None


def _weighted(saved: Saved, weights: Sequence[float], cut: Candidate) -> float:
    return sum(w * each for w, each in zip(weights, saved(cut), strict=True))


def less(whole: Sequence[float], parts: Sequence[Sequence[float]]) -> list[float]:
    """`whole` less each of `parts`, entry by entry."""
    return [each - sum(part[i] for part in parts) for i, each in enumerate(whole)]


def _knapsack(
    groups: Sequence[Group], saved: Callable[[Candidate], float], *, needed: float
) -> list[Candidate] | None:
    rows = [_options(group, saved) for group in groups]
    most = [max(saving for _, saving, _ in row) for row in rows]
    if sum(most) < needed or not rows:
        return None
    longest = max(len(row) for row in rows)
    costs = [_padded([cost for cost, _, _ in row], longest) for row in rows]
    # the knapsack takes sizes under a budget: what is left of each row's largest saving
    sizes = [
        _padded([top - saving for _, saving, _ in row], longest)
        for top, row in zip(most, rows, strict=True)
    ]
    picked = allocate(costs, sizes, budget=max(sum(most) - needed, 1e-12 * sum(most)))
    return [cut for row, index in zip(rows, picked, strict=True) for cut in row[index][2]]


def every(groups: Sequence[Group]) -> list[Candidate]:
    """All cuts of all groups."""
    blocks = [group.block for group in groups if group.block is not None]
    return [cut for group in groups for bundle in group.bundles for cut in bundle] + blocks


def layers_of(cuts: Iterable[Candidate]) -> dict[str, int]:
    """The cuts as the setting `widths` has them."""
    return {cut.layer: cut.width for cut in cuts}


Option = tuple[float, float, tuple[Candidate, ...]]  # cost, saving, cuts


def _options(group: Group, saved: Callable[[Candidate], float]) -> list[Option]:
    """Every combination of cuts of a group that no other beats in both cost and saving."""
    choices = [[(), *((cut,) for cut in bundle)] for bundle in group.bundles]
    combined = [tuple(itertools.chain(*picks)) for picks in itertools.product(*choices)]
    if group.block is not None:
        combined.append((group.block,))
    options = [
        (sum(_cost(cut) for cut in cuts), sum(saved(cut) for cut in cuts), cuts)
        for cuts in combined
    ]
    options.sort(key=lambda option: (option[0], -option[1]))
    best = [options[0]]
    for option in options[1:]:
        if option[1] > best[-1][1]:
            best.append(option)
    return best


def _cost(cut: Candidate) -> float:
    return max(cut.cost.kl, _LEAST)


def _padded(values: list[float], length: int) -> list[float]:
    return values + values[-1:] * (length - len(values))
