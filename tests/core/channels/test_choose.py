"""Which chunks go: alignment, order, and goals met."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.core.channels import choose
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.resize import Slot


def bundle(name: str, units: int, *, each: int = 1) -> Bundle:
    channels = torch.arange(units * each).view(units, each)
    return Bundle({Slot(name, "out"): channels, Slot(name + "_next", "in"): channels})


def scores(*values: list[float]) -> dict[Bundle, torch.Tensor]:
    return {
        bundle(str(i), len(v)): torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)
    }


@given(st.integers(2, 70), st.integers(1, 6), st.integers(1, 20), st.floats(0.05, 0.95))
def test_sizes_are_aligned_and_within_the_limit(
    units: int, each: int, round_to: int, limit: float
) -> None:
    found = choose.sizes(bundle("a", units, each=each), round_to=round_to, max_sparsity=limit)
    expected = [
        keep
        for keep in range(units - 1, 0, -1)
        if keep * each % round_to == 0 and (units - keep) / units <= limit + 1e-9
    ]
    assert list(found) == expected


def test_the_least_important_go_first_over_all_layers() -> None:
    ordered = choose.chunks(
        scores([4.0, 1.0, 3.0], [2.0, 5.0]), scope="global", round_to=1, max_sparsity=0.9
    )
    assert [(c.bundle.name, c.units.tolist()) for c in ordered] == [
        ("0", [1]),
        ("1", [0]),
        ("0", [2]),
    ]


def test_layer_scope_takes_the_same_fraction_of_each() -> None:
    ordered = choose.chunks(
        scores([1.0] * 8, [9.0] * 4), scope="layer", round_to=1, max_sparsity=0.9
    )
    taken = choose.by_sparsity(ordered, 0.5, scope="layer")
    assert choose.counts(taken)[Slot("0", "out")] == 4
    assert choose.counts(taken)[Slot("1", "out")] == 2


def total(gone: Mapping[Slot, int]) -> int:
    """A cost by hand: 10 for each channel of layer 0 left, 1 for each of layer 1."""
    price = {Slot("0", "out"): 10, Slot("1", "out"): 1}
    return 88 - sum(price.get(slot, 0) * count for slot, count in gone.items())


@given(st.lists(st.floats(0.1, 9), min_size=16, max_size=16), st.integers(8, 88))
def test_a_cost_is_met_and_nothing_more_could_be_put_back(values: list[float], goal: int) -> None:
    ordered = choose.chunks(
        scores(values[:8], values[8:]), scope="global", round_to=2, max_sparsity=0.9
    )
    taken = choose.by_cost(ordered, lambda chunks: total(choose.counts(chunks)) / goal)
    if taken is None:
        assert total(choose.counts(ordered)) > goal
        return
    assert total(choose.counts(taken)) <= goal
    last = {chunk.bundle: chunk for chunk in taken}
    for chunk in last.values():
        rest = [other for other in taken if other is not chunk]
        assert total(choose.counts(rest)) > goal


def test_removed_channels_follow_their_units() -> None:
    pair = bundle("a", 3, each=2)
    taken = [choose.Chunk(pair, torch.tensor([2, 0]), (0.0, 0.0))]
    assert choose.removed(taken)[Slot("a", "out")].tolist() == [4, 5, 0, 1]
    assert choose.counts(taken) == {Slot("a", "out"): 4, Slot("a_next", "in"): 4}
