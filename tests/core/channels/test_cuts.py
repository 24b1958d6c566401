"""Choosing cuts: the cheapest that save enough, among all that there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.cuts import Candidate, Group, cheapest, every, layers_of
from modelzip.core.channels.sensitivity import Cut
from modelzip.core.channels.slots import Slot

COSTS = st.floats(0.001, 10)
SAVINGS = st.floats(0.01, 1)


def cut(layer: str, width: int, kl: float) -> Candidate:
    bundle = Bundle({Slot(layer, "out"): torch.arange(8)[:, None]})
    chunk = Chunk(bundle, torch.arange(8 - width), (0.0, 0.0)) if width else None
    return Candidate(layer, width, 8, Cut(kl=kl, agreement=1.0, accuracy=None), chunk)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Group], dict[int, float]]:
    groups, saved = [], {}
    for number in range(draw(st.integers(1, 3))):
        bundles = [
            [cut(f"{number}.{k}", width, draw(COSTS)) for width in (6, 4)]
            for k in range(draw(st.integers(1, 2)))
        ]
        block = cut(f"{number}", 0, draw(COSTS)) if draw(st.booleans()) else None
        groups.append(Group(bundles, block))
    for one in every(groups):
        saved[id(one)] = draw(SAVINGS)
    return groups, saved


def choices(group: Group) -> list[tuple[Candidate, ...]]:
    """All that may be cut of a group, written down another way."""
    picks = [[None, *bundle] for bundle in group.bundles]
    found = [tuple(c for c in row if c is not None) for row in itertools.product(*picks)]
    return [*found, *([(group.block,)] if group.block is not None else [])]


@settings(deadline=None, max_examples=60)
@given(
    problems(),
    st.lists(SAVINGS, min_size=15, max_size=15),
    st.lists(st.floats(-0.1, 3), min_size=2, max_size=2),
)
def test_no_other_cuts_save_enough_of_everything_at_less(
    problem: tuple[list[Group], dict[int, float]], others: list[float], needed: list[float]
) -> None:
    groups, saved = problem
    other = {id(one): value for one, value in zip(every(groups), others, strict=False)}

    def short(cuts: Sequence[Candidate], slack: float) -> bool:
        return any(
            sum(table[id(c)] for c in cuts) < each - slack
            for table, each in zip((saved, other), needed, strict=True)
        )

    found = cheapest(groups, lambda c: [saved[id(c)], other[id(c)]], needed=needed)
    every_way = [
        list(itertools.chain(*rows)) for rows in itertools.product(*(choices(g) for g in groups))
    ]
    enough = [way for way in every_way if not short(way, -1e-5)]
    if found is None:
        assert not enough
        return
    assert not short(found, 1e-5)
    assert any(set(found) == set(way) for way in every_way), "cuts exclude each other"
    total = sum(c.cost.kl for c in found)
    least = min((sum(c.cost.kl for c in way) for way in enough), default=math.inf)
    assert total <= least * (1 + 2e-3) + 1e-6


def test_a_block_and_a_layer_inside_it_are_not_both_cut() -> None:
    inner, whole = cut("block.conv", 4, 1.0), cut("block", 0, 1.5)
    found = cheapest(
        [Group([[inner]], whole)], lambda c: [1.0 if c is inner else 1.2], needed=[1.1]
    )
    assert found == [whole]


def test_all_together_may_not_be_enough() -> None:
    assert cheapest([Group([[cut("a", 4, 1.0)]])], lambda c: [1.0], needed=[1.5]) is None
    assert cheapest([], lambda c: [1.0], needed=[0.5]) is None


def test_two_goals_pull_two_ways() -> None:
    fast, small = cut("a", 4, 1.0), cut("b", 4, 1.0)
    groups = [Group([[fast]]), Group([[small]])]
    saves = {id(fast): [1.0, 0.1], id(small): [0.1, 1.0]}
    assert cheapest(groups, lambda c: saves[id(c)], needed=[0.9, 0.0]) == [fast]
    assert cheapest(groups, lambda c: saves[id(c)], needed=[0.9, 0.9]) == [fast, small]


def test_widths_name_layers_and_blocks() -> None:
    assert layers_of([cut("a", 4, 1.0), cut("block", 0, 1.0)]) == {"a": 4, "block": 0}
