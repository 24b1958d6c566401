"""Looking for the cuts that cost the answers of a model least."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.channels import choose
from modelzip.core.channels.blocks import drop, inside
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.cuts import Candidate, Group, Saved, cheapest, less
from modelzip.core.channels.resize import zero_inputs
from modelzip.core.channels.sensitivity import Cut, cut_costs, edit_costs
from modelzip.core.running import tensors

_WIDTHS = 6  # tried of each bundle, at most
_SAMPLES = 256  # are enough to tell cuts apart
_PARTS = 4  # in which cuts are chosen


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
            return less(saved(cut), [saved(c) for c in replaced])

        rest = less(needed, [saved(cut) for cut in self._made])
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
