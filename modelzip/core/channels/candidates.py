"""What could be cut, what each cut alone costs, and the cheapest cuts that save enough."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.channels import choose
from modelzip.core.channels.blocks import drop, inside
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.resize import zero_inputs
from modelzip.core.channels.sensitivity import Cut, cut_costs, edit_costs
from modelzip.core.running import tensors
from modelzip.numerics.allocation import allocate

_WIDTHS = 6  # tried of each bundle, at most
_SAMPLES = 256  # are enough to tell cuts apart
_WEIGHINGS = 20  # of several savings
_PARTS = 4  # in which cuts are chosen
_LEAST = 1e-9  # nats: even a cut that cost nothing on these samples is not made for nothing


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


class Search:
    """The cheapest cuts of `model` that save enough.

    Layers stand in for each other, so that each may cost little alone and all of them together
    everything. Cuts are therefore chosen in parts, and after each part what the others cost is
    measured again, on the first 256 samples of `batches`.

    Attributes:
        groups: every cut there is, each tried alone on the model as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Mapping[Bundle, Tensor],
        batches: Sequence[Batch],
        *,
        round_to: int,
        max_sparsity: float,
        blocks: Sequence[str] = (),
    ) -> None:
        self._model, self._scores = model, scores
        sizes = itertools.accumulate(len(next(tensors(batch.inputs))) for batch in batches)
        self._batches = batches[: 1 + sum(total < _SAMPLES for total in sizes)]
        self._blocks = blocks
        self._left = {
            bundle: _spread(choose.sizes(bundle, round_to=round_to, max_sparsity=max_sparsity))
            for bundle in scores
        }
        self._made: list[Candidate] = []
        self._parts_made = 0
        self.groups = self._now = self._measured()

    def choose(self, saved: Saved, *, needed: Sequence[float]) -> list[Candidate] | None:
        """Cuts that together save all of `needed`; None if all that there are save less.

        The first call settles all parts but the last, which later calls choose anew.
        """
        while self._parts_made < _PARTS - 1:
            share = (self._parts_made + 1) / _PARTS
            cuts = self._next(saved, needed=[share * each for each in needed])
            if cuts is None:
                return None
            self._made, self._parts_made = cuts, self._parts_made + 1
            self._now = self._measured()
        return self._next(saved, needed=needed)

    def _next(self, saved: Saved, *, needed: Sequence[float]) -> list[Candidate] | None:
        """The cuts made so far, and the cheapest further ones."""
        made = {cut.layer: cut for cut in self._made}

        def more(cut: Candidate) -> Sequence[float]:
            if cut.chunk is None:
                replaced = [c for c in self._made if inside(c.layer, cut.layer)]
            else:
                replaced = [made[cut.layer]] if cut.layer in made else []
            return _less(saved(cut), [saved(c) for c in replaced])

        rest = _less(needed, [saved(cut) for cut in self._made])
        further = cheapest(self._now, more, needed=rest) if max(rest) > 0 else []
        if further is None:
            return None
        new = {cut.layer for cut in further}
        gone = [cut.layer for cut in further if cut.chunk is None]
        kept = [
            cut
            for cut in self._made
            if cut.layer not in new and not any(inside(cut.layer, block) for block in gone)
        ]
        return kept + further

    def _measured(self) -> list[Group]:
        """The cuts that can still be made, each tried alone on the model with those made so far."""
        dropped = [cut.layer for cut in self._made if cut.chunk is None]
        base = surgery.clone(self._model)
        drop(base, dropped)
        for cut in self._made:
            if cut.chunk is not None:
                zero_inputs(base, choose.removed([_there(cut.chunk, dropped)]))
        width = {cut.layer: cut.width for cut in self._made}
        there: dict[Bundle, Bundle] = {}
        left: dict[Bundle, list[int]] = {}
        for bundle in self._scores:
            now = width.get(bundle.name, bundle.units * bundle.channels_per_unit)
            if not any(inside(bundle.name, block) for block in dropped):
                there[bundle] = _without(bundle, dropped)
                left[there[bundle]] = [
                    n for n in self._left[bundle] if n * bundle.channels_per_unit < now
                ]
        scores = {there[bundle]: self._scores[bundle] for bundle in there}
        costs = cut_costs(base, list(left), scores, self._batches, widths=left)
        edits: dict[str, Callable[[nn.Module], None]] = {
            name: lambda model, name=name: drop(model, [name])  # type: ignore[misc]
            for name in self._blocks
            if name not in dropped
        }
        blocks = edit_costs(base, edits, self._batches) if edits else {}
        within: dict[str, list[Sequence[Candidate]]] = {name: [] for name in blocks}
        groups = []
        for bundle, present in there.items():
            found = [
                _candidate(bundle, self._scores[bundle], n, costs[present][n])
                for n in left[present]
            ]
            owner = next((name for name in blocks if _within(bundle, name)), None)
            if found and owner is None:
                groups.append(Group([found]))
            elif found and owner is not None:
                within[owner].append(found)
        for name, bundles in within.items():
            groups.append(Group(bundles, Candidate(name, 0, 0, blocks[name], None)))
        return groups


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
        short = _less(needed, [saved(cut) for cut in cuts])
        if all(each <= 1e-9 for each in short):
            return cuts
        for index, each in enumerate(short):
            if each > 0:  # ask for more of it, and let it weigh more
                asked[index] += each
                weights[index] *= 1.2
    return None


def _weighted(saved: Saved, weights: Sequence[float], cut: Candidate) -> float:
    return sum(w * each for w, each in zip(weights, saved(cut), strict=True))


def _less(whole: Sequence[float], parts: Sequence[Sequence[float]]) -> list[float]:
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


def _candidate(bundle: Bundle, values: Tensor, left: int, cost: Cut) -> Candidate:
    units = values.argsort(stable=True)[: bundle.units - left]
    each = bundle.channels_per_unit
    chunk = Chunk(bundle, units, (0.0, 0.0))
    return Candidate(bundle.name, left * each, bundle.units * each, cost, chunk)


def _spread(sizes: range) -> list[int]:
    """At most 6 of `sizes`, the first and the last among them."""
    if len(sizes) <= _WIDTHS:
        return list(sizes)
    step = (len(sizes) - 1) / (_WIDTHS - 1)
    return [sizes[round(i * step)] for i in range(_WIDTHS)]


def _without(bundle: Bundle, dropped: Sequence[str]) -> Bundle:
    """The bundle less its slots in blocks that are gone."""
    slots = {
        slot: channels
        for slot, channels in bundle.channels.items()
        if not any(inside(slot.layer, block) for block in dropped)
    }
    return bundle if len(slots) == len(bundle.channels) else replace(bundle, channels=slots)


def _there(chunk: Chunk, dropped: Sequence[str]) -> Chunk:
    return chunk._replace(bundle=_without(chunk.bundle, dropped))


def _within(bundle: Bundle, block: str) -> bool:
    return all(inside(slot.layer, block) for slot in bundle.channels)
