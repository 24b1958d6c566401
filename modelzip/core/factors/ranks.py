"""Which ranks layers can have, what each costs and keeps, and choosing them together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from modelzip.core.factors.geometry import Geometry, Ranks
from modelzip.errors import SettingError
from modelzip.numerics.allocation import allocate
from modelzip.numerics.factors import svd_energy, tucker_energy

_CHOICES = 48  # per layer, spread over its front: finer than rounding in most layers
_NOTHING = 1e-12  # energy, for a logarithm


@dataclass(frozen=True)
class Option:
    """Ranks of a layer, the fraction of its energy they keep, and what its factors cost.

    No ranks are the layer as it is.
    """

    ranks: Ranks
    kept: float
    macs: int
    weights: int

    def cost(self, kind: str) -> int:
        """Multiply-accumulates for "macs", weights for "params"."""
        return self.macs if kind == "macs" else self.weights


def options(weight: Tensor, shape: Geometry, *, round_to: int) -> list[Option]:
    """The layer as it is, then all ranks at multiples of `round_to` that save anything.

    `weight` is float64, multiplied by the root of the inputs' moment where that is known. A rank
    of a convolution may also be its full width, which spares it a factor.
    """
    if shape.taps == 1:
        energy = svd_energy(weight.flatten(1)).tolist()
        kept: dict[Ranks, float] = {(r,): energy[r - 1] for r in range(1, shape.limits[0] + 1)}
        grid: list[Ranks] = [(rank,) for rank in range(round_to, shape.limits[0], round_to)]
    else:
        table = tucker_energy(weight).tolist()
        sides = [[*range(round_to, n, round_to), n] for n in shape.limits]
        grid = list(itertools.product(*sides))
        kept = {(i, o): table[o - 1][i - 1] for i, o in grid}
    whole = Option((), 1.0, shape.macs(()), shape.weights(()))
    found = [Option(r, min(1.0, kept[r]), shape.macs(r), shape.weights(r)) for r in grid]
    return [whole, *(o for o in found if saves(o, whole))]


def saves(option: Option, whole: Option) -> bool:
    """Whether it takes fewer multiply-accumulates, and no more weights.

    >>> saves(Option((8,), 0.9, 100, 50), Option((), 1.0, 120, 40))
    False
    """
    return option.macs < whole.macs and option.weights <= whole.weights


def by_energy(found: Sequence[Option], energy: float) -> Option:
    """Of those that keep `energy`, the one of fewest multiply-accumulates."""
    return min((o for o in found if o.kept >= energy), key=lambda o: (o.macs, -o.kept))


def by_budget(
    layers: Mapping[str, Sequence[Option]], *, kind: str, budget: float
) -> dict[str, Option]:
    """An option for each layer, within `budget` in all, that keep the largest product of energy.

    The objective is that of Zhang et al. 2016, https://arxiv.org/abs/1505.06798,
    who are greedy; solved exactly but for rounding. The cheapest of each where none are within.

    >>> layer = [Option((), 1.0, 90, 90), Option((16,), 0.9, 60, 60), Option((8,), 0.7, 30, 30)]
    >>> other = [Option((), 1.0, 90, 90), Option((16,), 0.7, 60, 60), Option((8,), 0.2, 30, 30)]
    >>> chosen = by_budget({"a": layer, "b": other}, kind="macs", budget=120.5)
    >>> [option.ranks for option in chosen.values()]
    [(8,), ()]
    """
    fronts = {name: _thinned(front(found, kind=kind)) for name, found in layers.items()}
    length = max(map(len, fronts.values()))
    padded = [[*row, *[row[-1]] * (length - len(row))] for row in fronts.values()]
    costs = [[-math.log(max(o.kept, _NOTHING)) for o in row] for row in padded]
    sizes = [[o.cost(kind) for o in row] for row in padded]
    try:
        picks = allocate(costs, sizes, budget=budget)
    except SettingError:
        picks = [length - 1] * len(padded)
    return {name: row[pick] for name, row, pick in zip(fronts, padded, picks, strict=True)}


def front(found: Sequence[Option], *, kind: str) -> list[Option]:
    """Those that keep more than every option that costs as little, dearest first.

    >>> dear, good, bad = Option((), 1.0, 9, 9), Option((3,), 0.8, 5, 5), Option((4,), 0.7, 6, 6)
    >>> [option.kept for option in front([dear, good, bad], kind="macs")]
    [1.0, 0.8]
    """
    best: list[Option] = []
    for option in sorted(found, key=lambda o: (o.cost(kind), -o.kept)):
        if not best or option.kept > best[-1].kept:
            best.append(option)
    return best[::-1]


def _thinned(found: list[Option]) -> list[Option]:
    if len(found) <= _CHOICES:
        return found
    places = np.linspace(0, len(found) - 1, _CHOICES).round().astype(int)
    return [found[place] for place in dict.fromkeys(places.tolist())]
