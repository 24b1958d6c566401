"""Cuts that could be made of a model, and the cheapest of them that save enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.sensitivity import Cut

_LEAST = 1e-9  # nats: even a cut that cost nothing on these samples is not made for nothing
_NOTHING = 1e-9  # saved of anything, as a fraction of all there is
_SECONDS = 20.0  # for the best cuts; then the best so far are taken


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


# what a cut alone saves of each of several things, as fractions of all there is; sums are taken
Saved = Callable[[Candidate], Sequence[float]]


def cheapest(
    groups: Sequence[Group], saved: Saved, *, needed: Sequence[float]
) -> list[Candidate] | None:
    """The cuts that together save all of `needed`, at the least total of what each alone costs.

    An integer program, solved to a thousandth of that total. None where all cuts save less.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import, for this alone

    asked = [index for index, each in enumerate(needed) if each > _NOTHING]
    cuts = every(groups)
    if not asked or not cuts:
        return None if asked else []
    number = {cut: index for index, cut in enumerate(cuts)}
    rows = [
        [number[cut] for cut in (*bundle, *([group.block] if group.block else []))]
        for group in groups
        for bundle in group.bundles or ((),)
    ]
    excluding = np.zeros((len(rows), len(cuts)))
    for row, members in enumerate(rows):
        excluding[row, members] = 1
    saving = np.array([[saved(cut)[i] / needed[i] for cut in cuts] for i in asked])
    cost = np.array([max(cut.cost.kl, _LEAST) for cut in cuts])
    found = milp(
        cost / cost.max(),
        integrality=np.ones(len(cuts), dtype=int),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(excluding, ub=1), LinearConstraint(saving, lb=1)],
        options={"mip_rel_gap": 1e-3, "time_limit": _SECONDS},
    )
    if found.x is None:
        return None
    return [cut for cut, taken in zip(cuts, found.x, strict=True) if taken > 0.5]


def less(whole: Sequence[float], parts: Sequence[Sequence[float]]) -> list[float]:
    """`whole` less each of `parts`, entry by entry."""
    return [each - sum(part[i] for part in parts) for i, each in enumerate(whole)]


def every(groups: Sequence[Group]) -> list[Candidate]:
    """All cuts of all groups."""
    blocks = [group.block for group in groups if group.block is not None]
    return [cut for group in groups for bundle in group.bundles for cut in bundle] + blocks


def layers_of(cuts: Iterable[Candidate]) -> dict[str, int]:
    """The cuts as the setting `widths` has them."""
    return {cut.layer: cut.width for cut in cuts}
